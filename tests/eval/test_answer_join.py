"""Rows of answer files find the question that they answer, or are refused with file and line."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standins import write_pope
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval.answer_fields import choose_answer_field
from regaze.eval.answer_files import AnswerRow, read_answer_rows
from regaze.eval.answer_join import Join, join_rows
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import BaseBenchmark, Benchmark, Item
from regaze.eval.benchmarks.mme.benchmark import Mme


def rows_of(*values: dict[str, Any]) -> list[AnswerRow]:
    return [AnswerRow(f"f:{line}", each) for line, each in enumerate(values, start=1)]


def answers_of(benchmark: Benchmark, rows: list[AnswerRow]) -> tuple[str, list[str]]:
    """What the rows were joined by, and their answers in the order of the items."""
    join = join_rows(benchmark, rows)
    field = choose_answer_field(join.rows, benchmark.items)
    return join.by, [row.text(field) for row in join.rows]


@dataclass(frozen=True)
class Quiz(BaseBenchmark):
    """Questions "question 1?", "question 2?", ... with any of an item's fields."""

    items: tuple[Item, ...]
    name: str = "quiz"
    suffix: str = ""


def quiz(*fields: dict[str, Any], suffix: str = "") -> Quiz:
    def item(number: int, given: dict[str, Any]) -> Item:
        default = {"key": f"k/{number}", "split": "all", "question": f"question {number}?", "label": ""}
        return Item(**{**default, "image": None, **given})

    return Quiz(tuple(item(number, given) for number, given in enumerate(fields, start=1)), suffix=suffix)


def join_of(benchmark: Benchmark, *values: dict[str, Any]) -> tuple[str, list[int]]:
    """What the rows were joined by, and the line of each item's row."""
    join = join_rows(benchmark, rows_of(*values))
    return join.by, [int(row.source.removeprefix("f:")) for row in join.rows]


def refusal(message: str) -> Any:
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def ids_of(*ids: Any) -> Quiz:
    return quiz(*({"id": str(each)} for each in ids))


def test_ids_win_over_the_position(tmp_path):
    pope = write_pope(tmp_path)
    pope = replace(pope, items=tuple(replace(item, id=str(n)) for n, item in enumerate(pope.items, start=1)))
    expected = [f"answer {n}" for n in range(1, 6)]
    for spell in (int, str, "{:.1f}".format, "{:04d}".format):
        rows = rows_of(*({"question_id": spell(n), "answer": f"answer {n}"} for n in (1, 3, 5, 2, 4)))
        assert answers_of(pope, rows) == ("question_id", expected)
    from_zero = rows_of(*({"question_id": n - 1, "answer": f"answer {n}"} for n in (1, 3, 5, 2, 4)))
    assert answers_of(pope, from_zero) == ("question_id", expected)


def test_a_question_files_ids_are_those_of_its_items(tmp_path):
    """Answers in another order score as those in the file's."""
    pope = write_pope(tmp_path)
    order = [0, 2, 4, 1, 3]
    lines = [
        {"question_id": 100 + n, "image": item.image.name, "text": item.question, "label": item.label}
        for n, item in enumerate(pope.items)
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    answers = [{"question_id": 100 + n, "answer": f"{lines[n]['label']}."} for n in order]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, answers)))
    options = [
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--images",
        str(pope.items[0].image.parent),
        "--json",
    ]
    result = CliRunner().invoke(app, ["score", "pope", str(tmp_path / "a.jsonl"), *options])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["joined_by"] == {"plain": "question_id"}
    assert found["plain"]["figures"]["q"]["official"]["plain"]["accuracy"]["value"] == 1.0


def coco_captions(count: int = 3) -> Chair:
    """Captions of photographs that are named as COCO's."""
    captions = Chair.of_demo(count)
    items = [
        replace(
            item, key=str(100 + n), id=str(100 + n), image=Path(f"val2014/COCO_val2014_{100 + n:012d}.jpg")
        )
        for n, item in enumerate(captions.items)
    ]
    return replace(captions, items=tuple(items))


