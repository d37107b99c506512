"""Compiled functions whose code is stored on disk, where that can be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cfunc


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that is compiled as one of C; `address` is where its code begins.

    The code is stored beside the source, or in Numba's folder for the user (NUMBA_CACHE_DIR), and is compiled
    anew when the source file changes: what the function calls belongs into the same file.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        try:
            return cfunc(signature, cache=True)(function)
        except RuntimeError:  # no folder can be written to
            return cfunc(signature)(function)

    return compile_it
