"""Object HalBench: objects in detailed answers that are not in the image (Yu et al., CVPR 2024, RLHF-V).

300 COCO val2014 images, each with one of eight instructions to describe it in detail. Objects of the image
are known as in CHAIR. Papers report the share of answers with a hallucinated object (`response_hall`) and the
share of hallucinated objects (`mention_hall`), from objects that GPT-3.5 lists. That model is retired.

Without a judge objects are found by their words, each mention counted. With one (a server, a local model,
recorded verdicts) its lists are taken, each object once. The two ways do not compare.

`official`
    `response_hall` is a share of the answers that name an object of COCO at all: a method under which answers
    name none of them gains. Undefined throughout where the script stops.
`regaze`
    Shares of all answers and of distinct objects in both ways; says how many answers name nothing
    (`no_objects`), and leaves out and counts replies without a JSON list of texts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from regaze.errors import InputError
from regaze.eval import files, judges
from regaze.eval.benchmarks.chair.ground_truth import read_ground_truth, require_categories
from regaze.eval.benchmarks.chair.selection import IMAGE_NAME
from regaze.eval.benchmarks.chair.words import SynonymReader
from regaze.eval.benchmarks.common.base import About, Item, limit_items
from regaze.eval.benchmarks.common.download import benchmark_folder, github_file
from regaze.eval.benchmarks.common.embedded import save_embedded
from regaze.eval.benchmarks.common.judged import JudgedBenchmark, JudgePrompt
from regaze.eval.benchmarks.common.scoring import Scorer
from regaze.eval.benchmarks.object_halbench.objects import listed_names, official_names, read_words
from regaze.eval.benchmarks.object_halbench.scorers import (
    SHORT,
    Listed,
    OfficialScorer,
    RegazeScorer,
    clean,
)
from regaze.reading import StrPath

QUESTIONS = "obj_halbench_300_with_image.jsonl"
SYNONYMS = "synonyms_refine.txt"
COMMIT = "8daac8a8f30df123818ae9d3a0e3f0018497714c"

JUDGE = JudgePrompt(
    "Somebody answered a question about a picture. Take the answer as true.\n"
    "Question: {question}\n"
    "Answer: {answer}\n"
    "Which things does the answer say are to be seen in the picture? Name only things that its words "
    "mention, without their colours, materials and other qualities. Write one line, a JSON list of names "
    'such as ["dog", "table"], and [] if there are none. Write nothing else.',
    "regaze 1",
)
_PLACEHOLDERS = ("question", "answer")


@dataclass(frozen=True)
class ObjectHalBench(JudgedBenchmark):
    """The 300 questions; each item's reference is a `GroundTruth`."""

    items: tuple[Item, ...]
    words: SynonymReader
    judged: bool = False
    judge: judges.Judge | None = None
    judge_prompt: JudgePrompt = JUDGE
    suffix: str = ""
    name: str = "object-halbench"
    about: ClassVar[About] = About(
        title="Object HalBench",
        paper="Rohrbach et al., EMNLP 2018; in this form Yu et al., CVPR 2024, arXiv 2312.00849",
        licence="none stated; COCO annotations: CC BY 4.0",
        images="COCO val2014 (Flickr photographs, a licence each), in the questions file or your own copy",
        home="https://github.com/RLHF-V/RLHF-V",
        files=(
            github_file(
                "RLHF-V/RLHF-V",
                COMMIT,
                f"eval/data/{SYNONYMS}",
                "681041d2958d7871ed6fa69c3108f34aa6a0a354eb53ed4c5a425e65f86bc72a",
            ),
        ),
    )

    @classmethod
    def load(
        cls,
        folder: StrPath,
        images: StrPath | None = None,
        *,
        annotations: StrPath | None = None,
        judge: judges.Judge | None = None,
        judged: bool | None = None,
        prompt: StrPath | None = None,
        limit: int | None = None,
    ) -> ObjectHalBench:
        """The questions file and synonyms_refine.txt in `folder`, with COCO's annotations.

        Args:
            images: Folder of the photographs, `folder`/val2014 by default. Without one the pictures in the
                questions file are saved in the cache.
            annotations: Folder of the ground truth (`read_ground_truth`), `folder` by default. The official
                figures need COCO's own files, of which the captions are read, too.
            judged: Take the objects from the judge's lists; by default if there is a judge.
            prompt: A file with the judge's prompt: {question}, {answer}.

        Raises:
            InputError: A file is missing or malformed, an image has no ground truth, or `judged` is set
                without a judge.
        """
        folder, image_folder = files.folders_of(folder, images, "val2014")
        try:
            path = files.find_file(folder, QUESTIONS)
        except InputError as error:
            raise InputError(f"{error}; RLHF-V and RLAIF-V publish it (eval/data): copy it here") from error
        records = [(f"{path}:{line}", record) for line, record in files.read_records(path)]
        chosen = limit_items([_item(record, source) for source, record in records], limit)
        embedded = {source: record.get("image") for source, record in records}
        truth = read_ground_truth(annotations or folder, [int(item.key) for item in chosen])
        words = read_words(_find_synonyms(folder))
        require_categories(truth, set(words.synonyms.values()), annotations or folder, SYNONYMS)
        items = []
        for item in chosen:
            if int(item.key) not in truth:
                raise InputError(
                    f"{item.source}: image {item.key} has no ground truth in {annotations or folder}"
                )
            image = _image(item, image_folder if images or image_folder.is_dir() else None, embedded)
            items.append(replace(item, image=image, reference=truth[int(item.key)]))
        return cls(
            tuple(items),
            words,
            judge is not None if judged is None else judged,
            judge,
            JudgePrompt.from_file(prompt, _PLACEHOLDERS) if prompt else JUDGE,
        )

    def verdicts(self, answers: Sequence[str]) -> list[Listed]:
        """The judge's lists; answers of up to three words are not shown to it."""
        prompts = {
            index: self.judge_prompt.fill(question=item.question, answer=clean(answer))
            for index, (item, answer) in enumerate(zip(self.items, answers, strict=True))
            if len(clean(answer).split()) > SHORT
        }
        replies = dict(zip(prompts, self.require_judge().judge(list(prompts.values())), strict=True))
        return [Listed(answer, replies.get(index)) for index, answer in enumerate(answers)]

    def scorers(self) -> Sequence[Scorer]:
        official, own = "RLHF-V/RLHF-V 8daac8a", "1"
        if self.judged:
            official += f", nouns by NLTK, prompt {self.judge_prompt.name}"
            own += f", prompt {self.judge_prompt.name}"
        words = self.words
        metrics = RegazeScorer.metrics if self.judged else RegazeScorer.metrics[:-1]
        return (
            OfficialScorer(
                "official", official, words, lambda reply: official_names(reply, words.double_words)
            ),
            RegazeScorer(
                "regaze",
                own,
                words,
                lambda reply: [m.word for name in listed_names(reply) for m in words.read(name)[0]],
                metrics,
            ),
        )

    def describe(self) -> dict[str, Any]:
        """As `JudgedBenchmark.describe`, with the kind of ground truth."""
        captions = any(item.reference.captions for item in self.items)
        truth = "COCO's annotations and captions" if captions else "finished sets, made as CHAIR's ports do"
        return {**super().describe(), "ground_truth": truth}