@pytest.mark.parametrize(
    "spell",
    [
        int,
        str,
        "{}.0".format,
        "COCO_val2014_{:012d}.jpg".format,
        "COCO_val2014_{:012d}".format,
        "{:012d}.jpg".format,
        "data/val2014/COCO_val2014_{:012d}.jpg".format,
        "C:\\val2014\\COCO_val2014_{:012d}.JPG".format,
    ],
)
def test_images_are_found_by_any_spelling_of_their_name(spell):
    for field in ("image_id", "image", "file_name"):
        rows = rows_of(*({field: spell(n), "caption": f"caption {n}"} for n in (102, 100, 101)))
        assert answers_of(coco_captions(), rows) == (field, ["caption 100", "caption 101", "caption 102"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((100, 101, 101), r"f:3: a second answer to '101' \(image_id\), after f:2"),
        ((100, 101), r"f: 1 of 3 questions have no answer, the first is '102'"),
        ((100, 101, 7), r"f:3: chair has no question '7'"),
        ((7, 8, 9), r"f:1: captions has no question '7'|f:1: chair has no question '7'"),
        ((100, 101, None), r"f:3: no 'image_id', which other lines have"),
    ],
)
def test_ids_that_do_not_fit_are_named(numbers, message):
    captions = replace(coco_captions(), name="chair")
    with pytest.raises(InputError, match=message):
        join_rows(captions, rows_of(*({"image_id": n, "caption": "c"} for n in numbers)))


def test_text_and_image_join_where_there_are_no_ids(tmp_path):
    pope = write_pope(tmp_path)
    order = list(range(len(pope.items)))
    random.Random(0).shuffle(order)
    rows = rows_of(
        *(
            {
                "image": f"photos/{pope.items[n].image.name}",
                "prompt": pope.prompt(pope.items[n]),
                "text": f"a {n}",
            }
            for n in order
        )
    )
    assert answers_of(pope, rows) == ("text and image", [f"a {n}" for n in range(len(order))])
    with pytest.raises(InputError, match=r"f:6: a second answer to .*\(text and image\), after f:1"):
        join_rows(pope, [*rows, replace(rows[0], source="f:6")])


def test_counters_join_in_any_order_and_out_of_order_ids_are_refused():
    captions = Chair.of_demo(3)
    rows = rows_of(*({"doc_id": n, "resps": [[f"c {n}"]]} for n in (2, 0, 1)))
    assert answers_of(captions, rows) == ("doc_id", ["c 0", "c 1", "c 2"])
    with pytest.raises(InputError, match=r"f:2: a second answer to '2' \(doc_id\), after f:1"):
        join_rows(captions, rows_of(*({"doc_id": n, "resps": "c"} for n in (2, 2, 1))))
    with pytest.raises(InputError, match="f:2: 'index' is out of order"):
        join_rows(captions, rows_of(*({"index": n, "resps": "c"} for n in (70, 55, 90))))


def test_keys_find_their_item_in_any_order(tmp_path):
    pope = write_pope(tmp_path)
    rows = rows_of(*({"key": f"random/{n}", "answer": str(n)} for n in (5, 3, 1, 2, 4)))
    assert answers_of(pope, rows) == ("key", ["1", "2", "3", "4", "5"])


def test_without_ids_and_texts_the_position_counts(tmp_path):
    pope = write_pope(tmp_path)
    rows = rows_of(*({"answer": str(n)} for n in range(5)))
    assert join_rows(pope, rows) == Join("position", tuple(rows))


# Ids ------------------------------------------------------------------------------------------------------


def test_numbers_that_occur_in_several_splits_need_the_split():
    twice = quiz(*({"id": n, "split": split} for split in ("easy", "hard") for n in "12"))
    rows = [{"question_id": n, "category": split} for n in (2, 1) for split in ("hard", "easy")]
    assert join_of(twice, *rows) == ("question_id", [4, 2, 3, 1])
    for split in ("", "other"):
        assert join_of(twice, *({**row, "category": split} for row in rows)) == ("position", [1, 2, 3, 4])
    with refusal("f:4: quiz has no question 'easy', '3' (question_id)"):
        join_of(twice, *rows[:3], {"question_id": 3, "category": "easy"})


