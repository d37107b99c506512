"""The functions that make the figures on pages, by the names that the pages call them."""

from __future__ import annotations

from collections.abc import Callable

from figures import (
    audit,
    bed,
    binaries,
    counts,
    demo,
    families,
    guide,
    promises,
    reproduction,
    sources,
    studies,
    timings,
)

MODULES = (
    audit,
    bed,
    binaries,
    counts,
    demo,
    families,
    guide,
    promises,
    reproduction,
    sources,
    studies,
    timings,
)

RENDERERS: dict[str, Callable[..., str]] = {
    name.replace("_", "-"): function
    for module in MODULES
    for name, function in vars(module).items()
    if name in module.__all__
}
