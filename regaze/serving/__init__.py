"""Attention edits inside vLLM: a plugin that its engine loads by itself (docs/serving.md).

A request passes the rooms as it passes the processes of an engine: `frontend`, `scheduler`, `worker`.
"""