def test_ids_from_zero_are_shifted_also_beyond_ten_and_beside_splits():
    order = [7, 0, 10, 2, 1, 3, 9, 4, 5, 8, 6]
    rows = [{"question_id": n, "split": "all"} for n in order]
    assert join_of(ids_of(*range(1, 12)), *rows) == ("question_id", [order.index(n) + 1 for n in range(11)])


def test_ids_join_only_where_every_item_has_one():
    partly = quiz({"id": "1"}, {"id": ""}, {"id": "3"})
    rows = [{"question_id": n, "prompt": f"question {n}?"} for n in (3, 1, 2)]
    assert join_of(partly, *rows) == ("text", [2, 3, 1])


def test_an_id_is_also_read_from_other_fields():
    for field in ("id", "index", "doc_id"):
        assert join_of(ids_of(70, 50, 60), *({field: n} for n in (50, 60, 70))) == (field, [3, 1, 2])


def test_ids_are_read_as_they_stand_but_for_zeros():
    folders = ids_of("a/1", "b/1", "b/2.png")
    assert join_of(folders, *({"question_id": each} for each in ("b/2.png", "a/1", "b/1"))) == (
        "question_id",
        [2, 3, 1],
    )


def test_a_question_id_must_fit_and_other_counters_may_not():
    """`question_id` is the publisher's; `id` may be a counter of the harness unless half of it is known."""
    known = ids_of(1001, 1002, 1003, 1004)
    rows = [{"prompt": f"question {n}?"} for n in (4, 3, 2, 1)]
    for line, ids in ((1, (2001, 2002, 2003, 2004)), (2, (1001, 2002, 2003, 2004))):
        given = [{**row, "id": each} for row, each in zip(rows, ids, strict=True)]
        assert join_of(known, *given) == ("text", [4, 3, 2, 1])
        with refusal(f"f:{line}: quiz has no question '200{line}' (question_id)"):
            join_of(known, *({**row, "question_id": row["id"]} for row in given))
    half = [{**row, "id": each} for row, each in zip(rows, (1001, 1002, 2003, 2004), strict=True)]
    with refusal("f:3: quiz has no question '2003' (id)"):
        join_of(known, *half)
    two_of_five = [{"id": each} for each in (1001, 1002, 2003, 2004, 2005)]
    with refusal("5 answers for 4 questions of quiz"):
        join_of(known, *two_of_five)


def test_a_question_of_several_splits_needs_one_answer():
    asked = [
        ("a", "Is there a cat?", "easy"),
        ("b", "Is there a dog?", "easy"),
        ("a", "Is there a cat?", "hard"),
    ]
    known = quiz(*({"image": Path(i), "question": q, "split": s} for i, q, s in asked))
    rows = [{"image": image, "question": question} for image, question, _ in (asked[1], asked[0])]
    assert join_of(known, *rows) == ("text and image", [2, 1, 2])
    with refusal("f: 2 of 3 questions have no answer, the first is 'is there a cat?', 'a' (text and image)"):
        join_of(known, rows[0])
    repeated = quiz(*({"image": Path(i), "question": q, "split": "easy"} for i, q, _ in asked))
    which = "'is there a cat?', 'a' (time 2)"
    with refusal(f"f: 1 of 3 questions have no answer, the first is {which} (text and image)"):
        join_of(repeated, *rows)


def test_a_missing_answer_is_named_with_the_line_of_its_question():
    known = quiz({"id": "7", "source": "q.jsonl:1"}, {"id": "8", "source": "q.jsonl:2"}, {"id": "9"})
    row = AnswerRow("C:out:1", {"question_id": 9})
    with refusal("C:out: 2 of 3 questions have no answer, the first is '7' of q.jsonl:1 (question_id)"):
        join_rows(known, [row])
    with refusal("f: 1 of 3 questions have no answer, the first is '9' (question_id)"):
        join_of(known, {"question_id": 7}, {"question_id": 8})


# Images ---------------------------------------------------------------------------------------------------


def photographs(*names: str, **fields: Any) -> Quiz:
    return quiz(*({"image": Path("photos") / name, **fields} for name in names))


@dataclass(frozen=True)
class Genome(Quiz):
    image_prefix = r"VG_"


