"""Layers before the first one of a branch: the prompt runs through them once, for the user and the branch.

Between layers there are always the rows of all contexts, so that nothing else has to know which of them ran.
In such a layer, those of branches that begin later are left out, and put back behind it as copies of the
user's, as are their rows of the layer's cache. Tokens and images are embedded once in the same way. Decode
steps run all rows in all layers: what takes time there is the weights, and one graph serves all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context


def with_rows(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: int, change: Callable[[Tensor, int], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a decoder or a layer of `rows` rows, with others."""
    return (
        tuple(compat.map_argument_rows("", value, rows, change) for value in args),
        {name: compat.map_argument_rows(name, value, rows, change) for name, value in kwargs.items()},
    )


def complete_rows(context: Context) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook of the decoder: it is given the rows of the contexts embedded, and gets those of all."""
    rows = context.embedded_rows

    def complete(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return with_rows(args, kwargs, rows, context.all_rows)

    return complete


class SharedLayer:
    """The hooks of one layer in the prompt's forward.

    A layer is left to run all rows where its arguments hold more than tensors of known rows, or its cache is
    of a kind whose rows cannot be copied.
    """

    def __init__(self, context: Context, number: int):
        self._context, self._number = context, number
        self._rows = context.rows_in(number)
        self._cache: Any = None
        self._shared = False

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of the rows that run."""
        self._cache = compat.cache_argument(kwargs)
        self._shared = self._can_share(args, kwargs)
        if not self._shared:
            return None
        batch, rows = self._context.batch, self._rows
        return with_rows(args, kwargs, batch, lambda part, axis: part.narrow(axis, 0, rows))

    def _can_share(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        hidden = args[0] if args else kwargs.get("hidden_states")
        known = isinstance(hidden, Tensor) and hidden.dim() == 3 and len(hidden) == self._context.batch
        mutable = any(isinstance(value, (Mapping, list)) for value in (*args, *kwargs.values()))
        lends = getattr(self._context.config, "num_kv_shared_layers", 0)  # its keys, to layers of more rows
        return known and not mutable and not lends and compat.is_fresh(self._cache, self._number)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The output of all rows."""
        if not self._shared:
            return None
        if self._cache is not None:
            compat.map_rows(self._cache, self._number, self._context.all_rows)
        hidden = self._context.all_rows(output[0] if isinstance(output, tuple) else output)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
