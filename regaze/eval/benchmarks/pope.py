"""POPE: is there an object in the image, yes or no (Li et al., EMNLP 2023, arXiv 2305.10355).

Half of the questions name an object that is not there, drawn at random, among the popular ones, or among
those that keep company with what is there (adversarial): three splits. The two scoring rules are in `yes_no`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.base import Item
from regaze.eval.benchmarks.yes_no import LABELS, SCORERS, compare

SPLITS = ("random", "popular", "adversarial")
#: what LLaVA's protocol appends; without it models answer in sentences, which `harness` cannot read
SUFFIX = "\nAnswer the question using a single word or phrase."

#: stands for an image in the prompts of LLaVA and others: in a question it would ask for one more image
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Pope:
    """A set of POPE questions, from files in the official format.

    `files` maps a split's name to its questions file: JSON lines (or one JSON array) of objects with the keys
    `image` (file name inside `images`), `text`, `label` (yes or no) and, where given, `question_id`. `suffix`
    is appended to every question; LLaVA's protocol is "\\nAnswer the question using a single word or phrase."
    `limit` keeps the first questions of each split.

    Raises:
        InputError: a file or the folder is missing, a line is malformed (named by file and line), a question
            or the suffix holds the image token, nothing is left.
    """

    files: Mapping[str, Path]
    images: Path
    suffix: str = SUFFIX
    limit: int | None = None
    name: str = "pope"
    items: tuple[Item, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit {self.limit}: expected at least 1 question")
        if IMAGE_TOKEN in self.suffix:
            raise InputError(f"suffix {self.suffix!r}: {IMAGE_TOKEN} cannot be part of a question")
        if not self.images.is_dir():
            raise InputError(f"image folder {self.images} does not exist or is not a folder")
        items = [
            item
            for split, path in self.files.items()
            for item in load_questions(path, self.images, split)[: self.limit]
        ]
        object.__setattr__(self, "items", tuple(items))

    def prompt(self, item: Item) -> str:
        """The question followed by the suffix."""
        return item.question + self.suffix

    def score(self, answers: Mapping[str, Sequence[str]], *, seed: int) -> dict[str, Any]:
        """{split: {scorer: comparison}}, and under "all" the splits together when there are several."""
        groups = {
            split: [i for i, item in enumerate(self.items) if item.split == split] for split in self.files
        }
        if len(groups) > 1:
            groups["all"] = list(range(len(self.items)))
        return {
            split: {
                "questions": len(indices),
                "images": len({self.items[i].image for i in indices}),
                **{
                    scorer.name: compare(
                        scorer,
                        [self.items[i] for i in indices],
                        {name: [given[i] for i in indices] for name, given in answers.items()},
                        seed=seed,
                    )
                    for scorer in SCORERS
                },
            }
            for split, indices in groups.items()
        }

    def describe(self) -> dict[str, Any]:
        """Name, files with their hashes, suffix and limit."""
        files = {
            split: {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for split, path in self.files.items()
        }
        return {"name": self.name, "files": files, "suffix": self.suffix, "limit": self.limit}


def load_questions(path: Path, images: Path, split: str) -> list[Item]:
    """Read and check one questions file. Raises InputError naming the file and the line.

    Questions are known by their place in the file, as the official script joins answers to labels; ids are
    not used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"questions file {path} cannot be read: {reason}") from error
    records = _array(text, path) if text.lstrip().startswith("[") else _lines(text, path)
    items = []
    for number, (line, record) in enumerate(records, start=1):
        source = f"{path}:{line}"
        _check(record, source)
        items.append(
            Item(
                key=f"{split}/{number}",
                split=split,
                image=images / record["image"],
                question=record["text"],
                label=record["label"].lower().strip(),
                source=source,
            )
        )
    if not items:
        raise InputError(f"questions file {path} holds no questions")
    return items


def _lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, _parse(content, path, line)


def _array(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, element) of one JSON array, however it is laid out."""
    _parse(text, path, 1)  # the whole must be one array; what follows only finds where its elements begin
    decoder = json.JSONDecoder()
    line, seen, offset = 1, 0, text.index("[") + 1
    while True:
        while text[offset] in " \t\r\n,":
            offset += 1
        if text[offset] == "]":
            return
        line, seen = line + text.count("\n", seen, offset), offset
        element, offset = decoder.raw_decode(text, offset)
        yield line, element


def _parse(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise InputError(f"{path}:{line}: not valid JSON ({error.msg}, column {error.colno})") from error


def _check(record: Any, source: str) -> None:
    if not isinstance(record, dict):
        raise InputError(
            f"{source}: expected an object with image, text and label, got {type(record).__name__}"
        )
    for key in ("image", "text", "label"):
        value = record.get(key)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{source}: {key!r} must be a non-empty string, got {value!r}")
    if IMAGE_TOKEN in record["text"]:
        raise InputError(f"{source}: {IMAGE_TOKEN} cannot be part of a question, got {record['text']!r}")
    if record["label"].lower().strip() not in LABELS:
        raise InputError(f"{source}: label must be yes or no, got {record['label']!r}")