def test_images_are_known_without_ids_and_by_the_prefix_of_their_data_set():
    coco = photographs(*(f"COCO_val2014_{n:012d}.jpg" for n in (5, 6, 7)))
    rows = [{"image": f"{n}.jpg"} for n in (7, 5, 6)]
    assert join_of(coco, *rows) == ("image", [2, 3, 1])
    assert join_of(SimpleNamespace(name="own", items=coco.items), *rows) == ("image", [2, 3, 1])
    genome = Genome(photographs("VG_05.jpg", "VG_06.jpg", "VG_07.jpg").items)
    assert join_of(genome, *rows) == ("image", [2, 3, 1])


def test_images_are_known_by_their_names_or_their_ids():
    """Whichever spelling the file uses; ids may have the prefix of the data set themselves."""
    both = quiz(*({"image": Path(f"{name}.png"), "id": n} for name, n in zip("bca", "354", strict=True)))
    assert join_of(both, *({"image": f"{name}.png"} for name in "abc")) == ("image", [2, 3, 1])
    assert join_of(both, *({"image": n} for n in (3, 4, 5))) == ("image", [1, 3, 2])
    ids = ids_of(*(f"COCO_val2014_{n:012d}" for n in (5, 6, 7)))
    assert join_of(ids, *({"image_id": n} for n in (7, 5, 6))) == ("image_id", [2, 3, 1])


def test_images_of_another_naming_are_not_joined_by():
    known = quiz(*({"image": Path(f"{n}.png"), "id": str(n)} for n in (1, 2, 3)))
    rows = [{"image": f"tmp{n}.png", "prompt": f"question {n}?"} for n in (3, 1, 2)]
    assert join_of(known, *rows) == ("text", [2, 3, 1])


# Texts ----------------------------------------------------------------------------------------------------


def test_a_question_of_any_form_is_known_by_the_benchmark():
    """`text` is the question where it is one of the benchmark's, also without a question mark."""
    orders = quiz({"question": "Describe it."}, {"question": "Count the dogs."})
    assert join_of(orders, {"text": "count the  dogs.", "label": "3"}, {"text": "Describe it."}) == (
        "text",
        [2, 1],
    )


def test_the_field_that_the_caller_chose_is_no_question():
    rows = rows_of({"question": "It is a dog."}, {"question": "It is a cat."})
    assert join_rows(quiz({}, {}), rows, "question").by == "position"
    with refusal("f:1 answers 'It is a dog.', but k/1 asks 'question 1?'"):
        join_rows(quiz({}, {}), rows)


@pytest.mark.parametrize("suffix", [" Yes or no?", "\nAnswer with one word."])
def test_a_text_may_be_the_prompt_or_begin_with_the_question(suffix):
    known = quiz({}, {"question": "Look twice.\nIs it red?"}, {}, suffix=suffix)
    prompts = [f"Look twice.\nIs it red?{suffix}", "question 3?\nBe brief.", f"question 1?{suffix}"]
    assert join_of(known, *({"prompt": each} for each in prompts)) == ("text", [3, 1, 2])
    with refusal("f:3: quiz has no question 'is it blue?' (text)"):
        join_of(known, *({"prompt": each} for each in [*prompts[:2], "Is it blue?"]))


@pytest.mark.parametrize("mark", ["<image>\n{}", "<|image_1|>{}", "{}\n<image>", "<img></img> {}"])
def test_marks_of_images_are_no_part_of_a_text(mark):
    known = quiz({}, {}, {}, suffix="\nYes or no?")
    prompts = (mark.format(f"question {n}?\nYes or no?") for n in (3, 1, 2))
    assert join_of(known, *({"prompt": each} for each in prompts)) == ("text", [2, 3, 1])


def test_texts_of_which_most_are_unknown_are_not_joined_by():
    """A template around the question: the position counts, and each row repeats its question."""
    rows = [{"prompt": f"USER: question {n}? ASSISTANT:"} for n in (1, 2, 3)]
    assert join_of(quiz({}, {}, {}), *rows) == ("position", [1, 2, 3])
    with refusal("f:1 answers 'USER: question 2? ASSISTANT:', but k/1 asks 'question 1?'"):
        join_of(quiz({}, {}, {}), *rows[1:], rows[0])


