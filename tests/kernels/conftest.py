"""Kernels in Triton's interpreter, where no GPU is: faster, with the same operations."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def patched_once_per_launch():
    """The interpreter replaces the operations of Triton's language once for a launch.

    By itself it looks through all of them again at every call of a device function, of which a launch has
    many: over two fifths of the time of these tests.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # a release that keeps what it replaces elsewhere
        yield
        return
    patch, done = interpreter._patch_lang, set()

    class Scope(interpreter._LangPatchScope):
        def restore(self) -> None:
            super().restore()
            done.clear()

    def patch_lang(function: Any) -> Scope:
        there = {id(each) for each in function.__globals__.values() if inspect.ismodule(each)}
        needed = there & {id(language), id(language.core)}
        scope = Scope()
        if not needed <= done:
            scope._changes = patch(function)._changes
            done.update(needed)
        return scope

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang", patch_lang)
        yield
