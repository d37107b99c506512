"""VideoHallucer: pairs of questions about videos, one with the answer yes, one about what is not there.

Wang et al., 2024, arXiv 2406.16338. Five sets make the published table; "all" is over these. Two more are
beside it: `interaction`, and `fact_detect`, where both answers are no. Since October 2025 `temporal` has 176
pairs; the published tables are of 200 (`before_2025_10`).

A pair is right when both its answers are. `official` takes the right answer as a word anywhere in the text;
`regaze` reads yes or no, and counts unreadable answers as wrong.

Videos become tokens as the model's family has them, or images where it has none (`regaze.Video`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import RemoteFile, github_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.common.yes_no import LABELS
from regaze.eval.benchmarks.videohallucer.scorers import (
    OFFICIAL,
    REGAZE,
    SETS,
    SIDES,
    TABLE,
    VideoReference,
)
from regaze.reading import StrPath
from regaze.toolkit.prompts.video import Video

HUB = "ColorfulAI/VideoHallucer"
SUFFIX = "\nAnswer the question using 'yes' or 'no'."
_HASHES = {
    "object_relation": "a60dfe2290e1f6d35bfc6e2c7ff8794a2591b6eca2b043575ab0762037eec7fd",
    "temporal": "97acacdfd510b1cfb73ae69df1007f1489d5542fb9f7c18ba2601fe0f253129e",
    "semantic_detail": "5e6c8b874faab604d7a6f8bd59012a1aae253c1b6ffc0dab316d2f301dfb3ad9",
    "external_factual": "dbba8cf7bed776de2e7548899174f98e24432f7472c42b1516d83d98def795e2",
    "external_nonfactual": "72cb44b19c97d55670608ec6d2b39bfcc1de5a9155c2fb80bcee0284dff2ee36",
    "interaction": "88c1c83d2bb303ada52c3563253fe26041d8463d97b953c33da4bacac9c5ab7f",
    "fact_detect": "b65ce0d9729d057d92c2937c7888839691d087a1afc7a821ae8569dfe3278f0d",
}


#: `temporal` with the 24 duplicates that were removed in October 2025.
OLD_TEMPORAL = "temporal_before_2025-10"
_COMMIT, _OLD_COMMIT = "ae4c2f25e9cfc7808591489b829d1bf977163db6", "2c6152e61207fd00db1d6d8b72d4893533828867"
_OLD_HASH = "9c33a61510b1e3e947baff405d13a3303189b9e41b3f1f785d66c3e63a698d92"


def _file(name: str, commit: str, sha256: str, local: str) -> RemoteFile:
    path = f"videohallucer_datasets/{name}/{name}.json"
    return github_file("patrick-tssn/VideoHallucer", commit, path, sha256, f"{name}/{local}.json")


@dataclass(frozen=True)
class VideoHallucer(BaseBenchmark):
    """The pairs of some or all sets, which are its splits.

    The bootstrap draws videos: pairs with a video in common stand and fall together, also through others.
    """

    items: tuple[Item, ...]
    suffix: str = SUFFIX
    name: str = "videohallucer"
    about: ClassVar[About] = About(
        title="VideoHallucer",
        paper="Wang et al., 2024, arXiv 2406.16338",
        licence="MIT",
        images=f"videos of several public sets, in {HUB} on the hub",
        home="https://github.com/patrick-tssn/VideoHallucer",
        hub=HUB,
        files=(
            *(_file(name, _COMMIT, sha256, name) for name, sha256 in _HASHES.items()),
            _file("temporal", _OLD_COMMIT, _OLD_HASH, OLD_TEMPORAL),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        sets: Sequence[str] = TABLE,
        frames: int = 8,
        before_2025_10: bool = False,
        suffix: str = SUFFIX,
        limit: int | None = None,
    ) -> VideoHallucer:
        """<set>/<set>.json (or <set>.json) in `folder`, videos in <set>/videos.

        Args:
            images: Folder of the videos of all sets.
            sets: The five of the table, interaction, fact_detect.
            frames: Frames of a video that the model is shown, evenly spaced.
            before_2025_10: Read temporal_before_2025-10.json, of 200 pairs, for the set temporal.
            limit: Number of questions per set; pairs stay together.

        Raises:
            InputError: A file is missing or malformed.
        """
        _check_sets(sets)
        items: list[Item] = []
        for name in dict.fromkeys(sets):
            place = Path(folder, name) if os.path.isdir(Path(folder, name)) else Path(folder)
            file = OLD_TEMPORAL if name == "temporal" and before_2025_10 else name
            path = files.find_file(place, f"{file}.json")
            videos = place / "videos" if images is None else Path(images)
            for number, (line, record) in enumerate(files.read_records(path)):
                items += _pair(name, number, record, videos, frames, f"{path}:{line}")
        pairs = {item.key: (item.split, item.reference.pair) for item in items}
        return cls(limit_items(_with_scenes(items), limit, pairs), suffix)

    @classmethod
    def from_hub(
        cls,
        images: StrPath | None = None,
        *,
        sets: Sequence[str] = TABLE,
        frames: int = 8,
        suffix: str = SUFFIX,
        revision: str | None = None,
        limit: int | None = None,
    ) -> VideoHallucer:
        """The files of the hub's data set, as `load`; its number of pairs says which `temporal` that has.

        Args:
            images: Folder of the videos of all sets; by default those of the data set are fetched.
            revision: Of the data set.

        Raises:
            InputError: As `load` and `hub.fetch_files`.
        """
        _check_sets(sets)
        patterns = [f"{name}/{name}.json" for name in sets]
        if images is None:
            patterns += [f"{name}/videos/*" for name in sets]
        folder = hub.fetch_files(HUB, patterns, revision=revision)
        return cls.load(folder, images, sets=sets, frames=frames, suffix=suffix, limit=limit)

    def scorers(self) -> Sequence[Scorer]:
        return (OFFICIAL, REGAZE)

    def groups(self) -> dict[str, list[int]]:
        """Every set, and as "all" those of the published table."""
        groups = {name: indices for name, indices in super().groups().items() if name != "all"}
        table = [i for name in TABLE for i in groups.get(name, ())]
        if sum(name in TABLE for name in groups) > 1:
            groups["all"] = sorted(table)
        return groups

    def cluster(self, item: Item) -> int:
        """The videos that a chain of pairs connects."""
        scene: int = item.reference.scene
        return scene

    def describe(self) -> dict[str, Any]:
        """As `BaseBenchmark.describe`, with the number of pairs per set and of frames."""
        pairs = Counter(split for split, _ in {(i.split, i.reference.pair) for i in self.items})
        frames = sorted({item.video.frames for item in self.items if item.video is not None})
        return {**super().describe(), "pairs": dict(pairs), "frames": frames}


def _check_sets(sets: Sequence[str]) -> None:
    if not sets or not set(sets) <= set(SETS):
        raise InputError(f"VideoHallucer has the sets {', '.join(SETS)}, got {', '.join(sets) or 'none'}")


def _pair(name: str, number: int, record: Any, videos: Path, frames: int, source: str) -> Iterator[Item]:
    for side in SIDES:
        asked = files.require_field(record, side, dict, source)
        where = f"{source}: {side}"
        video = Video(videos / files.require_field(asked, "video", str, where), frames)
        question = files.require_field(asked, "question", str, where)
        label = files.require_field(asked, "answer", str, where).lower().strip()
        if label not in LABELS or IMAGE_TOKEN in question:
            raise InputError(f"{where}: expected answer yes or no and a question without {IMAGE_TOKEN}")
        key = f"{name}/{number}/{side}"
        reference = VideoReference(name, number, side, label)
        yield Item(key, name, None, question, label, source, reference, id=key, video=video)


def _with_scenes(items: Sequence[Item]) -> list[Item]:
    """The items with the number of the group of videos that pairs connect theirs with."""
    joined: dict[Any, Any] = {}

    def find(node: Any) -> Any:
        while (above := joined.setdefault(node, node)) != node:
            joined[node] = joined[above]
            node = above
        return node

    for item in items:
        joined[find(_video_name(item))] = find((item.split, item.reference.pair))
    numbers: dict[Any, int] = {}
    scenes = [numbers.setdefault(find(_video_name(item)), len(numbers)) for item in items]
    return [
        replace(item, reference=replace(item.reference, scene=scene))
        for item, scene in zip(items, scenes, strict=True)
    ]


def _video_name(item: Item) -> str:
    """Its file; sets keep copies of one video in folders of their own."""
    assert item.video is not None
    return item.video.name