def test_equal_texts_are_told_apart_by_the_split():
    known = quiz(*({"question": "Is it?", "split": split} for split in ("easy", "hard")))
    rows = [{"prompt": "Is it?", "category": split} for split in ("hard", "easy")]
    assert join_of(known, *rows) == ("text and split", [2, 1])
    assert join_of(known, *({"prompt": "Is it?"} for _ in rows)) == ("position", [1, 2])
    with refusal("f:3: a second answer to 'is it?', 'hard' (text and split), after f:1"):
        join_of(known, *rows, rows[0])


@pytest.mark.parametrize(("kind", "name"), [(Quiz, "COCO_val2014_{:012d}.jpg"), (Genome, "VG_{}.jpg")])
def test_equal_questions_about_an_image_keep_their_order(kind, name):
    images = [Path(name.format(n)) for n in (5, 6, 5, 5)]
    known = kind(quiz(*({"question": "What is it?", "image": image} for image in images)).items)
    rows = [{"prompt": "What is it?", "image": image} for image in ("5.jpg", "5.jpg", "6.jpg", "5.jpg")]
    assert join_of(known, *rows) == ("text and image", [1, 3, 2, 4])


def test_the_line_with_one_answer_too_many_is_named_before_unknown_ones():
    rows = [{"prompt": f"question {n}?"} for n in (9, 1, 2, 1)]
    with refusal("f:4: a second answer to 'question 1?' (text), after f:2"):
        join_of(quiz({}, {}), *rows)


# Counters and the position --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("field", ["doc_id", "index", "question_id", "id"])
def test_a_counter_may_begin_at_zero_or_one(field, first):
    rows = [{field: first + n} for n in (2, 0, 1)]
    assert join_of(quiz({}, {}, {}), *rows) == (field, [2, 3, 1])


def test_what_does_not_count_the_questions_is_no_counter():
    three = quiz({}, {}, {})
    rows = [{"doc_id": f"doc {name}", "index": n} for n, name in ((2, "c"), (0, "a"), (1, "b"))]
    assert join_of(three, *rows) == ("index", [2, 3, 1])  # the next field counts them
    for numbers in ((0, 5, 9), (2, 3, 4)):
        assert join_of(three, *({"doc_id": n} for n in numbers)) == ("position", [1, 2, 3])
    assert join_of(three, *({"id": n} for n in (3, 1, 1))) == ("position", [1, 2, 3])  # perhaps of images


def test_the_same_counter_twice_is_refused():
    for field in ("doc_id", "index"):
        with refusal(f"f:3: a second answer to '5' ({field}), after f:1"):
            join_of(quiz({}, {}, {}), *({field: n} for n in (5, 4, 5)))


def test_the_first_line_out_of_order_is_named():
    with refusal(
        "f:3: 'id' is out of order, and quiz has no such ids to join by; sort the file as the questions are"
    ):
        join_of(quiz({}, {}, {}, {}), *({"id": n} for n in (50, 70, 60, 40)))


def test_as_many_answers_as_questions_are_expected():
    with refusal("1 answers for 2 questions of quiz"):
        join_of(quiz({}, {}), {"answer": "Yes"})


# What a row repeats of its question -----------------------------------------------------------------------


def test_a_row_with_another_question_or_label_is_refused():
    known = quiz({"label": "Yes "}, {"label": "no"})
    rows = [{"key": "k/2", "prompt": "question 2?", "label": "NO"}, {"key": "k/1", "prompt": "question 1?"}]
    assert join_of(known, *rows) == ("key", [2, 1])
    with refusal("f:1 answers 'question 2?', but k/1 asks 'question 1?'"):
        join_of(known, {**rows[0], "key": "k/1"}, {**rows[1], "key": "k/2"})
    with refusal("f:1: its right answer is 'maybe', that of k/2 'no'"):
        join_of(known, {**rows[0], "label": "Maybe"}, rows[1])


def test_beside_a_prediction_the_answer_is_the_label():
    known = quiz({"label": "yes"}, {"label": "no"})
    assert join_of(known, {"answer": "no"}, {"answer": "yes"}) == ("position", [1, 2])
    with refusal("f:1: its right answer is 'no', that of k/1 'yes'"):
        join_of(known, {"prediction": "yes", "answer": "no"}, {"prediction": "no", "answer": "no"})


