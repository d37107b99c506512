"""VLind-Bench: does a model follow the image, or what it knows of the world? (Lee et al., arXiv 2406.08702).

302 made-up contexts with generated pictures of them. Two statements, one true only there and one true only
otherwise, are put in four tests, and a test counts where those before it were passed:

CK: by common sense, with a picture of the ordinary context. VP: is a thing in the made-up picture?
CB: by the made-up context, given as text beside its best picture. LP: by a picture alone, each good one.

`official`
    The first word that is true or false; "**True**" is neither. 0 where no instance passed.
`regaze`
    Ours: what an answer calls true or false; undefined where none passed; unreadable answers are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from regaze.errors import InputError
from regaze.eval import files
from regaze.eval.benchmarks.common import hub
from regaze.eval.benchmarks.common.base import IMAGE_TOKEN, About, BaseBenchmark, Item, limit_items
from regaze.eval.benchmarks.common.download import hub_file
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.vlind.scorers import OFFICIAL, REGAZE, VlindReference
from regaze.reading import StrPath

HUB = "klee972/VLind-Bench"
FILE = "data.json"
MAX_NEW_TOKENS = 64
#: style -> ids of its pictures
STYLES = {
    "all": tuple(map(str, range(12))),
    "photorealistic": ("0", "1", "2", "3"),
    "illustration": ("4", "5", "6", "7"),
    "cartoon": ("8", "9", "10", "11"),
}
_REQUEST = "Only respond in True or False."
_QUESTION = "is the given statement true or false?"
_FORGET = (
    "Forget real-world common sense and just follow the information provided in the {}. "  # image, context
)
#: test -> what the statement is to be judged by, in each script
_BASES = {
    "gpt-4o": {"CK": "the common sense", "VP": "the image", "CB": "the context", "LP": "the image"},
    "instructblip": {"CK": "common sense", "VP": "the image", "CB": "the context", "LP": "the image"},
}
_TEXTS = ("context", "factual_context", "true_statement", "false_statement", "existent_noun")


@dataclass(frozen=True)
class VlindBench(BaseBenchmark):
    """The statements, a split per test.

    Attributes:
        prompts: Of the script for GPT-4o, or of the one for InstructBLIP, which begins with the request for
            True or False and does not say to forget common sense. Published figures use both.
    """

    items: tuple[Item, ...]
    prompts: Literal["gpt-4o", "instructblip"] = "gpt-4o"
    name: str = "vlind"
    about: ClassVar[About] = About(
        title="VLind-Bench",
        paper="Lee et al., 2024, arXiv 2406.08702",
        licence="Apache-2.0",
        images="generated, in the data set's repository on the hub",
        home="https://github.com/klee972/VLind-Bench",
        hub=HUB,
        files=(hub_file(HUB, FILE),),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        votes: int = 2,
        style: Literal["all", "photorealistic", "illustration", "cartoon"] = "all",
        limit: int | None = None,
        **options: Any,
    ) -> VlindBench:
        """data.json in `folder`; pictures in `images` (`folder`/images), in the published folders.

        Args:
            votes: How many people must have called a picture good. An instance without one is left out.
            style: Of the pictures that LP shows.
            limit: Statements per test; instances stay whole.

        Raises:
            InputError: A file is missing or malformed, an unknown style, or no picture is left.
        """
        limit_items((), limit)
        if style not in STYLES:
            raise InputError(f"VLind-Bench has the styles {', '.join(STYLES)}, got {style!r}")
        folder, root = files.folders_of(folder, images, "images")
        path = files.find_file(folder, FILE)
        items = [
            item
            for line, record in files.read_records(path, controls=True)
            for item in _instance(record, root, f"{path}:{line}", votes, STYLES[style])
        ]
        if not items:
            raise InputError(f"{path}: no instance has a picture of style {style!r} with {votes} votes")
        instances = {item.key: item.reference.instance for item in items}
        return cls(limit_items(items, limit, instances), **options)

    @classmethod
    def from_hub(
        cls,
        images: StrPath | None = None,
        *,
        votes: int = 2,
        style: Literal["all", "photorealistic", "illustration", "cartoon"] = "all",
        revision: str | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> VlindBench:
        """The files of the hub's data set, as `load`.

        Args:
            images: Folder of the pictures; by default those of the data set are fetched.
            revision: Of the data set.

        Raises:
            InputError: As `load` and `hub.fetch_files`.
        """
        patterns = [FILE] if images is not None else [FILE, "images/*"]
        folder = hub.fetch_files(HUB, patterns, revision=revision)
        return cls.load(folder, images, votes=votes, style=style, limit=limit, **options)

    def prompt(self, item: Item) -> str:
        test = item.reference.test
        question = f"{item.question}\nBased on {_BASES[self.prompts][test]}, {_QUESTION}"
        if self.prompts == "instructblip":
            return f"{_REQUEST}\n{question}"
        forget = {"CB": _FORGET.format("context"), "LP": _FORGET.format("image")}.get(test, "")
        return f"{question} {forget}{_REQUEST}"

    def scorers(self) -> Sequence[Scorer]:
        return (OFFICIAL, REGAZE)

    def groups(self) -> dict[str, list[int]]:
        """One group: the tests are scored together."""
        return {"all": list(range(len(self.items)))}

    def cluster(self, item: Item) -> str:
        """The instance."""
        return str(item.reference.instance)


def _instance(
    record: Any, images: Path, source: str, votes: int, considered: Sequence[str]
) -> Iterator[Item]:
    """The statements about an instance; none if it has no good picture."""
    number = str(files.require_field(record, "global_id", (int, str), source))
    given = {name: files.require_field(record, name, str, source) for name in (*_TEXTS, "non-existent_noun")}
    for text in given.values():
        if IMAGE_TOKEN in text:
            raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a statement, got {text!r}")
    good = [name for name, count in _votes(record, source).items() if count >= votes and name in considered]
    if not good:
        return
    made_up, ordinary = _folders(record, images, given, source)
    best = str(files.require_field(record, "best_img_id", (int, str), source))
    true, false = given["true_statement"], given["false_statement"]
    nouns = [f"There is {given[name]} in the given image." for name in ("existent_noun", "non-existent_noun")]
    context = f"Context: {given['context']}\n"
    tests = [
        ("CK", "a", "", ordinary / "0.jpg", (false, true), ""),
        ("VP", "b", "", made_up / f"{best}.jpg", nouns, ""),
        ("CB", "c", context, made_up / f"{best}.jpg", (true, false), ""),
        *(("LP", "d", "", made_up / f"{name}.jpg", (true, false), name) for name in good),
    ]
    for test, letter, before, image, statements, name in tests:
        for index, (statement, truth) in enumerate(zip(statements, (True, False), strict=True), start=1):
            key = f"{number}/{letter}{index}" + (f"/{name}" if name else "")
            question = f"{before}Statement: {statement}"
            reference = VlindReference(number, test, name, truth)
            yield Item(
                key,
                test,
                image,
                question,
                str(truth),
                source,
                reference,
                max_new_tokens=MAX_NEW_TOKENS,
                id=key,
            )


def _votes(record: Mapping[str, Any], source: str) -> dict[str, int]:
    """{id of a picture: votes}."""
    found = files.require_field(record, "aggregated_human_label_good_images", dict, source)
    return {str(name): files.require_field(found, name, int, source) for name in found}


def _folders(
    record: Mapping[str, Any], images: Path, given: Mapping[str, str], source: str
) -> tuple[Path, Path]:
    """Where the pictures of the made-up and of the ordinary context are."""
    concept = files.require_field(record, "concept", str, source)
    number = files.require_field(record, "context_id", (int, str), source)
    return tuple(
        images / kind / concept / f"{number}_{given[name]}"
        for kind, name in (("counterfactual", "context"), ("factual", "factual_context"))
    )
