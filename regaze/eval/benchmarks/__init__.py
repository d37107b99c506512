"""One benchmark per file: how its questions are read, what is put to the model, how answers are scored.

What a runner needs of one is in `base`. Every class has some of the constructors `load` (local files in the
official layout), `from_hub` (a public copy, through `datasets`), `of_demo` (the shipped scenes) and, for long
texts, `build`; its `about` says the licence and where the images come from, which are never shipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: name -> module and class
NAMES: dict[str, str] = {
    "pope": "pope.benchmark:Pope",
    "popev2": "pope.benchmark:PopeV2",
    "chair": "chair.benchmark:Chair",
    "amber": "amber.benchmark:Amber",
    "mme": "mme.benchmark:Mme",
    "hallusionbench": "hallusionbench.benchmark:HallusionBench",
    "mmhal": "mmhal:MmHal",
    "llava-bench": "llava_bench:LlavaBench",
    "gavie": "gavie:Gavie",
    "mmvp": "mmvp:Mmvp",
    "vstar": "vstar:VStar",
    "vstar-likelihood": "vstar:VStarLikelihood",
    "textvqa": "textvqa:TextVqa",
    "niah": "niah:Niah",
    "niah-judged": "niah:JudgedNiah",
    "ruler": "ruler:Ruler",
}


def find(name: str) -> Any:
    """The class of a benchmark. Raises InputError for a name that nobody knows."""
    if name not in NAMES:
        from regaze.errors import InputError

        raise InputError(f"unknown benchmark {name!r}; there are {', '.join(NAMES)}")
    module, _, attribute = NAMES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def download(
    name: str, folder: Path | None = None, tell: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Questions and labels from their public home, each file checked against its hash where one is known.

    Args:
        folder: where to put them; without it the benchmark's place in the cache, where `load` is pointed to.
        tell: called with a line per file.

    Raises:
        InputError: an unknown name, a benchmark without files to download (its `about` says where to go), or
            a file that cannot be had or is not the published one.
    """
    from regaze.errors import InputError
    from regaze.eval.benchmarks.common.download import benchmark_folder, fetch

    about = find(name).about
    if not about.files:
        hub = f" and {about.hub} on the hub" if about.hub else ""
        raise InputError(f"{about.title} has no files to download here; it is at {about.home}{hub}")
    return fetch(about.files, folder or benchmark_folder(name), tell)