# Other names and spellings ------------------------------------------------------------------------------


def read_as_file(folder: Path, *values: dict[str, Any]) -> list[AnswerRow]:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, values)))
    return read_answer_rows(path)


@pytest.mark.parametrize(
    "spell",
    [int, str, float, lambda n: f"{n}.0", lambda n: f"00{n}", lambda n: [n]],
    ids=["number", "text", "float", "text of a float", "zeros", "list"],
)
@pytest.mark.parametrize(
    "name",
    [
        "question_id",
        "questionId",
        "Question-ID",
        "ID",
        "id",
        "qid",
        "q_id",
        "sample_id",
        "idx",
        "uid",
        "Index",
        "nr.",
        "#",
    ],
)
def test_ids_are_found_under_any_name_and_in_any_spelling(tmp_path, name, spell):
    rows = read_as_file(tmp_path, *({name: spell(n), "answer": str(n)} for n in (2, 4, 1, 3)))
    by, answers = answers_of(ids_of(1, 2, 3, 4), rows)
    assert answers == ["1", "2", "3", "4"]
    assert by != "position"


@pytest.mark.parametrize("first", [0, 1])
def test_a_counter_is_found_under_another_name_and_in_an_object(first):
    benchmark = quiz({}, {}, {}, {})
    order = [2, 4, 1, 3]
    for name in ("sampleId", "line", "record_uuid"):
        rows = ({name: n - 1 + first} for n in order)
        assert join_of(benchmark, *rows) == (name, [3, 1, 4, 2])
    rows = ({"doc": {"text": "x", "idx": n - 1 + first}} for n in order)
    assert join_of(benchmark, *rows) == ("doc.idx", [3, 1, 4, 2])


def test_numbers_that_are_no_ids_order_nothing():
    """A field of another name may well count up to the number of rows, and an id need not count them."""
    four, in_order = quiz({}, {}, {}, {}), ("position", [1, 2, 3, 4])
    for name in ("rank", "tokens", "grid", "video"):
        assert join_of(four, *({name: n} for n in (2, 4, 1, 3))) == in_order
    for values in (("x", "y", "a", "b"), (10, 20, 5, 7), (1, 2, 4, 5), (0, 1, 0, 1)):
        assert join_of(four, *({"sample_id": n} for n in values)) == in_order
    assert join_of(quiz({}, {}), {"sample_id": 1}, {"sample_id": 0}) == ("position", [1, 2])  # perhaps chance


@pytest.mark.parametrize("known", [quiz({}, {}, {}, {}), ids_of(1, 2, 3, 4)], ids=["counters", "ids"])
@pytest.mark.parametrize("name", ["sample_id", "doc.idx"])
def test_a_mistake_in_ids_under_any_name_is_refused(name, known):
    def rows(*numbers: Any) -> list[dict[str, Any]]:
        outer, _, inner = name.partition(".")
        return [{outer: {inner: n} if inner else n} for n in numbers]

    with refusal(f"f:4: a second answer to '1' ({name}), after f:3"):
        join_of(known, *rows(2, 4, 1, 1))
    with refusal(f"f:4: quiz has no question '9' ({name})"):
        join_of(known, *rows(2, 4, 1, 9))
    with refusal(f"f: 1 of 4 questions have no answer, the first is '3' ({name})"):
        join_of(known, *rows(2, 4, 1))
    with refusal(f"f:4: no {name!r}, which other lines have"):
        join_of(known, *rows(2, 4, 1, None))


@pytest.mark.parametrize("field", ["question_id", "id", "doc_id", "index", "sample"])
@pytest.mark.parametrize("spell", ["q{}", "pope-{:03d}", "random/{}.png"])
def test_words_around_the_number_of_an_id_are_no_part_of_it(field, spell):
    order = [2, 4, 1, 3]
    for known in (quiz({}, {}, {}, {}), ids_of(1, 2, 3, 4)):
        assert join_of(known, *({field: spell.format(n)} for n in order)) == (field, [3, 1, 4, 2])
    named = ids_of(*map(spell.format, (1, 2, 3, 4)))
    assert join_of(named, *({field: n} for n in order)) == (field, [3, 1, 4, 2])
    other = ids_of(*(f"other_{n}" for n in (1, 2, 3, 4)))
    with refusal(f"f:1: quiz has no question {spell.format(2)!r} (question_id)"):
        join_of(other, *({"question_id": spell.format(n)} for n in order))


