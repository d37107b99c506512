"""Functions with kernels inside, as torch.compile and eager code see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Operator(Generic[P, T]):
    """A function that a compiled graph holds as one operator, and that eager code calls directly.

    Going through torch's dispatcher takes longer than the kernels of a short cache run.
    """

    def __init__(self, name: str, function: Callable[P, T], writes: tuple[str, ...]):
        self.function = function
        self.op = torch.library.custom_op(f"regaze::{name}", function, mutates_args=writes)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        run: Callable[P, T] = self.op if torch.compiler.is_compiling() else self.function
        return run(*args, **kwargs)

    def register_fake(self, shapes: Callable[P, T]) -> Callable[P, T]:
        """What the operator gives for tensors without data: `shapes` has its arguments."""
        self.op.register_fake(shapes)
        return shapes


def operator(name: str, writes: tuple[str, ...] = ()) -> Callable[[Callable[P, T]], Operator[P, T]]:
    """Decorator: the function as operator `regaze::name`, which changes only the arguments it `writes`."""

    def wrap(function: Callable[P, T]) -> Operator[P, T]:
        return Operator(name, function, writes)

    return wrap


#: Options of every launch. Products and sums are fused, whatever Triton's default.
FUSED: dict[str, Any] = {"enable_fp_fusion": True}

#: And of kernels that hold much: or ptxas spills some to fit one more program on a multiprocessor.
ROOMY: dict[str, Any] = FUSED | ({"maxnreg": 255} if torch.version.hip is None else {})
