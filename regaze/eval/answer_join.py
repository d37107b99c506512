"""Join the rows of an answer file to the items of a benchmark: one rule for all benchmarks.

Rows are joined by the first of these that both sides have:

key
    Items' keys, in answers.jsonl of a run.
ids
    The publisher's ids of questions or images (`Item.id`, names of images), however they are spelt.
text and image
    Where they tell the questions apart.
the same values
    A field of any name that holds exactly the items' keys, ids or images.
other fields
    A field that is called like an id (index, qid, doc.sampleId), and whose values are ids of items or count
    the items in their order, but for few mistakes (which are an error).
position
    Where there are as many rows as items; within the splits where rows name them.

Ids on both sides that do not fit each other are an error and never a reason to join by position; nor is a
field of any name that numbers the rows in another order than theirs.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regaze.errors import InputError
from regaze.eval.answer_fields import (
    label_of,
    normalise,
    one_per_split,
    question_field,
    same_label,
    split_of,
)
from regaze.eval.answer_files import IMAGE_FIELDS, USUAL_NAMES, AnswerRow, is_id, usual_name
from regaze.eval.answer_ids import (
    as_numbers,
    ascends,
    fits,
    in_order,
    is_number,
    mostly,
    numbered,
    numbers_rows,
    spelt_alike,
)
from regaze.eval.benchmarks.common.base import BaseBenchmark, Benchmark, Item
from regaze.eval.benchmarks.common.ids import image_stem, plain_id
from regaze.eval.benchmarks.common.yes_no import LABELS

_QUESTION_IDS = ("question_id", "id", "index", "doc_id")
_COUNTERS = ("doc_id", "index", "question_id", "id")
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)([?#].*)?$", re.IGNORECASE)
#: Where an image stands in a prompt: <image>, <|image_1|>, <img></img>, <|vision_start|>.
_IMAGE_MARK = re.compile(r"<\|?/?(?:image|img|vision)[\w -]*\|?>", re.IGNORECASE)
#: In fewer rows a counter may be chance; a counter under any name.
_FEWEST, _FEWEST_OF_ANY_NAME = 3, 8


@dataclass(frozen=True)
class Join:
    """Rows in the order of the items.

    Attributes:
        by: what they were joined by, such as "question_id" or "position".
        rows: one per item.
    """

    by: str
    rows: tuple[AnswerRow, ...]


def join_rows(benchmark: Benchmark, rows: Sequence[AnswerRow], answer_key: str = "") -> Join:
    """One row per item of `benchmark`.

    Args:
        answer_key: field with the answer where the caller chose it; it is not read as the question.

    Raises:
        InputError: an item without a row or with several, a row that fits no item, or whose question or label
            is another one than that of its item; names the line.
    """
    rows = one_per_split(rows, {item.split for item in benchmark.items})
    chosen = usual_name(answer_key, rows[0].values) if answer_key else ""
    question = question_field(rows, benchmark.items, chosen)
    steps: tuple[Callable[[], Join | None], ...] = (
        lambda: _by_key(benchmark, rows),
        lambda: _by_published_id(benchmark, rows),
        lambda: _by_image(benchmark, rows),
        lambda: _by_text(benchmark, rows, question),
        lambda: _by_same_values(benchmark, rows),
        lambda: _by_other_field(benchmark, rows),
    )
    join = next((found for step in steps if (found := step()) is not None), None)
    if join is None:
        join = _by_position(benchmark, rows)
    for item, row in zip(benchmark.items, join.rows, strict=True):
        _check_same_question(benchmark, item, row, question)
    if contradiction := _other_image(benchmark, join.rows):
        raise InputError(contradiction)
    return join


def _by_key(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    if not all(row.scalar("key") for row in rows):
        return None
    known = [item.key for item in benchmark.items]
    return _match("key", benchmark, known, [row.scalar("key") for row in rows], rows)


def _by_published_id(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    """By question_id or id; together with the split where one number occurs in several."""
    items = benchmark.items
    known: list[Hashable] = [plain_id(item.id) for item in items]
    given: list[Hashable]
    splits = {item.split for item in items}
    by_split = len(set(known)) < len(known) and all(split_of(row) in splits for row in rows)
    if by_split:
        known = [(item.split, plain_id(item.id)) for item in items]
    if not all(item.id for item in items) or len(set(known)) < len(known):
        return None
    parts = benchmark.id_fields if isinstance(benchmark, BaseBenchmark) else ()
    if parts:
        found = [_ids(rows, field) for field in parts]
        if any(ids is None for ids in found):
            return None
        joined = ["/".join(each) for each in zip(*(ids for ids in found if ids is not None), strict=True)]
        return _match(", ".join(parts), benchmark, known, joined, rows)
    for field in _QUESTION_IDS[:2] if by_split else _QUESTION_IDS:  # the others number the rows of all splits
        ids = _ids(rows, field)
        if ids is None:
            continue
        if numbers_rows(ids) and (field not in ("question_id", "id") or _other_image(benchmark, rows)):
            continue  # like the row's number in a table; other fields may say more
        own, ids = spelt_alike([plain_id(item.id) for item in items], ids)
        known, given = [*own], [*ids]
        if by_split:
            known = [(item.split, each) for item, each in zip(items, own, strict=True)]
            given = [(split_of(row), each) for row, each in zip(rows, ids, strict=True)]
        if field == "question_id" or mostly(given, known):
            return _match(field, benchmark, known, given, rows)
    return None


def _by_image(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    """By the image, where no two items share one."""
    items, prefix = benchmark.items, _prefix(benchmark)
    spellings = [[image_stem(item.image.name, prefix) if item.image else "" for item in items]]
    if len(set(spellings[0])) in (1, len(items)):  # with several questions about an image, ids are theirs
        spellings.append([image_stem(item.id, prefix) for item in items])
    spellings = [each for each in spellings if all(each) and len(set(each)) == len(each)]
    some = any(item.image is None for item in items)
    for field in _image_fields(rows) if spellings else ():
        ids = _ids(rows, field, prefix, some)
        if ids is None:
            continue
        known = max(spellings, key=lambda each: len(set(each) & set(ids)))
        if mostly(ids, known) or (field == "image_id" and all(item.id for item in items)):
            return _match(field, benchmark, known, ids, rows)
    return None


def _by_same_values(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    """By a field of any name that holds exactly the items' keys, their ids or the names of their images."""
    items, prefix = benchmark.items, _prefix(benchmark)
    spellings: tuple[tuple[list[str], Callable[[str], str]], ...] = (
        ([item.key for item in items], str),
        ([plain_id(item.id) for item in items], plain_id),
        (
            [image_stem(i.image.name if i.image else "", prefix) for i in items],
            lambda x: image_stem(x, prefix),
        ),
    )
    for field in _names(rows[0].values):
        values = [row.scalar(field) for row in rows]
        for known, spell in spellings:
            given = [spell(each) for each in values]
            is_counter = all(map(is_number, known)) and numbers_rows(in_order(known))
            is_telling = len(set(known)) == len(known) >= _FEWEST and not is_counter
            if is_telling and all(given) and set(given) == set(known):
                return _match(field, benchmark, known, given, rows)
    return None


