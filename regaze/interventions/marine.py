"""MARINE: mitigating hallucination by image-grounded guidance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from PIL import Image
from pydantic import AfterValidator, Field, NonNegativeFloat

from regaze.interventions.base import Intervention, Method
from regaze.interventions.contrastive import has_image
from regaze.interventions.controls.random_detections import RandomObjects
from regaze.interventions.detection import Detecting
from regaze.interventions.facts import Facts
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.branches import prompts_of, with_questions
from regaze.toolkit.model.context import Context
from regaze.toolkit.model.logits import LogitsCombination
from regaze.toolkit.model.stack import Branch
from regaze.toolkit.prompts.questions import question_text


def _with_both(template: str) -> str:
    if template.count("{objects}") != 1 or template.count("{question}") != 1:
        raise ValueError("no text with {objects} and {question}")
    return template


@dataclass(frozen=True)
class MARINE(Detecting, Intervention):
    """Move the logits towards those of the prompt that names the objects a detector found.

    Source: Zhao et al., "Mitigating Object Hallucination in Large Vision-Language Models via Image-Grounded
    Guidance" (arXiv:2402.08680): l + strength (l_with - l), where l_with are the logits of the same prompt
    with the detected objects in its question. A strength of 1 is the prompt with the objects by itself.

    The objects are the labels that score at least `threshold`, each once, best first, of all images of a
    prompt. The paper takes what DETR (0.95) and RAM++ (0.68) have in common: a function of yours can combine
    detectors. An open vocabulary looks for `objects`. The detector is shown the images that the model sees,
    read back from the pixel values: of an image in tiles, each tile. A prompt without an image, or in whose
    images nothing is found, is left unchanged.
    """

    name: ClassVar[str] = "marine"
    summary: ClassVar[str] = "move the logits towards those of a prompt that names the detected objects"
    source: ClassVar[str] = "arXiv:2402.08680"
    edits: ClassVar[str] = "logits at every step"
    cost: ClassVar[str] = (
        "a detector once per image; two rows per prompt in one forward, with the cache of both"
    )
    facts: ClassVar[Facts] = Facts(edits=("logits",), cost="two rows", needs=("detector", "second context"))
    release: ClassVar[str] = (
        "Linxi-ZHAO/MARINE, no licence known. Detects beforehand and looks the objects up in a file; one of "
        "four sentences is drawn for each question, others for POPE; after the first token the guidance no "
        "longer masks its padding, so that batches and single questions differ. Here there is one sentence, "
        "and padding stays masked."
    )

    threshold: Fraction = field(
        default=0.95, metadata={"help": "least score of an object; open vocabularies score lower than DETR"}
    )
    strength: NonNegativeFloat = field(
        default=0.7, metadata={"help": "gamma, how far to move towards the prompt with objects (0: not)"}
    )
    objects: Sequence[str] = field(
        default=(), metadata={"help": "names to look for, such as dog,cat; none: whatever the detector knows"}
    )
    template: Annotated[
        str, AfterValidator(_with_both), Field(description="a text with {objects} and {question}")
    ] = field(
        default="This image contains {objects}. Based on this, {question}",
        metadata={"help": "the question with objects"},
    )

    @property
    def is_identity(self) -> bool:
        return self.strength == 0.0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomObjects(self),)

    @property
    def branch(self) -> str:
        """Name of the branch; its content depends on these parameters alone."""
        detector = self.detector if isinstance(self.detector, str) else f"function {id(self.detector)}"
        return f"marine: {detector}, {self.threshold}, {self.objects}, {self.template!r}"

    def branches(self, context: Context) -> Mapping[str, Branch]:
        if self.is_identity or not has_image(context).any():
            return {}
        prompts = prompts_of(context)
        names = self._found(context)
        if not any(names):
            return {}
        state = context.state(self)
        state["where"] = None
        if not all(names):
            where = torch.tensor([bool(found) for found in names])
            state["where"] = where[:, None, None].to(context.device)
        questions = [
            self.guided(question_text(*prompt, context.reader), found) if found else None
            for prompt, found in zip(prompts, names, strict=True)
        ]
        return {self.branch: with_questions(context, questions)}

    def combine_logits(self, context: Context) -> LogitsCombination | None:
        state = context.state(self)
        if "where" not in state:
            return None
        other, where = context.logits(self.branch), state["where"]
        strength = self.strength if where is None else self.strength * where.to(other.device)
        return LogitsCombination(1.0 - strength, [(strength, other)])

    def guided(self, question: str, names: Sequence[str]) -> str:
        """The question with the names of objects."""
        parts = {"{objects}": ", ".join(names), "{question}": question}
        return re.sub(r"\{objects\}|\{question\}", lambda part: parts[part[0]], self.template)

    def found_in(self, image: Image.Image, device: torch.device) -> tuple[str, ...]:
        """The names of the objects in an image, best first."""
        return self.detections(image, self.objects or None, device).names

    def _found(self, context: Context) -> list[tuple[str, ...]]:
        """The names of the objects in the images of each prompt."""
        views = context.tokens.views[: context.user_batch]
        known: dict[tuple[bytes, tuple[int, int]], tuple[str, ...]] = {}  # beams repeat their prompt
        names = []
        for pictures in context.reader.sight.pictures(context.inputs, views):
            found: list[str] = []
            for picture in pictures:
                key = picture.tobytes(), picture.size
                if key not in known:
                    known[key] = self.found_in(picture, context.device)
                found += known[key]
            names.append(tuple(dict.fromkeys(found)))
        return names
