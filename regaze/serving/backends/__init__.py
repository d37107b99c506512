"""Attention backends of vLLM that edit rows of requests, and which engines have one."""