def _by_other_field(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    """By a field that is called like an id, with the items' ids or their numbers from 0 or 1.

    Fields that only number the rows come last: they tell nothing that the position does not.
    """
    fields = {field: _ids(rows, field) or [] for field in _COUNTERS}
    for field in _names(rows[0].values):
        if is_id(field) and field not in fields:
            fields[field] = [plain_id(row.scalar(field)) for row in rows]
    fields = {field: ids for field, ids in fields.items() if any(ids)}
    ordered = sorted(fields.items(), key=lambda each: numbers_rows(each[1]))
    own = [plain_id(item.id) for item in benchmark.items]
    for field, ids in ordered if all(own) and len(set(own)) == len(own) else ():
        known, given = spelt_alike(own, ids)
        if fits(given, known):
            return _match(field, benchmark, known, _complete(field, given, rows), rows)
    for field, ids in ordered:
        if (join := _match_counter(field, benchmark, ids, rows)) is not None:
            return join
    for field in ("doc_id", "index"):
        if field in fields and all(map(is_number, fields[field])):
            _refuse_twice(field, fields[field], rows)
    return None


def _match_counter(
    field: str, benchmark: Benchmark, ids: list[str], rows: Sequence[AnswerRow]
) -> Join | None:
    """By ids that count the questions; None where they do not, or only with gaps and in order."""
    count, numbers = len(benchmark.items), as_numbers(ids)
    starts = [list(map(str, range(first, first + count))) for first in (0, 1)]
    known = max(starts, key=lambda each: len(set(each) & set(numbers)))
    is_chance = count < _FEWEST and field not in _COUNTERS
    if is_chance or not fits(numbers, known) or (set(numbers) != set(known) and ascends(numbers)):
        return None
    return _match(field, benchmark, known, _complete(field, numbers, rows), rows)


def _names(values: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Names of fields, and of fields of objects in them: "doc.id"."""
    for name, value in values.items():
        yield within + name
        if isinstance(value, dict):
            yield from _names(value, f"{within}{name}.")


def _image_fields(rows: Sequence[AnswerRow]) -> Iterator[str]:
    """The usual ones, and others that name the file of an image."""
    yield from IMAGE_FIELDS
    for field in _names(rows[0].values):
        if field not in IMAGE_FIELDS and all(_IMAGE_FILE.search(row.scalar(field)) for row in rows):
            yield field


def _named_images(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> tuple[list[str], list[str]]:
    """What tells the images of the items apart, and those that the rows name; none where they name none."""
    prefix = _prefix(benchmark)
    names = [image_stem(item.image.name, prefix) if item.image else "" for item in benchmark.items]
    given = (_ids(rows, field, prefix, some=True) or [] for field in _image_fields(rows))
    return names, next((each for each in given if mostly(each, names)), [])


def _other_image(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> str:
    """A message about the first row that names another item's image than that of its own item; else ""."""
    names, given = _named_images(benchmark, rows)
    for item, row, name, here in zip(benchmark.items, rows, names, given, strict=False):
        if here != name and here in names and item.image is not None:
            return f"{row.source} is about image {here!r}, but {item.key} about {item.image.name!r}"
    return ""


def _by_text(benchmark: Benchmark, rows: Sequence[AnswerRow], question: str) -> Join | None:
    """By the question, with the image and the split where rows name them; equal ones keep their order."""
    if not question:
        return None
    items = benchmark.items
    texts = _known_texts(benchmark, [row.text(question) for row in rows])
    parts: list[tuple[str, list[str], list[str]]] = [("text", [normalise(i.question) for i in items], texts)]
    names, given_names = _named_images(benchmark, rows)
    if given_names:
        parts.append(("image", names, given_names))
    if all(split_of(row) in {item.split for item in items} for row in rows):
        parts.append(("split", [item.split for item in items], [split_of(row) for row in rows]))
    known = list(zip(*(part[1] for part in parts), strict=True))
    given = list(zip(*(part[2] for part in parts), strict=True))
    if (len(set(known)) < len(known) and not given_names) or not mostly(texts, parts[0][1]):
        return None
    by = " and ".join(part[0] for part in parts)
    if given_names and (once := _answered_once(items, known, given, rows)):
        return Join(by, once)
    _refuse_more(by, known, given, rows)
    return _match(by, benchmark, numbered(known), numbered(given), rows)


def _answered_once(
    items: Sequence[Item], known: Sequence[Hashable], given: Sequence[Hashable], rows: Sequence[AnswerRow]
) -> tuple[AnswerRow, ...]:
    """A row for each item where each different question has one, whatever splits ask it; else none."""
    row_of = dict(zip(given, rows, strict=True))
    asked = {(each, item.split) for each, item in zip(known, items, strict=True)}
    if len(row_of) < len(rows) or len(asked) < len(items) or row_of.keys() != set(known):
        return ()
    return tuple(row_of[each] for each in known)


def _by_position(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join:
    if len(rows) != len(benchmark.items):
        raise InputError(f"{len(rows)} answers for {len(benchmark.items)} questions of {benchmark.name}")
    for field in _COUNTERS:
        numbers = [int(each) for each in as_numbers(_ids(rows, field) or []) if is_number(each)]
        if len(set(numbers)) == len(rows) and numbers != sorted(numbers):
            row = next(r for r, a, b in zip(rows[1:], numbers, numbers[1:], strict=False) if b < a)
            raise InputError(
                f"{row.source}: {field!r} is out of order, and {benchmark.name} has no such ids to join by; "
                "sort the file as the questions are"
            )
    _refuse_unknown_order(rows)
    return _within_splits(benchmark, rows) or Join("position", tuple(rows))


def _within_splits(benchmark: Benchmark, rows: Sequence[AnswerRow]) -> Join | None:
    """By the position within each split, where as many rows as items name each."""
    splits, named = [item.split for item in benchmark.items], list(map(split_of, rows))
    if Counter(splits) != Counter(named) or splits == named:
        return None
    of_split: dict[str, deque[AnswerRow]] = {split: deque() for split in splits}
    for split, row in zip(named, rows, strict=True):
        of_split[split].append(row)
    return Join("split and position", tuple(of_split[split].popleft() for split in splits))


def _refuse_unknown_order(rows: Sequence[AnswerRow]) -> None:
    """Raise InputError for a field of any name that numbers the rows in another order."""
    names = [] if len(rows) < _FEWEST_OF_ANY_NAME else _names(rows[0].values)
    for field in (name for name in names if name not in USUAL_NAMES):
        ids = as_numbers([plain_id(row.scalar(field)) for row in rows])
        if numbers_rows(in_order(ids)) and not ascends(ids):
            raise InputError(
                f"{rows[0].source.rpartition(':')[0]}: {field!r} numbers the rows in another order than "
                "theirs; call it 'question_id' if it numbers the questions, else leave it out"
            )


def _match(
    field: str,
    benchmark: Benchmark,
    known: Sequence[Hashable],
    ids: Sequence[Hashable],
    rows: Sequence[AnswerRow],
) -> Join:
    """Rows by id; every item has one row, and every row one item."""
    _refuse_twice(field, ids, rows)
    by_id = dict(zip(ids, rows, strict=True))
    wanted = set(known)
    for each, row in by_id.items():
        if each not in wanted:
            raise InputError(f"{row.source}: {benchmark.name} has no question {_show(each)} ({field})")
    missing = [(item, each) for item, each in zip(benchmark.items, known, strict=True) if each not in by_id]
    if missing:
        item, each = missing[0]
        of = f" of {item.source}" if item.source else ""
        raise InputError(
            f"{rows[0].source.rpartition(':')[0]}: {len(missing)} of {len(known)} questions have no answer, "
            f"the first is {_show(each)}{of} ({field})"
        )
    return Join(field, tuple(by_id[each] for each in known))


def _refuse_twice(field: str, ids: Iterable[Hashable], rows: Sequence[AnswerRow]) -> None:
    first: dict[Hashable, AnswerRow] = {}
    for each, row in zip(ids, rows, strict=True):
        if each in first:
            raise InputError(
                f"{row.source}: a second answer to {_show(each)} ({field}), after {first[each].source}"
            )
        first[each] = row


def _refuse_more(
    field: str, known: Sequence[Hashable], given: Sequence[Hashable], rows: Sequence[AnswerRow]
) -> None:
    """Raise InputError for a question that has more rows than items; unknown ones are `_match`'s."""
    left, first = Counter(known), dict(zip(reversed(given), reversed(rows), strict=True))
    for each, row in zip(given, rows, strict=True):
        if each not in left:
            continue
        if not left[each]:
            raise InputError(
                f"{row.source}: a second answer to {_show(each)} ({field}), after {first[each].source}"
            )
        left[each] -= 1


def _check_same_question(benchmark: Benchmark, item: Item, row: AnswerRow, question: str) -> None:
    asked = row.text(question) if question else ""
    words = normalise(asked)
    if words and not any(normalise(each) in words for each in _wordings(benchmark, item)):
        raise InputError(f"{row.source} answers {asked!r}, but {item.key} asks {item.question!r}")
    label = label_of(row, "prediction" if "prediction" in row.values else "answer")
    if item.label in LABELS:
        label = {"1": "yes", "0": "no", "true": "yes", "false": "no"}.get(label, label)
    right = benchmark.right_answers(item) if isinstance(benchmark, BaseBenchmark) else (item.label,)
    if label and item.label and not any(same_label(label, each) for each in right):
        raise InputError(f"{row.source}: its right answer is {label!r}, that of {item.key} {item.label!r}")


def _wordings(benchmark: Benchmark, item: Item) -> tuple[str, ...]:
    if isinstance(benchmark, BaseBenchmark):
        return benchmark.wordings(item)
    return item.question, benchmark.prompt(item)


def _ids(
    rows: Sequence[AnswerRow], field: str, prefix: str | None = None, some: bool = False
) -> list[str] | None:
    """The ids under a field; None where no row has it.

    Args:
        prefix: of names of images, where the field holds them.
        some: A row may have none: it is about no image.

    Raises:
        InputError: only some rows have it.
    """
    found = [row.scalar(field) for row in rows]
    if not any(found):
        return None
    found = found if some else _complete(field, found, rows)
    return [plain_id(each) if prefix is None else image_stem(each, prefix) for each in found]


def _complete(field: str, ids: list[str], rows: Sequence[AnswerRow]) -> list[str]:
    """The ids; raise InputError where a row has none."""
    if not all(ids):
        raise InputError(f"{rows[ids.index('')].source}: no {field!r}, which other lines have")
    return ids


def _known_texts(benchmark: Benchmark, texts: Sequence[str]) -> list[str]:
    """Each text without what its prompt adds to the question; unknown texts as they are."""
    known: dict[str, str] = {}
    for item in benchmark.items:
        own = normalise(item.question)
        known.update((normalise(each), own) for each in _wordings(benchmark, item)[1:])
    known |= {normalise(item.question): normalise(item.question) for item in benchmark.items}
    texts = [_IMAGE_MARK.sub(" ", text).strip() for text in texts]
    lines = [(normalise(text), normalise(text.split("\n")[0])) for text in texts]
    return [known.get(text, known.get(line, text)) for text, line in lines]


def _prefix(benchmark: Benchmark) -> str:
    return benchmark.image_prefix if isinstance(benchmark, BaseBenchmark) else BaseBenchmark.image_prefix


def _show(value: Hashable) -> str:
    """An id in an error message: its parts, without empty ones; of a repeated one which time it is."""
    if isinstance(value, tuple) and isinstance(value[-1], int):
        return f"{_show(value[0])} (time {value[-1]})"
    return ", ".join(repr(part) for part in value if part) if isinstance(value, tuple) else repr(value)
