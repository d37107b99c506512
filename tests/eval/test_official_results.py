"""Result files of every benchmark in their official layouts find their questions, in any order.

Each layout is scored as the answers themselves are: in the file's order, with its rows shuffled, and with a
row missing or twice, which is an error that names it.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from regaze.cli import app
from regaze.errors import InputError
from regaze.eval import benchmarks
from regaze.eval.answer_fields import choose_answer_field, label_of
from regaze.eval.answer_files import read_answer_rows
from regaze.eval.answer_join import join_rows
from regaze.eval.benchmarks.common.base import Item
from regaze.eval.benchmarks.pope.benchmark import Pope

SUFFIX = "\nAnswer the question using a single word or phrase."
COCO = ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000139.jpg")


class Judge:
    """Rates an answer by its length."""

    name = "length"

    def judge(self, prompts: Sequence[str]) -> list[str]:
        return [f"Rating: {len(each) % 7}\nRelevancy: {len(each) % 11} Accuracy: 1" for each in prompts]


def lines(records: Sequence[Any]) -> str:
    return "\n".join(map(json.dumps, records))


# Small benchmarks, as their publishers' files have them ---------------------------------------------------


def pope(folder: Path, splits: Sequence[str] = ("random", "popular", "adversarial")) -> Any:
    for split, objects in (("random", "dog cat"), ("popular", "dog car"), ("adversarial", "dog bus")):
        questions = [
            {"image": image, "text": f"Is there a {thing} in the image?", "label": label}
            for image in COCO
            for thing, label in zip(objects.split(), ("yes", "no"), strict=True)
        ]
        numbered = [{"question_id": n, **each} for n, each in enumerate(questions, start=1)]
        (folder / f"coco_pope_{split}.json").write_text(lines(numbered))
    return benchmarks.load_class("pope").load(folder, folder, splits=splits)


def pope_split(folder: Path) -> Any:
    return pope(folder, ("random",))


def mme(folder: Path) -> Any:
    for task in ("existence", "count"):
        rows = [
            f"{image}.jpg\tIs there one {thing}?  Please answer yes or no.\t{label}"
            for image in ("000000000042", "b")
            for thing, label in ((f"{task} dog", "Yes"), (f"{task} cat", "No"))
        ]
        (folder / f"{task}.txt").write_text("\n".join(rows))
    return benchmarks.load_class("mme").load(folder, tasks=("existence", "count"))


def hallusionbench(folder: Path) -> Any:
    records = [
        {
            "category": "VS",
            "subcategory": kind,
            "set_id": "0",
            "figure_id": str(figure),
            "question_id": "0",
            "visual_input": str(min(figure, 2)),
            "question": "Is A larger?",
            "filename": f"./{kind}/0_{figure}.png" if figure else None,
            "gt_answer": str(figure % 2),
            "gt_answer_details": "It is." if figure % 2 else "It is not.",
        }
        for kind in ("chart", "map")
        for figure in (0, 1, 2, 3)
    ]
    (folder / "HallusionBench.json").write_text(json.dumps(records))
    return benchmarks.load_class("hallusionbench").load(folder)


def amber(folder: Path) -> Any:
    kinds = ["discriminative-hallucination", "discriminative-relation"] * 2
    queries = [{"id": n, "image": f"AMBER_{n % 2}.jpg", "query": f"Is there a {n}?"} for n in range(1, 5)]
    truths = [{"id": n, "type": kind, "truth": "no"} for n, kind in enumerate(kinds, start=1)]
    (folder / "query_all.json").write_text(json.dumps(queries))
    (folder / "annotations.json").write_text(json.dumps(truths))
    return benchmarks.load_class("amber").load(folder, task="d")


def mmhal(folder: Path) -> Any:
    records = [
        {
            "question_type": kind,
            "question_topic": "outdoor",
            "image_id": f"df62a56fdc1bb1{n}",
            "image_src": f"https://host/{n}_o.jpg",
            "image_content": ["Door"],
            "question": "What colour is it?",
            "gt_answer": f"It is {n}.",
            "model_answer": "",
        }
        for n, kind in enumerate(("attribute", "adversarial", "counting"))
    ]
    (folder / "response_template.json").write_text(json.dumps(records))
    return benchmarks.load_class("mmhal").load(folder, judge=Judge())


def mmvp(folder: Path) -> Any:
    rows = ["Index,Question,Options,Correct Answer"]
    rows += [f"{n},Where is {n // 3}?,(a) left (b) right,({'ab'[n % 2]})" for n in range(1, 5)]
    rows += ["99,Where?,(a) left (b) right,(a)", "100,Where?,(a) left (b) right,(b)"]
    (folder / "Questions.csv").write_text("\n".join(rows))
    return benchmarks.load_class("mmvp").load(folder)


def gavie(folder: Path) -> Any:
    records = [
        {"image_id": image, "question": question}
        for image, question in (("2356371", "What?"), ("2356371", "Where?"), ("9", "What?"))
    ]
    regions = {each: [{"caption": "a cat", "bbox": [1, 2, 3, 4]}] for each in ("2356371", "9")}
    (folder / "evaluation_set.json").write_text(json.dumps(records))
    (folder / "vg_annotation.json").write_text(json.dumps(regions))
    return benchmarks.load_class("gavie").load(folder, judge=Judge())


def beaf(folder: Path) -> Any:
    return benchmarks.load_class("beaf").of_demo(limit=4)


def crpe(folder: Path) -> Any:
    return benchmarks.load_class("crpe").of_demo(limit=1)


def mmstar(folder: Path) -> Any:
    return benchmarks.load_class("mmstar").of_demo(limit=6, likelihood=False)


def repope(folder: Path) -> Any:
    """The demo's, whose labels differ from POPE's here and there."""
    whole = benchmarks.load_class("repope").of_demo()
    chosen = [item for item in whole.items if item.reference.repope != item.reference.pope][:6]
    assert {item.reference.repope for item in chosen} > {None}
    return replace(whole, items=(*whole.items[:4], *(item for item in chosen if item not in whole.items[:4])))


def dash_b(folder: Path) -> Any:
    for kind, ending in (("neg", "png"), ("pos", "jpg")):
        names = {"coco": {"bus": [f"1.{ending}", f"88.{ending}"], "cup": [f"88.{ending}", f"9.{ending}"]}}
        (folder / f"dash_benchmark_{kind}.json").write_text(json.dumps(names))
    return benchmarks.load_class("dash-b").load(folder)


def r_bench(folder: Path) -> Any:
    records = [
        {"question_id": n, "image": f"{n // 2:016x}.jpg", "text": f"Is there a {n}?", "label": "yes"}
        for n in range(6)
    ]
    (folder / "image-level_filterd.json").write_text(json.dumps(records))
    return benchmarks.load_class("r-bench").load(folder, splits=("image",))


def phd(folder: Path) -> Any:
    """Two photographs in three modes, and a made picture."""
    photograph = {"task": "object", "hitem": "dog", "gt": "cat", "subject": "animal"}
    asked = {"yes_question": "Is there a cat?", "no_question": "Is there a dog?"}
    contexts = {"iac": "A dog runs.", "icc": "A cat sits."}
    made = {"ccs_description": "A blue sun.", "image_id": "7.png", "task": "attribute", **asked}
    records = [{**photograph, **asked, "image_id": str(n), "context": contexts} for n in (42, 139)]
    (folder / "data.json").write_text(json.dumps([*records, made]))
    return benchmarks.load_class("phd").load(folder)


# Their layouts of answers ---------------------------------------------------------------------------------

#: An item, its number, and the answer -> a record of the file.
Layout = Callable[[Item, int, str], dict[str, Any]]
YES_NO = ("Yes.", "No, there is not.", "no", "yes", "Yes", "It is.")


def _jsonl(records: Sequence[Mapping[str, Any]]) -> str:
    return lines(records)


def _array(records: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(records, indent=1)


def _columns(records: Sequence[Mapping[str, Any]]) -> str:
    """As pandas writes a table, unless it is told otherwise."""
    return json.dumps({name: {str(n): each[name] for n, each in enumerate(records)} for name in records[0]})


def _workbook(records: Sequence[Mapping[str, Any]]) -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book, out = openpyxl.Workbook(), io.BytesIO()
    for row in (list(records[0]), *(list(each.values()) for each in records)):
        book.active.append(row)
    book.save(out)
    return out.getvalue()


def _tsv(records: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter="\t")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


@dataclass(frozen=True)
class Case:
    """A layout of answers to a benchmark.

    Attributes:
        name: of the file.
        record: of an answer.
        write: the file's content, of all records.
        by: what the rows are joined by in any order; "" where there is nothing but the order.
    """

    make: Callable[[Path], Any]
    name: str
    record: Layout
    by: str
    write: Callable[[Sequence[Mapping[str, Any]]], str | bytes] = _jsonl
    answers: Sequence[str] = YES_NO


def _hallusion(item: Item, number: int, answer: str) -> dict[str, Any]:
    names = ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input")
    return {
        **dict(zip(names, item.id.split("/"), strict=True)),
        "question": item.question,
        "gt_answer": str(int(item.label == "yes")),
        "filename": item.image and item.image.name,
    }


def _vlmevalkit(item: Item, number: int, answer: str) -> dict[str, Any]:
    return {
        "index": number,
        "question": item.question,
        "answer": item.label,
        "category": item.split,
        "image_path": f"{item.image.name}" if item.image else "",
        "prediction": answer,
    }


def _lmms_eval(metric: str, **of_question: Callable[[Item], Any]) -> Layout:
    def record(item: Item, number: int, answer: str) -> dict[str, Any]:
        known = {name: get(item) for name, get in of_question.items()}
        return {
            "doc_id": number,
            "target": item.label,
            "resps": [[answer]],
            "filtered_resps": [answer],
            "input": item.question.removesuffix("Please answer yes or no.").strip() + SUFFIX,
            metric: {**known, "score": 1.0, "prediction": answer.lower(), "ground_truth": item.label},
        }

    return record


def _by_id(item: Item, number: int, answer: str) -> dict[str, Any]:
    return {"split": item.split, "id": item.id, "answer": answer}


def _pope(item: Item, number: int, answer: str) -> dict[str, Any]:
    image = item.image.name if item.image else ""
    return {"query": item.question, "image": image, "category": item.split, "ans": answer}


def _rows_alone(records: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([each["row"] for each in records])


def _map(records: Sequence[Mapping[str, Any]]) -> str:
    """{id: text}, which may have an id twice here."""
    pairs = [f"{json.dumps(each['id'])}: {json.dumps(each['answer'])}" for each in records]
    return "{" + ", ".join(pairs) + "}"


def _maps(records: Sequence[Mapping[str, Any]]) -> str:
    """{split: {id: text}}."""
    parts = {each["split"]: [r for r in records if r["split"] == each["split"]] for each in records}
    return "{" + ", ".join(f"{json.dumps(split)}: {_map(part)}" for split, part in parts.items()) + "}"


TEXT = "text and image and split"
CASES: dict[str, Case] = {
    "POPE": Case(pope_split, "a.json", lambda i, n, a: {"question": i.question, "answer": a}, ""),
    "POPE, LLaVA": Case(
        pope,
        "llava-v1.5-7b.jsonl",
        lambda i, n, a: {
            "question_id": n,
            "prompt": i.question + SUFFIX,
            "text": a,
            "answer_id": f"x{n}",
            "model_id": "llava-v1.5-7b",
            "metadata": {},
        },
        "question_id",
    ),
    "POPE, VCD": Case(
        pope_split,
        "answers.jsonl",
        lambda i, n, a: {
            "question_id": int(i.id),
            "prompt": i.question,
            "text": a,
            "model_id": "llava",
            "image": i.image.name,
            "metadata": {},
        },
        "question_id",
    ),
    "POPE, OPERA": Case(
        pope_split,
        "ours.jsonl",
        lambda i, n, a: {"query": i.question, "label": i.label, "ans": a, "image": f"val2014/{i.image.name}"},
        "text and image",
    ),
    "POPE, PAI": Case(
        pope_split,
        "pai.jsonl",
        lambda i, n, a: {
            "query": i.question,
            "label": int(i.label == "yes"),
            "ans": a,
            "question": i.question,
        },
        "",
    ),
    "POPE, by split": Case(pope, "r.json", _by_id, "question_id", _maps),
    "POPE, map": Case(pope_split, "r.json", _by_id, "question_id", _map),
    "POPE, VLMEvalKit's table": Case(pope, "m_POPE.tsv", _vlmevalkit, TEXT, _tsv),
    "POPE, VLMEvalKit's workbook": Case(pope, "m_POPE.xlsx", _vlmevalkit, TEXT, _workbook),
    "POPE, VLMEvalKit's records": Case(pope, "m_POPE.json", _vlmevalkit, TEXT, _array),
    "POPE, VLMEvalKit's columns": Case(pope, "m_POPE.json", _vlmevalkit, TEXT, _columns),
    "POPE, lmms-eval": Case(
        pope,
        "d_samples_pope.jsonl",
        _lmms_eval("pope_accuracy", question_id=lambda i: i.id, category=lambda i: i.split),
        "question_id",
    ),
    "MME, lmms-eval": Case(
        mme,
        "d_samples_mme.jsonl",
        _lmms_eval(
            "mme_perception_score",
            question_id=lambda i: f"{i.split}/{i.image.name}",
            category=lambda i: i.split,
        ),
        TEXT,
    ),
    "MME, VLMEvalKit": Case(mme, "m_MME.xlsx", _vlmevalkit, TEXT, _workbook),
    "MME": Case(
        mme,
        "answers.txt",
        lambda i, n, a: {"row": f"{i.image.name}\t{i.question}\t{i.label.title()}\t{a}"},
        "text and image",
        lambda records: "\n".join(each["row"] for each in records),
    ),
    "HallusionBench": Case(
        hallusionbench,
        "HallusionBench_result.json",
        lambda i, n, a: {**_hallusion(i, n, a), "model_prediction": a},
        "category, subcategory, set_id, figure_id, question_id, visual_input",
        _array,
    ),
    "HallusionBench, lmms-eval": Case(
        hallusionbench,
        "d_samples_hallusion_bench_image.jsonl",
        lambda i, n, a: {
            "doc_id": n,
            "target": str(int(i.label == "yes")),
            "filtered_resps": [a],
            "input": i.question,
            "aAcc": {**_hallusion(i, n, a), "model_prediction": a},
        },
        "category, subcategory, set_id, figure_id, question_id, visual_input",
    ),
    "AMBER": Case(amber, "a.json", lambda i, n, a: {"id": int(i.id), "response": a}, "id", _array),
    "MMHal": Case(
        mmhal,
        "response.json",
        lambda i, n, a: {
            **{key: i.reference[key] for key in ("question_type", "question_topic", "image_content")},
            "image_id": i.image.stem,
            "image_src": f"https://host/{n}_o.jpg",
            "question": i.question,
            "gt_answer": i.label,
            "model_answer": a,
        },
        "image_id",
        _array,
        ("It is blue.", "Red", "It is 2 of them."),
    ),
    "MMVP": Case(
        mmvp,
        "answers.jsonl",
        lambda i, n, a: {
            "question_id": int(i.id),
            "prompt": i.question,
            "answer": i.label,
            "response": a,
            "answer_id": f"x{n}",
            "model_id": "llava",
        },
        "question_id",
        answers=("(a)", "B", "(b) right", "left", "a"),
    ),
    "MMVP, VLMEvalKit": Case(
        mmvp,
        "m_MMVP.tsv",
        lambda i, n, a: {
            "index": int(i.id),
            "question": i.question.split(" (a)")[0],
            "A": "left",
            "B": "right",
            "answer": i.label.strip("()").upper(),
            "prediction": a,
        },
        "index",
        _tsv,
        ("(a)", "B", "(b) right", "left", "a"),
    ),
    "BEAF": Case(beaf, "answer_gpt4o.json", lambda i, n, a: {"id": int(i.id), "answer": a}, "id", _array),
    "CRPE, LLaVA": Case(
        crpe,
        "merge.jsonl",
        lambda i, n, a: {"question_id": int(i.id), "prompt": i.question, "text": a, "answer_id": f"x{n}"},
        "question_id",
        answers=("A", "B. A cat", "C"),
    ),
    "MMStar": Case(
        mmstar,
        "m_MMStar.xlsx",
        lambda i, n, a: {**_vlmevalkit(i, n, a), "index": int(i.id), "category": "math", "image_path": ""},
        "text",
        _workbook,
        ("A", "B. A cat", "C"),
    ),
    "MMStar, map": Case(mmstar, "p.json", _by_id, "question_id", _map, ("A", "B", "C")),
    "RePOPE, labels of POPE": Case(
        repope, "a.jsonl", lambda i, n, a: {**_pope(i, n, a), "label": i.reference.pope}, TEXT
    ),
    "RePOPE, its own labels": Case(
        repope,
        "a.jsonl",
        lambda i, n, a: {**_pope(i, n, a), "label": i.reference.repope or i.reference.pope},
        TEXT,
    ),
    "DASH-B": Case(
        dash_b, "answers.json", lambda i, n, a: {"row": [*i.id.split("/"), a]}, "question_id", _rows_alone
    ),
    "R-Bench": Case(r_bench, "a.jsonl", lambda i, n, a: {"question_id": int(i.id), "text": a}, "question_id"),
    "GAVIE": Case(
        gavie,
        "answers.json",
        lambda i, n, a: {"image_id": i.image.stem, "question": i.question, "answer": a},
        "text and image",
        _array,
        ("A cat.", "On the table", "A dog and a cat"),
    ),
}


def answers_to(benchmark: Any, answers: Sequence[str]) -> list[str]:
    """An answer per item."""
    return [answers[n % len(answers)] for n in range(len(benchmark.items))]


def read(benchmark: Any, path: Path) -> tuple[str, list[str]]:
    """What the rows of a file are joined by, and the answers in the order of the items."""
    join = join_rows(benchmark, read_answer_rows(path))
    field = choose_answer_field(join.rows, benchmark.items)
    return join.by, [row.text(field) for row in join.rows]


def as_text(figures: Any) -> str:
    """For comparisons: figures may be nan, which equals nothing."""
    return json.dumps(figures, sort_keys=True, default=str)


@pytest.mark.parametrize("name", CASES)
def test_layout(tmp_path, name):
    case = CASES[name]
    benchmark = case.make(tmp_path)
    given = answers_to(benchmark, case.answers)
    figures = as_text(benchmark.score({"plain": given}, seed=0))
    records = [case.record(i, n, a) for n, (i, a) in enumerate(zip(benchmark.items, given, strict=True))]
    path, count = tmp_path / case.name, len(records)

    def write(order: Sequence[int]) -> None:
        content = case.write([records[n] for n in order])
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

    write(range(count))
    by, found = read(benchmark, path)
    assert (found, as_text(benchmark.score({"plain": found}, seed=0))) == (given, figures)
    assert by == (case.by or "position")
    write(random.Random(3).sample(range(count), count))
    if case.by:
        assert read(benchmark, path)[1] == given
    else:  # nothing but the order and the questions
        with pytest.raises(InputError, match=r" answers '.*', but .* asks '"):
            read(benchmark, path)
    write(range(count - 1))
    with pytest.raises(InputError, match=r"of \d+ questions have no answer, the first is|\d+ answers for"):
        read(benchmark, path)
    write([*range(count), 1])
    with pytest.raises(InputError, match=r"a second answer to .*, after|\d+ answers for|occurs twice"):
        read(benchmark, path)


def test_texts_in_order_are_put_to_the_questions_of_their_split(tmp_path):
    """{split: [text, ...]}, and pairs of texts: the splits may come in any order."""
    benchmark = pope(tmp_path)
    given = answers_to(benchmark, YES_NO)
    parts = {
        split: [a for i, a in zip(benchmark.items, given, strict=True) if i.split == split]
        for split in ("popular", "random", "adversarial")
    }
    for each in (parts, {split: [texts[:2], texts[2:]] for split, texts in parts.items()}):
        (tmp_path / "a.json").write_text(json.dumps(each))
        assert read(benchmark, tmp_path / "a.json") == ("split and position", given)
    (tmp_path / "a.json").write_text(json.dumps(given))
    assert read(benchmark, tmp_path / "a.json") == ("position", given)
    for wrong in (
        {**parts, "random": parts["random"][1:]},
        {**parts, "popular": [*parts["popular"], "No"]},
        given[1:],
    ):
        (tmp_path / "a.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"1[13] answers for 12 questions of pope"):
            read(benchmark, tmp_path / "a.json")


def test_many_texts_are_put_to_the_questions_of_their_split(tmp_path):
    # In quadratic time an hour.
    benchmark = Pope(
        tuple(Item(f"{n}", "ab"[n % 2], None, "Is it?", "yes", "") for n in range(20_000)), suffix=""
    )
    (tmp_path / "a.json").write_text(
        json.dumps({split: [f"{split} {n}" for n in range(10_000)] for split in "ba"})
    )
    by, texts = read(benchmark, tmp_path / "a.json")
    assert by == "split and position"
    assert texts == [f"{'ab'[n % 2]} {n // 2}" for n in range(20_000)]


def test_pairs_of_phd_are_in_the_order_of_its_entries(tmp_path):
    """{mode: [[answer to yes_question, to no_question], ...]}."""
    benchmark = phd(tmp_path)
    given = answers_to(benchmark, YES_NO)
    by_mode: dict[str, list[list[str]]] = {}
    for item, answer in zip(benchmark.items, given, strict=True):
        pairs = by_mode.setdefault(item.split, [])
        if item.label == "yes":
            pairs.append([])
        pairs[-1].append(answer)
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(by_mode.items()))))
    assert read(benchmark, tmp_path / "a.json") == ("split and position", given)


def test_answers_within_the_questions_of_vlind_bench(tmp_path):
    """MODEL_pred_... beside the statements; an instance without a good picture has none."""
    instances: list[dict[str, Any]] = [
        {
            "global_id": n,
            "concept": "animal",
            "context_id": n,
            **{name: f"{name} {n}." for name in ("context", "factual_context", "true_statement")},
            **{name: f"{name} {n}" for name in ("false_statement", "existent_noun", "non-existent_noun")},
            "best_img_id": "1",
            "aggregated_human_label_good_images": {"1": 3, "4": votes, "5": 0},
        }
        for n, votes in ((3, 0), (1, 2), (2, 3))
    ]
    instances.append({**instances[0], "global_id": 9, "aggregated_human_label_good_images": {"1": 1}})
    (tmp_path / "data.json").write_text(json.dumps(instances))
    benchmark = benchmarks.load_class("vlind").load(tmp_path)
    given = answers_to(benchmark, ("True", "False.", "The statement is true"))
    answered = [dict(each) for each in instances]
    for item, answer in zip(benchmark.items, given, strict=True):
        number, test, *picture = item.id.split("/")
        instance = next(each for each in answered if str(each["global_id"]) == number)
        said = {"response": answer, "answer": "NA"}
        if picture:
            instance.setdefault(f"m_pred_{test}", {})[picture[0]] = said
        else:
            instance[f"m_pred_{test}{'_image' if test[0] in 'ac' else ''}"] = said
    path = tmp_path / "answers.json"
    for order in (answered, answered[::-1]):
        path.write_text(json.dumps(order))
        assert read(benchmark, path) == ("question_id", given)
    path.write_text(json.dumps(answered[1:]))
    with pytest.raises(InputError, match=r"of \d+ questions have no answer, the first is '3/a1'"):
        read(benchmark, path)
    path.write_text(json.dumps([*answered, answered[1]]))
    with pytest.raises(InputError, match=r"a second answer to '1/a1' \(question_id\), after"):
        read(benchmark, path)
    path.write_text(json.dumps([{**each, "n_pred_b1": {"response": "True"}} for each in answered]))
    with pytest.raises(InputError, match="answers of the models m, n; leave one in the file"):
        read(benchmark, path)


def test_predictions_within_the_pairs_of_videohallucer(tmp_path):
    pair = {side: {"video": "a.mp4", "question": "Is it?"} for side in ("basic", "hallucination")}
    records = [
        {
            "basic": {**pair["basic"], "answer": "yes", "predict": f"Yes {n}"},
            "hallucination": {**pair["hallucination"], "answer": "no", "predict": f"No {n}"},
            "type": "x",
        }
        for n in range(2)
    ]
    (tmp_path / "temporal.json").write_text(json.dumps(records))
    rows = read_answer_rows(tmp_path / "temporal.json")
    field = choose_answer_field(rows)
    assert [(row.text(field), label_of(row, field)) for row in rows] == [
        *(("Yes 0", "yes"), ("No 0", "no"), ("Yes 1", "yes"), ("No 1", "no"))
    ]


RELEASED = {
    "beaf": (("benchmarks/data/beaf", "benchmarks/data/beaf/answer_gpt4o_v0.json.gz"), "id", 26_118),
    "mme": (("goldens/benchmarks/mme/results_dir",) * 2, "text and image and split", 180),
    "pope": (
        ("benchmarks/data/pope", "goldens/benchmarks/repope/odd_strings.responses.json.gz"),
        "question_id",
        9_000,
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_joined(shared, name):
    (folder, answers), by, count = RELEASED[name]
    benchmark = benchmarks.load_class(name).load(shared / folder, shared)
    found, texts = read(benchmark, shared / answers)
    assert (found, len(texts)) == (by, count)


def test_a_question_of_several_splits_counts_in_each(tmp_path):
    """VLMEvalKit asks it once, with "random,popular" for its category."""
    benchmark = pope(tmp_path)
    asked: dict[tuple[str, Any], dict[str, Any]] = {}
    for item in benchmark.items:
        row = _vlmevalkit(item, len(asked), "No" if "cat" in item.question else "Yes")
        first = asked.setdefault((item.question, item.image), row)
        first["category"] = ",".join(dict.fromkeys([*first["category"].split(","), item.split]))
    records = list(asked.values())
    assert len(records) == 8
    (tmp_path / "m_POPE.tsv").write_text(_tsv(records[::-1]))
    by, found = read(benchmark, tmp_path / "m_POPE.tsv")
    assert (by, found) == (TEXT, ["No" if "cat" in item.question else "Yes" for item in benchmark.items])
    figures = score("pope", tmp_path / "m_POPE.tsv")["plain"]["figures"]
    official = {name: block["official"]["plain"]["accuracy"]["value"] for name, block in figures.items()}
    assert official == {"random": 1.0, "popular": 0.5, "adversarial": 0.5, "all": 8 / 12}


def score(benchmark: str, path: Path, *more: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["score", benchmark, str(path), *more, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)
