"""What a page takes for granted that its reader has: models of the hub, photographs, files of benchmarks.

A prop is put into the folder of a page that names it. A model stands in for the one of that name: it is of
the same family, so that every option is tried, and what it answers is compared with nothing.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from official_files import OFFICIAL
from paths import DOCS, ROOT
from transformers import AutoModel, BitImageProcessor, Dinov2Config, LlamaConfig, LlamaForCausalLM
from zoo.tokenizer import tiny_tokenizer

from regaze import demo
from regaze.demo.shipped import DATA_DIR, IMAGE_DIR

_CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} {% endfor %}assistant:"


def provide(folder: Path, text: str) -> None:
    """Make every prop that the text names."""
    for name, make in PROPS.items():
        if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w-])", text):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)


def _linked(target: Path) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _written(content: str) -> Callable[[Path], None]:
    return lambda path: _write(path, content)


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def _lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _photo(path: Path, scene: int = 12) -> None:
    demo.scenes()[scene].image().save(path)


def _language_model(path: Path) -> None:
    """With the layers and heads of SmolLM2-135M, which pages name."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(chat_template=_CHAT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=36,
        intermediate_size=48,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        initializer_range=0.2,
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)


def _vision_tower(path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=42)
    AutoModel.from_config(config).save_pretrained(path)
    BitImageProcessor(size={"height": 42, "width": 42}, do_center_crop=False).save_pretrained(path)


def _pope(path: Path) -> None:
    """POPE's files, of the demo's questions."""
    path.mkdir()
    for split in ("random", "popular", "adversarial"):
        (path / f"coco_pope_{split}.json").symlink_to(DATA_DIR / f"pope_{split}.jsonl")


def _official(path: Path, name: str) -> None:
    """A benchmark's folder with a few questions."""
    for file, content in OFFICIAL[name].files.items():
        place = path / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)


def _official_file(name: str, file: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(OFFICIAL[name].files[file])


def _photos(path: Path) -> None:
    """The demo's scenes, and the two pictures that a small CHAIR asks about."""
    path.mkdir()
    for scene in IMAGE_DIR.iterdir():
        (path / scene.name).symlink_to(scene)
    _photo(path / "b.jpg")
    _photo(path / "c.jpg", scene=1)


def _pairs(path: Path) -> None:
    """Pairs of captions, with their pictures beside them."""
    for file in demo.FITTING_FILE.parent.iterdir():
        (path.parent / file.name).symlink_to(file)


def _questions(split: str = "random") -> list[dict[str, Any]]:
    text = (DATA_DIR / f"pope_{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _answers(path: Path, splits: Sequence[str] = ("random",)) -> None:
    """A line for each question of POPE's splits, as the pages have them."""
    asked = [each for split in splits for each in _questions(split)]
    _write(
        path,
        _lines(*({"image": each["image"], "question": each["text"], "answer": "Yes."} for each in asked)),
    )


def _answered_questions(path: Path) -> None:
    """Questions in POPE's format, each with an answer: pages ask them, and score the answers."""
    _write(path, _lines(*({**each, "question": each["text"], "answer": "Yes."} for each in _questions())))


def _labelled(path: Path) -> None:
    given = [
        {"image": each["image"], "question": each["text"], "answer": "No", "label": each["label"]}
        for each in _questions()[:6]
    ]
    _write(path, _lines(*given))


def _book(path: Path) -> None:
    """Some 3,000 words."""
    text = "The red car is next to the table. There are two people in the picture. " * 200
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        _write(path, text)


def _instances(path: Path) -> None:
    """COCO's file of instances, of three scenes that `images` has."""
    scenes = demo.scenes()[:3]
    things = [(number, thing) for number, scene in enumerate(scenes) for thing in scene.objects]
    names = sorted({thing.category for _, thing in things})
    content = {
        "images": [{"id": number, "file_name": scene.name} for number, scene in enumerate(scenes)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {
                "image_id": number,
                "category_id": names.index(thing.category),
                "bbox": [*thing.box[:2], thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]],
            }
            for number, thing in things
        ],
    }
    _write(path, json.dumps(content))


PROPS: dict[str, Callable[[Path], None]] = {
    "MODEL": _linked(demo.MODEL_DIR),
    "llava-hf/llava-1.5-7b-hf": _linked(demo.MODEL_DIR),
    "llava-hf/llava-v1.6-34b-hf": _linked(demo.MODEL_DIR),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _language_model,
    "facebook/dinov2-base": _vision_tower,
    "photo.jpg": _photo,
    "book.txt": _book,
    "another.txt.gz": _book,
    "pairs.jsonl": _pairs,
    "run.yaml": _written("benchmark: pope\n"),
    "pope": _pope,
    "POPE/output/coco": _pope,
    "coco_pope_random.json": _linked(DATA_DIR / "pope_random.jsonl"),
    "instances.json": _instances,
    "images": _linked(IMAGE_DIR),
    # what the gallery reads and writes, from the folder of the pages
    "assets/gallery": Path.mkdir,
    "studies/seeing/study.json": _linked(DOCS / "studies/seeing/study.json"),
    "../benchmarks/results": _linked(ROOT / "benchmarks/results"),
    "docs/comparison-methods.json": _linked(DOCS / "comparison-methods.json"),
    "val2014": _linked(IMAGE_DIR),
    "answers.jsonl": partial(_answers, splits=("random", "popular", "adversarial")),
    "mine.jsonl": _answered_questions,
    "labelled.jsonl": _labelled,
    "annotations": partial(_official, name="chair, masks"),
    "vstar_bench": partial(_official, name="vstar, official"),
    "photos": _photos,
    "ids.txt": _written("9\n139\n"),
    "captions.jsonl": _official_file("chair, masks", "answers.jsonl"),
    "questions.jsonl": _linked(DATA_DIR / "pope_random.jsonl"),
    "vcd.jsonl": _answers,
    "regular.jsonl": _answers,
}