def _item(record: Any, source: str) -> Item:
    number = str(files.require_field(record, "image_id", (int, str), source)).strip()
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise InputError(f"{source}: 'image_id' must be the number of a COCO image, got {number!r}")
    question = files.require_field(record, "question", str, source)
    key = str(int(number))
    return Item(key, "object-halbench", None, question, "", source, id=key)


def _image(item: Item, folder: Path | None, embedded: dict[str, Any]) -> Path:
    """The photograph in the folder, else the one in the questions file, saved."""
    if folder is not None:
        return folder / IMAGE_NAME.format(int(item.key))
    text = embedded[item.source]
    if not isinstance(text, str):
        raise InputError(f"{item.source}: no picture under 'image'; say where COCO's val2014 is by --images")
    return save_embedded(text, files.cache_folder() / "embedded" / "object-halbench", item.source)


def _find_synonyms(folder: Path) -> Path:
    """The list of words in the folder, else the downloaded one."""
    place = folder if os.path.isfile(folder / SYNONYMS) else benchmark_folder("object-halbench")
    if not os.path.isfile(place / SYNONYMS):
        raise InputError(
            f"{folder} has no {SYNONYMS}: copy it there, or get it by `regaze benchmarks get object-halbench`"
        )
    return place / SYNONYMS
