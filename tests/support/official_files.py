"""Small right files of every benchmark in its official layout, with answers to it."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


class CHAIR:
    """Stands in for the class that stand-alone ports pickle."""


@dataclass(frozen=True)
class Official:
    """A folder of a benchmark.

    Attributes:
        files: contents by path in the folder.
        command: arguments of `regaze` that score the answers in it; "@" stands for the folder.
        works: whether the command succeeds; where a judge would be asked, it ends with an error.
    """

    files: Mapping[str, bytes]
    command: Sequence[str]
    works: bool = True

    def write(self, folder: Path) -> list[str]:
        """Write the files into a folder; the command that scores them there."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return [argument.replace("@", str(folder)) for argument in self.command]


def lines(*records: Any) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def picture(size: tuple[int, int] = (64, 64), kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return out.getvalue()


def _pickled() -> bytes:
    evaluator = CHAIR()
    evaluator.imid_to_objects = {9: {"cat"}, 139: {"dog"}}
    text = pickle.dumps(evaluator, 2)
    return text.replace(f"c{CHAIR.__module__}\nCHAIR\n".encode(), b"c__main__\nCHAIR\n")


_PICTURES = {"a.png": picture(), "b.jpg": picture(kind="jpeg")}
_POPE = [
    {"question_id": 1, "image": "a.png", "text": "Is there a dog?", "label": "yes"},
    {"question_id": 2, "image": "a.png", "text": "Is there a cat?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a dog?", "label": "no"},
]
_COCO = {
    "info": {"year": 2014},
    "images": [{"id": 9, "file_name": "b.jpg"}, {"id": 139, "file_name": "c.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"image_id": 9, "category_id": 1, "bbox": [1, 2, 3.5, 4], "iscrowd": 0},
        {"image_id": 139, "category_id": 2, "bbox": [0, 0, 9, 9]},
    ],
}
_CAPTIONS = {
    "annotations": [{"image_id": 9, "caption": "A cat sits."}, {"image_id": 139, "caption": "A dog runs."}]
}
_CHAIR = {
    "synonyms.txt": b"cat, kitten\ndog, puppy\nperson, man\n",
    "ids.txt": b"9\n139\n",
    "answers.jsonl": lines({"image_id": 9, "caption": "A cat."}, {"image_id": 139, "caption": "A man."}),
}
_HALLUSION = {
    "category": "VS",
    "subcategory": "chart",
    "set_id": "0",
    "figure_id": "1",
    "question_id": "0",
    "visual_input": "1",
    "filename": "a.png",
    "gt_answer": "1",
    "gt_answer_details": "It is.",
    "question": "Is it red?",
}
_MMHAL = {
    "question_type": "attribute",
    "question_topic": "indoor",
    "image_id": "a",
    "image_src": "https://host/a.jpg",
    "image_content": ["cat"],
    "question": "What colour?",
    "gt_answer": "Red.",
}
_TEXTVQA = {"image_id": "a", "question_id": 1, "question": "What?", "answers": ["x"] * 9 + ["y"]}
_VSTAR = {
    "image": "a.png",
    "text": "Which?\n(A) red\n(B) blue\nAnswer with the letter.",
    "label": "B",
    "question_id": 7,
    "category": "direct_attributes",
}
_VSTAR_OFFICIAL = {"target_object": ["bag"], "question": "What?", "options": ["red", "blue"]}


def _score(name: str, answers: str, *more: str) -> list[str]:
    return ["score", name, f"@/{answers}", "--data", "@", *more]


OFFICIAL: dict[str, Official] = {
    "pope": Official(
        {
            **{f"coco_pope_{split}.json": lines(*_POPE) for split in ("random", "popular", "adversarial")},
            **_PICTURES,
            "answers.jsonl": lines(*[{"question": q["text"], "answer": "yes"} for q in _POPE]),
        },
        _score("pope", "answers.jsonl", "--images", "@", "--bench", 'splits=["random"]'),
    ),
    "popev2": Official(
        {
            "annotations.json": lines(
                {"image_name": "a.png", "query": "Is there a dog?", "label": "yes"},
                {"image_name": "a.png", "query": "Is there a cat?", "label": "no"},
            ),
            **_PICTURES,
            "answers.jsonl": lines({"answer": "yes"}, {"answer": "No."}),
        },
        _score("popev2", "answers.jsonl", "--images", "@"),
    ),
    "chair, masks": Official(
        {
            **_CHAIR,
            "instances_val2014.json": lines(_COCO),
            "captions_val2014.json": lines(_CAPTIONS),
        },
        _score("chair", "answers.jsonl", "--images", "@", "--bench", "ids=@/ids.txt"),
    ),
    "chair, list": Official(
        {
            **_CHAIR,
            "coco2014_trainval_objects.json": lines(
                {"names": ["cat", "dog"], "images": {"9": [0], "139": [1]}}
            ),
        },
        _score("chair", "answers.jsonl", "--images", "@", "--bench", "ids=@/ids.txt"),
    ),
    "chair, pickle": Official(
        {**_CHAIR, "chair.pkl": _pickled()},
        _score("chair", "answers.jsonl", "--images", "@", "--bench", "ids=@/ids.txt"),
    ),
    "amber": Official(
        {
            "query_all.json": lines(
                [
                    {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
                    {"id": 2, "image": "AMBER_1.jpg", "query": "Is there a dog?"},
                ]
            ),
            "annotations.json": lines(
                [
                    {"id": 1, "type": "generative", "truth": ["dog", "tree"], "hallu": ["cat"]},
                    {"id": 2, "type": "discriminative-hallucination", "truth": "yes"},
                ]
            ),
            "relation.json": lines({"dog": ["puppy"], "tree": [], "cat": ["kitten"]}),
            "safe_words.txt": b"picture\nimage\n",
            "similar.json": lines({"model": "m", "pairs": [["dog", "puppy", 0.9], ["cat", "tree", 0.1]]}),
            "answers.json": lines([{"id": 1, "response": "A puppy."}, {"id": 2, "response": "Yes"}]),
        },
        _score("amber", "answers.json", "--images", "@", "--bench", "similarity=@/similar.json"),
    ),
    "mme": Official(
        {
            "existence.txt": b"a.png\tIs there a dog?\tYes\tyes\na.png\tIs there a cat?\tNo\tno\n",
            **_PICTURES,
            "answers.jsonl": lines({"answer": "yes"}, {"answer": "no"}),
        },
        _score("mme", "answers.jsonl", "--images", "@", "--bench", 'tasks=["existence"]'),
    ),
    "mme, released": Official(
        {
            "count/questions_answers_YN/a.txt": b"Are there two?\tYes\nAre there three?\tNo\n",
            "count/images/a.png": picture(),
            "answers.jsonl": lines({"answer": "yes"}, {"answer": "no"}),
        },
        _score("mme", "answers.jsonl", "--images", "@", "--bench", 'tasks=["count"]'),
    ),
    "hallusionbench": Official(
        {
            "HallusionBench.json": lines(
                [_HALLUSION, {**_HALLUSION, "figure_id": "0", "filename": None, "visual_input": "0"}]
            ),
            **_PICTURES,
            "answers.jsonl": lines({"answer": "yes"}, {"answer": "no"}),
        },
        _score("hallusionbench", "answers.jsonl", "--images", "@"),
    ),
    "mmhal": Official(
        {
            "response_template.json": lines([_MMHAL]),
            "prompt.txt": b"{content} {question} {reference} {answer}",
            "verdicts.jsonl": lines({"prompt": "p", "verdict": "Rating: 3"}),
            "answers.json": lines([{**_MMHAL, "model_answer": "Red."}]),
        },
        _score(
            *("mmhal", "answers.json", "--images", "@", "--judge", "@/verdicts.jsonl"),
            *("--bench", "prompt=@/prompt.txt", "--answer-key", "model_answer"),
        ),
        works=False,
    ),
    "llava-bench": Official(
        {
            "questions.jsonl": lines(
                {"question_id": 1, "image": "001.jpg", "category": "conv", "text": "What?"}
            ),
            "context.jsonl": lines({"image": "001.jpg", "caption": ["A pier.", "A lake."]}),
            "answers_gpt4.jsonl": lines({"question_id": 1, "text": "A pier."}),
            "rule.json": lines(
                {
                    f"llava_bench_{kind}": {"role": "Assistant", "prompt": "Rate."}
                    for kind in ("conv", "detail", "complex")
                }
            ),
            "verdicts.jsonl": lines({"prompt": "p", "verdict": "8 7"}),
            "answers.jsonl": lines({"question_id": 1, "prompt": "What?", "text": "A lake."}),
        },
        _score(
            *("llava-bench", "answers.jsonl", "--images", "@", "--judge", "@/verdicts.jsonl"),
            *("--bench", "rules=@/rule.json"),
        ),
        works=False,
    ),
    "gavie": Official(
        {
            "evaluation_set.json": lines([{"image_id": "7", "question": "What?"}]),
            "vg_annotation.json": lines({"7": [{"caption": "a cat", "bbox": [1, 2, 3, 4]}]}),
            "verdicts.jsonl": lines({"prompt": "p", "verdict": "RELEVANCY: 8"}),
            "answers.jsonl": lines({"answer": "A cat."}),
        },
        _score("gavie", "answers.jsonl", "--images", "@", "--judge", "@/verdicts.jsonl"),
        works=False,
    ),
    "mmvp": Official(
        {
            "Questions.csv": (
                b"Index,Question,Options,Correct Answer\n"
                b"1,Which?,(a) red (b) blue,(a)\n2,Which?,(a) red (b) blue,(b)\n"
            ),
            "answers.jsonl": lines({"question_id": 1, "answer": "(a)"}, {"question_id": 2, "answer": "(a)"}),
        },
        _score("mmvp", "answers.jsonl", "--images", "@"),
    ),
    "vstar": Official(
        {"test_questions.jsonl": lines(_VSTAR), **_PICTURES, "answers.jsonl": lines({"answer": "B"})},
        _score("vstar", "answers.jsonl", "--images", "@"),
    ),
    "vstar, official": Official(
        {
            "direct_attributes/sa_1.json": lines(_VSTAR_OFFICIAL),
            "direct_attributes/sa_1.jpg": picture(kind="jpeg"),
            "answers.jsonl": lines({"answer": "red"}),
        },
        _score("vstar-likelihood", "answers.jsonl"),
    ),
    "textvqa": Official(
        {
            "TextVQA_0.5.1_val.json": lines({"data": [_TEXTVQA]}),
            "ocr.json": lines({"data": [{"image_id": "a", "ocr_tokens": ["x"]}]}),
            "answers.jsonl": lines({"question_id": 1, "text": "x"}),
        },
        _score("textvqa", "answers.jsonl", "--images", "@", "--bench", "ocr=@/ocr.json"),
    ),
    "ruler": Official(
        {
            "niah_single_1/validation.jsonl": lines(
                {"index": 0, "input": "Find it.", "outputs": ["17"], "length": 9}
            ),
            "answers.jsonl": lines({"index": 0, "pred": "17"}),
        },
        _score("ruler", "answers.jsonl"),
    ),
}  # fmt: skip
