"""Benchmarks: how their questions are read, what is put to the model, and how answers are scored.

The interface is `common.base.Benchmark`. A class here has some of the constructors `load` (local files in the
official layout), `from_hub` (a public copy, through `datasets` or as its files), `of_demo` and `of_bed`
(scenes that ship) and, for long texts, `build`. Its `about` states the licence and the origin of the images,
which are never shipped.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regaze.reading import StrPath

#: Name -> "module:class", imported by `load_class`.
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
    "haloquest": "haloquest:HaloQuest",
    "mm-vet": "mmvet:MmVet",
    "object-halbench": "object_halbench.benchmark:ObjectHalBench",
    "rope": "rope.benchmark:Rope",
    "beaf": "beaf.benchmark:Beaf",
    "phd": "phd.benchmark:Phd",
    "r-bench": "r_bench.benchmark:RBench",
    "videohallucer": "videohallucer.benchmark:VideoHallucer",
    "mmvp": "mmvp:Mmvp",
    "vstar": "vstar:VStar",
    "vstar-likelihood": "vstar:VStarLikelihood",
    "crpe": "crpe.benchmark:Crpe",
    "vlind": "vlind.benchmark:VlindBench",
    "mmstar": "mmstar.benchmark:Mmstar",
    "textvqa": "textvqa:TextVqa",
    "repope": "pope.repope:RePope",
    "dash-b": "dash_b:DashB",
    "scenes": "scene_questions:SceneQuestions",
    "text-questions": "plain_text:TextQuestions",
    "perplexity": "plain_text:Perplexity",
    "niah": "niah:Niah",
    "niah-judged": "niah:JudgedNiah",
    "ruler": "ruler:Ruler",
}


def load_class(name: str) -> Any:
    """The class of a benchmark. Raises InputError for an unknown name."""
    if name not in NAMES:
        from regaze.errors import InputError
        from regaze.names import suggestion

        raise InputError(f"unknown benchmark {name!r}{suggestion(name, NAMES)}")
    module, _, attribute = NAMES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def download(
    name: str, folder: StrPath | None = None, report: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Download questions and labels from the publisher, and check their hashes where these are known.

    Args:
        folder: Where to put the files; by default the benchmark's folder in the cache.
        report: Called with one line per file.

    Raises:
        InputError: Unknown name, a benchmark without files to download (its `about` names its home), or a
            file that cannot be downloaded or is not the published one.
    """
    from regaze.errors import InputError
    from regaze.eval.benchmarks.common.download import benchmark_folder, download_files

    about = load_class(name).about
    if not about.files:
        hub = f" and {about.hub} on the hub" if about.hub else ""
        raise InputError(f"{about.title} has no files to download here; it is at {about.home}{hub}")
    return download_files(about.files, folder or benchmark_folder(name), report)