@pytest.mark.parametrize("counter", ["index", "doc_id", "Unnamed: 0", "", "row", "line"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_number_of_a_row_hides_no_id(counter, first):
    """A table that was written in another order has both."""
    order = [2, 4, 1, 3]
    rows = [{counter: place, "sample_id": n} for place, n in enumerate(order, start=first)]
    for known in (quiz({}, {}, {}, {}), ids_of(1, 2, 3, 4)):
        assert join_of(known, *rows) == ("sample_id", [3, 1, 4, 2])
    assert join_of(quiz({}, {}, {}, {}), *({counter: row[counter]} for row in rows))[1] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["photo", "ident", "clip.name"])
def test_values_that_are_exactly_those_of_the_items_join_under_any_name(name):
    def rows(*values: Any) -> list[dict[str, Any]]:
        outer, _, inner = name.partition(".")
        return [{outer: {inner: value} if inner else value} for value in values]

    coco = photographs(*(f"COCO_val2014_{n:012d}.jpg" for n in (42, 139, 724)))
    for spell in (
        int,
        str,
        "COCO_val2014_{:012d}".format,
        "http://host/COCO_val2014_{:012d}.jpg?raw=1".format,
    ):
        assert join_of(coco, *rows(*map(spell, (724, 42, 139)))) == (name, [2, 3, 1])
    assert join_of(quiz({}, {}, {}), *rows("k/2", "k/3", "k/1")) == (name, [3, 1, 2])
    assert join_of(ids_of(7, 9, 8), *rows(9, "07", 8.0)) == (name, [2, 1, 3])
    assert join_of(ids_of(7, 9, 8), *rows(9, 7, 6)) == ("position", [1, 2, 3])


def test_another_order_of_the_rows_under_any_name_is_refused():
    order = [2, 4, 1, 3, 8, 7, 6, 5]
    eight = quiz(*({} for _ in order))
    with refusal(
        "f: 'zahl' numbers the rows in another order than theirs; call it 'question_id' if it numbers the "
        "questions, else leave it out"
    ):
        join_of(eight, *({"zahl": n} for n in order))
    assert join_of(eight, *({"zahl": n} for n in sorted(order)))[0] == "position"
    assert join_of(eight, *({"tokens": n % 7} for n in order))[0] == "position"


def test_an_id_under_another_name_may_be_any_text():
    assert join_of(ids_of("a", "b"), {"sample_id": "b"}, {"sample_id": "a"}) == ("sample_id", [2, 1])
    assert join_of(ids_of("a", "b"), {"sample_id": "b"}, {"sample_id": "x"}) == ("position", [1, 2])


@pytest.mark.parametrize("name", ["image", "img", "image_source", "coco_url", "meta.file"])
def test_ids_of_questions_are_no_names_of_images(name):
    """Images 1 and 2, about which there are the questions 1 to 4."""
    pairs = [(image, number) for number, image in enumerate((1, 1, 2, 2), start=1)]
    benchmark = quiz(*({"image": Path(f"{image}.png"), "id": str(number)} for image, number in pairs))
    outer, _, inner = name.partition(".")
    rows = []
    for image, number in reversed(pairs):
        place = f"http://host/x/{image}.png"
        rows.append({"prompt": f"question {number}?", outer: {inner: place} if inner else place})
    assert join_of(benchmark, *rows) == ("text and image", [4, 3, 2, 1])


def test_ids_of_several_fields_join_only_together():
    class Parts(Quiz):
        id_fields = ("set_id", "question_id")

    benchmark = Parts(quiz({"id": "0/1"}, {"id": "0/2"}, {"id": "1/1"}).items)
    rows = [{"set_id": s, "question_id": q} for s, q in ((1, "01"), ("0", 2.0), (0, 1))]
    assert join_of(benchmark, *rows) == ("set_id, question_id", [3, 2, 1])
    with refusal("f:2: quiz has no question '1/7' (set_id, question_id)"):
        join_of(benchmark, rows[0], {"set_id": 1, "question_id": 7}, rows[2])
    # Of one part alone nothing follows.
    assert join_of(benchmark, *({"set_id": n} for n in (5, 5, 5))) == ("position", [1, 2, 3])


def test_labels_of_yes_and_no_may_be_numbers():
    benchmark = quiz({"label": "yes"}, {"label": "no"})
    for one, zero in ((1, 0), ("1", "0"), ("True", "False")):
        rows = [{"gt_answer": str(one)}, {"gt_answer": str(zero)}]
        assert join_of(benchmark, *rows) == ("position", [1, 2])
        with refusal("f:1: its right answer is 'no', that of k/1 'yes'"):
            join_of(benchmark, *rows[::-1])


def shown(*images: str, **more: Any) -> Quiz:
    """A question about each image; the same words for all."""
    return quiz(*({"image": Path(each), "question": "Is it red?", **more} for each in images))


IMAGES = ("a/COCO_val2014_000000000042.jpg", "a/b.png", "a/b.png", "a/c.png")


def test_a_prompt_may_have_lost_a_part_of_the_question():
    """As MME's with LLaVA's suffix in the place of the question's own ending."""
    benchmark = Mme.of_demo(limit=2, tasks=("existence",))
    prompts = [benchmark.prompt(item) for item in benchmark.items]
    assert not any(item.question in prompt for item, prompt in zip(benchmark.items, prompts, strict=True))
    keys = [item.key for item in benchmark.items]
    rows = [{"key": key, "prompt": each, "answer": "yes"} for key, each in zip(keys, prompts, strict=True)]
    assert join_of(benchmark, *reversed(rows)) == ("key", [2, 1])
    with pytest.raises(InputError, match=f"^f:1 answers .*, but {keys[0]} asks"):
        join_of(benchmark, {**rows[0], "prompt": prompts[1]}, rows[1])


def test_an_image_that_contradicts_the_position_is_refused():
    """Names of images do not tell these questions apart, but they tell that rows are in another order."""
    benchmark = shown(*IMAGES)
    assert join_of(benchmark, *({"image": each, "answer": "yes"} for each in ("42.jpg", "b", "b", "c"))) == (
        "position",
        [1, 2, 3, 4],
    )
    for field, names in (
        ("image", ("b", "42", "b", "c")),
        ("img_path", ("42.jpg", "b.jpg", "c.jpg", "b.jpg")),
    ):
        rows = rows_of(*({field: each, "answer": "yes"} for each in names))
        with pytest.raises(InputError, match=r"f:[13] is about image '(b|c)', but k/[13] about '.*'"):
            join_rows(benchmark, rows)


def test_an_image_that_contradicts_an_id_is_refused():
    benchmark = quiz(*({"image": Path(each), "id": str(n)} for n, each in enumerate(IMAGES, start=1)))
    names = {1: "b", 2: "42", 3: "b", 4: "c"}
    rows = rows_of(*({"question_id": n, "image": names[n], "answer": ""} for n in (3, 1, 4, 2)))
    with refusal("f:2 is about image 'b', but k/1 about 'COCO_val2014_000000000042.jpg'"):
        join_rows(benchmark, rows)


@pytest.mark.parametrize("field", ["question_id", "id", "index"])
def test_the_image_wins_over_numbers_of_rows(field):
    """Numbers of rows that happen to be ids, too, beside images in another order."""
    benchmark = quiz(*({"image": Path(f"scene_{n:03d}.webp"), "id": str(n)} for n in range(4)))
    order = (2, 0, 3, 1)
    rows = [{field: row, "image_id": n, "caption": ""} for row, n in enumerate(order)]
    assert join_of(of_scenes(benchmark), *rows) == ("image_id", [2, 4, 1, 3])


def of_scenes(benchmark: Quiz) -> Quiz:
    @dataclass(frozen=True)
    class Scenes(Quiz):
        image_prefix = "scene_"

    return Scenes(benchmark.items)
