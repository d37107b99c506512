"""Decide which field of an answer file is the model's answer, the question, the right answer, the split.

Files name their fields alike and mean different things by it: `text` is the question in POPE's files and the
answer in LLaVA's, `answer` is the right answer in VLMEvalKit's and the model's in POPE's. So the whole file
decides, with the questions of the benchmark where they are known; where two fields could be the answer, the
file is refused until the caller chooses.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from regaze.errors import InputError
from regaze.eval.answer_files import (
    ANSWER_FIELDS,
    IMAGE_FIELDS,
    LABEL_FIELDS,
    QUESTION_FIELDS,
    SPLIT_FIELDS,
    USUAL_NAMES,
    AnswerRow,
    is_id,
    is_run,
    unwrap,
    usual_name,
    words_of,
)
from regaze.eval.benchmarks.common.base import Item

#: those of the fields with answers that may hold the right answer in other files
_TRUTH_FIELDS = ("answer", "text", "caption")
#: those beside which a text of an unknown name may be the model's answer
_UNSURE = (*_TRUTH_FIELDS, "output", "response")
#: last words of the names of further fields that may hold the model's answer, without the plural's "s"
_ANSWER_WORDS = frozenset(
    {"answer", "ans", "pred", "prediction", "predicted", "response", "resp", "output", "out", "reply"}
    | {"generation", "generated", "completion", "hypothesis", "hyp", "result", "text", "caption", "content"}
    | {"message", "assistant", "description"}
)
#: words in the names of fields with right answers
_TRUTH_WORDS = frozenset(
    {"gt", "gold", "golden", "truth", "true", "correct", "right", "reference", "references", "ref", "label"}
    | {"labels", "target", "expected", "human", "annotated", "annotation", "annotations", "question"}
)
#: share of the rows that must agree before a field counts as the question
_MOST = 0.9


def normalise(text: str) -> str:
    """Text as it is compared: one space between words, no capitals."""
    return " ".join(text.casefold().split())


def question_field(rows: Sequence[AnswerRow], items: Sequence[Item] = (), answer_key: str = "") -> str:
    """The field with the question, "" where there is none.

    `text` is one where most rows hold a question of `items`, or, without items, end in a question mark.
    """
    for field in QUESTION_FIELDS:
        if field != answer_key and all(row.text(field) for row in rows):
            return field
    known = {normalise(item.question) for item in items}
    texts = [normalise(row.text("text")) for row in rows]
    hits = sum(text in known or (not known and _is_question(text)) for text in texts)
    return "text" if answer_key != "text" and hits >= _MOST * len(rows) else ""


def label_of(row: AnswerRow, answer_field: str) -> str:
    """The right answer according to the file; VLMEvalKit calls it "answer".

    Raises:
        InputError: it is "yes" under one name and "no" under another.
    """
    labels = {field: text.strip().lower() for field in LABEL_FIELDS if (text := row.text(field))}
    if {"yes", "no"} <= set(labels.values()):
        named = " and ".join(f"{field!r}: {label!r}" for field, label in labels.items())
        raise InputError(f"{row.source}: two right answers, {named}; leave one of them out")
    named_answer = "" if answer_field == "answer" else row.text("answer").strip().lower()
    return next(iter(labels.values()), named_answer)


def split_of(row: AnswerRow) -> str:
    """The part of the benchmark, "" where the file does not say."""
    return row.text(*SPLIT_FIELDS)


def same_label(a: str, b: str) -> bool:
    """Whether two right answers are one: "(b)", "B" and "B. on the left"; "Yes." and "yes"."""
    one, other = sorted((_words(a), _words(b)), key=len)
    is_letter = len(one) == 1 and len(one[0]) == 1
    return one == (other[:1] if is_letter else other)


def one_per_split(rows: Sequence[AnswerRow], splits: Collection[str]) -> Sequence[AnswerRow]:
    """A row for each split of "random,popular": VLMEvalKit asks a question of several splits once."""
    named = [[part.strip() for part in split_of(row).split(",")] for row in rows]
    if all(len(parts) == 1 for parts in named) or not all(set(parts) <= set(splits) for parts in named):
        return rows
    return [
        replace(row, values={**row.values, "split": split})
        for row, parts in zip(rows, named, strict=True)
        for split in parts
    ]


def choose_answer_field(
    rows: Sequence[AnswerRow], items: Sequence[Item] = (), answer_key: str | None = None
) -> str:
    """The field with the model's answers.

    Args:
        items: the question of each row, where they are known.
        answer_key: the caller's choice.

    Raises:
        InputError: no field or several could be it, or a row lacks it; names the line and `--answer-key`.
    """
    field = usual_name(answer_key, rows[0].values) if answer_key else _only_candidate(rows, items)
    for row in rows:
        if field not in row.values:
            raise InputError(
                f"{row.source}: no answer, which stands under one of {', '.join(ANSWER_FIELDS)}"
                if answer_key is None
                else f"{row.source}: no field {field!r}, which --answer-key names"
            )
        if not isinstance(unwrap(row.values[field]), str):
            raise InputError(f"{row.source}: {field!r} must be a text, got {row.values[field]!r}")
    return field


def _only_candidate(rows: Sequence[AnswerRow], items: Sequence[Item]) -> str:
    path = rows[0].source.rpartition(":")[0]
    present = [name for name in ANSWER_FIELDS if any(name in row.values for row in rows)]
    if not present:
        raise InputError(
            f"{rows[0].source}: no answer, which stands under one of {', '.join(ANSWER_FIELDS)}; "
            "--answer-key names another field"
        )
    if is_run(rows):
        return "answer"
    absent = {"resps"} if "filtered_resps" in present else set()
    absent |= {"answer"} if {"prediction", "predict"} & set(present) else set()
    questions = [name for name in present if _holds_questions(name, rows, items)]
    present = [name for name in present if name not in absent and name not in questions]
    texts = [name for name in present if all(isinstance(unwrap(r.values.get(name)), str) for r in rows)]
    candidates = texts if len(present) > 1 and texts else present
    truths = [name for name in candidates if name in _TRUTH_FIELDS and _holds_labels(name, rows, items)]
    candidates = [name for name in candidates if name not in truths]
    if {"answer", "response"} <= set(candidates) and _is_read_from("response", "answer", rows):
        candidates.remove("answer")
    if len(candidates) == 1 and candidates[0] in _UNSURE and _may_be_true(candidates[0], rows, items):
        candidates += [name for name in _further_texts(rows) if _may_answer(name)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        named = " or ".join(map(repr, candidates))
        raise InputError(f"{path}: the answers could stand under {named}; choose by --answer-key")
    further = [name for name in _further_texts(rows) if _may_answer(name) or _varies(name, rows)]
    if len(truths) == 1 and not further and not _is_question_file(truths[0], rows, items):
        return truths[0]
    if truths and further:
        raise InputError(
            f"{path}: {truths[0]!r} is the right answer in every line, and the model's could stand under "
            f"{' or '.join(map(repr, further))}; choose by --answer-key"
        )
    if truths:
        raise InputError(
            f"{path}: {truths[0]!r} is the right answer in every line, as in a file of questions; if these "
            f"are the model's answers, give --answer-key {truths[0]}"
        )
    raise InputError(
        f"{path} holds questions (under {questions[0]!r}) and no answers; --answer-key names another field"
    )


def _holds_questions(name: str, rows: Sequence[AnswerRow], items: Sequence[Item]) -> bool:
    """Whether a field repeats the questions, perhaps all with the same words after them."""
    texts = [normalise(row.text(name)) for row in rows]
    questions = [normalise(item.question) for item in items]
    if not all(questions) or not questions:
        others = [field for field in QUESTION_FIELDS if field != name]
        repeated = texts == [normalise(row.text(*others)) for row in rows] and all(texts)
        return repeated or sum(map(_is_question, texts)) >= _MOST * len(rows)
    pairs = zip(texts, questions, strict=True)
    rests = [text.replace(question, "", 1).strip() for text, question in pairs if question in text]
    alike = set(rests) == {""} or (len(set(rests)) == 1 and len(rows) > 1)
    return alike and len(rests) >= _MOST * len(rows)


def _holds_labels(name: str, rows: Sequence[AnswerRow], items: Sequence[Item]) -> bool:
    """Whether a field is the right answer, word for word, in every row."""
    labels = _labels(rows, items)
    return all(labels) and [_words(row.text(name)) for row in rows] == list(map(_words, labels))


def _is_read_from(text: str, name: str, rows: Sequence[AnswerRow]) -> bool:
    """Whether a field is the yes or no that a script found in each text, beside right answers (DASH-B's)."""
    found = [(row.text(name).lower(), row.text(text).lower()) for row in rows]
    labelled = all(row.text(*LABEL_FIELDS, "gt") for row in rows)
    return labelled and all(word in ("yes", "no") and word in whole for word, whole in found)


def _words(text: str) -> list[str]:
    """The words of a text, without the signs around them."""
    return re.findall(r"\w+", text.casefold())


def _may_be_true(name: str, rows: Sequence[AnswerRow], items: Sequence[Item]) -> bool:
    """Whether a field may hold right answers, as far as labels are known; "Yes." and "1" spell yes."""
    other = {"1": "yes", "true": "yes", "0": "no", "false": "no"}
    spelt = [re.sub(r"\W+", "", row.scalar(name)).lower() for row in rows]
    pairs = zip(spelt, _labels(rows, items), strict=True)
    return all(not label or label.lower() in (text, other.get(text)) for text, label in pairs)


def _labels(rows: Sequence[AnswerRow], items: Sequence[Item]) -> list[str]:
    """The right answer of each row, "" where it is unknown."""
    labels = [row.text(*LABEL_FIELDS) for row in rows]
    return labels if all(labels) or not items else [item.label for item in items]


def _further_texts(rows: Sequence[AnswerRow]) -> list[str]:
    """Fields with a text in every row, of names that nothing is known about and that are no ids'."""
    names = [name for name in rows[0].values if name not in USUAL_NAMES and not is_id(name)]
    return [name for name in names if all(row.text(name) for row in rows)]


def _may_answer(name: str) -> bool:
    words = words_of(name) or [""]
    last = {words[-1], words[-1].removesuffix("s")}
    return bool(last & _ANSWER_WORDS) and _TRUTH_WORDS.isdisjoint(words)


def _varies(name: str, rows: Sequence[AnswerRow]) -> bool:
    return len({row.text(name) for row in rows}) > 1


def _is_question_file(truth: str, rows: Sequence[AnswerRow], items: Sequence[Item]) -> bool:
    """Whether rows with the right answers are questions, rather than answers of a model that is always right.

    A file of questions names the images, has the right answers under one name, and spells them as labels.
    """
    named = all(row.text(*IMAGE_FIELDS) for row in rows)
    labelled = any(row.text(*LABEL_FIELDS) for row in rows)
    return named and not labelled and [row.text(truth) for row in rows] == [item.label for item in items]


def _is_question(text: str) -> bool:
    return text.endswith("?") or "? " in text


def items_from_rows(rows: Sequence[AnswerRow], answer_field: str, labels: Sequence[str]) -> tuple[Item, ...]:
    """The questions as the answer file itself describes them, for scorers that need only the label.

    Raises:
        InputError: a line without a label, or with one that is not among `labels`; a question that occurs
            twice with its id.
    """
    question, items = question_field(rows, answer_key=answer_field), list[Item]()
    first: dict[tuple[str, ...], str] = {}
    for number, row in enumerate(rows, start=1):
        label, image = label_of(row, answer_field), row.text("image", "image_path")
        if label not in labels:
            raise InputError(
                f"{row.source}: its right answer is {label!r}, expected {' or '.join(labels)}; for "
                "a file without right answers say where the questions are"
            )
        item = Item(
            row.scalar("key") or str(number),
            split_of(row) or "answers",
            Path(image) if image else None,
            row.text(question) if question else "",
            label,
            row.source,
            reference=label,
            id=next(filter(None, map(row.scalar, ("question_id", "id", "index", "doc_id"))), ""),
        )
        asked = (item.id, item.split, image, item.question)
        if item.id and first.setdefault(asked, row.source) != row.source:
            raise InputError(f"{row.source}: a second answer to {item.id!r}, after {first[asked]}")
        items.append(item)
    return tuple(items)
