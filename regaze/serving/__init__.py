"""Attention edits inside vLLM: a plugin that its engine loads by itself (docs/serving.md)."""
