"""HALC: object hallucination reduction via adaptive focal-contrast decoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from PIL import Image
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from regaze.errors import BadParameterError, InputError
from regaze.interventions.base import Method, MultiPassMethod
from regaze.interventions.controls.random_detections import RandomBoxes
from regaze.interventions.detection import Detecting
from regaze.interventions.facts import Facts
from regaze.interventions.halc.contrast import contrasted, furthest_pairs
from regaze.interventions.halc.fields import centre_of, crops, growing_fields, released_fields
from regaze.interventions.halc.matching import Matcher, clip_matcher, match
from regaze.interventions.halc.search import FocalSearch, Focus, Looked
from regaze.interventions.halc.words import ObjectWords
from regaze.interventions.parameters import Fraction
from regaze.toolkit.model.continuations import Alone, Continuations, Stop, read_stop
from regaze.toolkit.prompts.content_words import find_tagger
from regaze.toolkit.wrap import Gaze

#: The release leaves a word alone that is found in more places.
_MOST_BOXES = 3


@dataclass(frozen=True, eq=False)
class HalcAnswer:
    """The answer (given by `str`), its tokens, and how each object word in it was decided."""

    answer: str
    ids: tuple[int, ...]
    focuses: tuple[Focus, ...]

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class HALC(Detecting, MultiPassMethod):
    """Decide each object word again by what the model sees in growing parts of the image around its box.

    Source: Chen et al., "HALC: Object Hallucination Reduction via Adaptive Focal-Contrast Decoding"
    (arXiv:2403.00425). The answer is decoded greedily. When it has completed a word for an object, `detector`
    says where that is; a word that is not found is looked for in the middle of the image, 0.6 of its sides.
    `fields` parts of the image, the box and larger ones, each 1 + `growth` times the last, predict the word's
    first token. Of the `pairs` whose distributions are furthest apart, by Jensen-Shannon divergence, each is
    contrasted both ways: l_a - weight l_b and l_b - weight l_a. The likeliest token of each contrast is a
    candidate, and is continued to a whole word. `matcher` chooses the one whose sentence matches the image
    best; without a matcher it is the candidate with the highest probability under its contrast, a rule of
    ours. Every word is decided once.

    Object words are those of `objects`, else the names that the detector knows, else all nouns by `tagger`.
    The detector and the matcher see the given image; every part takes the size of it. There is one answer at
    a time, without beams.

    With `as_released=True` (`BillChan226/HALC`) the divergence has the arguments of its terms exchanged; the
    first field is narrower than the box, and each further one grows about the last, as cut at the image's
    edges; the smallest box counts instead of the surest, a word with more than three is left alone; and no
    token is excluded, whatever `beta`. Not reproduced are a random 30 % of words that are skipped, and a list
    of words, cat, horse and bus among them, that always are.
    """

    name: ClassVar[str] = "halc"
    summary: ClassVar[str] = "decide object words again by contrasting parts of the image around them"
    source: ClassVar[str] = "arXiv:2403.00425"
    edits: ClassVar[str] = "object words, once they are written; the forwards are not changed"
    cost: ClassVar[str] = (
        "one question at a time; per object word a detection, a prefill of `fields` rows and, where the word "
        "changes, a forward over the answer so far"
    )
    facts: ClassVar[Facts] = Facts(
        edits=("search",),
        when=("answer",),
        cost="many rows",
        graphs="outside",
        needs=("detector", "own search"),
    )
    release: ClassVar[str] = (
        "BillChan226/HALC, MIT. Skips 30 % of the words at random and others by a list; CLIP reads the whole "
        "answer, of which it cuts the end, or with longer answers new random position embeddings. Here every "
        "object word is decided, and CLIP reads the sentence."
    )

    fields: Annotated[int, Field(ge=2)] = field(
        default=4, metadata={"help": "parts of the image, from the box on"}
    )
    growth: PositiveFloat = field(
        default=0.6, metadata={"help": "lambda, by how much each part is larger than the last"}
    )
    pairs: NonNegativeInt = field(
        default=1, metadata={"help": "how many pairs of parts are contrasted, both ways (0: none)"}
    )
    weight: NonNegativeFloat = field(default=0.05, metadata={"help": "alpha, weight of what is subtracted"})
    beta: Fraction = field(
        default=0.1, metadata={"help": "exclude tokens less likely than beta times the likeliest (0: none)"}
    )
    objects: Sequence[str] = field(
        default=(), metadata={"help": "words for objects, such as dog,cat; none: those the detector knows"}
    )
    tagger: str = field(
        default="auto", metadata={"help": "finds nouns where no names are known: auto, spacy, function-words"}
    )
    matcher: Annotated[str | Matcher | None, Field(description="a CLIP model's name, a function or None")] = (
        field(
            default=None, metadata={"help": "chooses among candidates: (image, texts) -> numbers, or a CLIP"}
        )
    )
    as_released: bool = field(default=False, metadata={"help": "the released code's divergence and fields"})

    def __post_init__(self) -> None:
        super().__post_init__()
        find_tagger(self.tagger)

    @property
    def is_identity(self) -> bool:
        return self.pairs == 0

    def controls(self) -> Sequence[Method]:
        return () if self.is_identity else (RandomBoxes(self),)

    def answer_batch(
        self, gaze: Gaze, images: list[list[Image.Image]], questions: list[str], options: dict[str, Any]
    ) -> list[Any]:
        """One answer after another.

        Raises:
            BadParameterError: no detector; options other than of stopping, such as sampling.
            CompositionError: inside `gaze.using` or `gaze.recording`.
            InputError: a question without an image or with several; a detector or matcher that gives
                something else. ModelNotFoundError: a detector or matcher that cannot be loaded.
            UnsupportedModelError: the cache cannot be cut.
        """
        if self.is_identity:
            return gaze.ask(images, questions, **{**options, "batch_size": len(questions)})
        if self.lacks:
            raise BadParameterError(f"{self.name!r}: {self.lacks}")
        if any(len(entry) != 1 for entry in images):
            raise InputError("HALC looks at parts of one image per question; ask about each image by itself")
        system = options.get("system")
        stop = read_stop("HALC", gaze.model, {k: v for k, v in options.items() if k != "system"})
        pairs = zip(images, questions, strict=True)
        return [self._search(gaze, entry[0], question, system, stop) for entry, question in pairs]

    @torch.inference_mode()
    def _search(
        self, gaze: Gaze, image: Image.Image, question: str, system: str | None, stop: Stop
    ) -> HalcAnswer:
        device = gaze.model.device
        words = ObjectWords(gaze.reader.tokenizer, self.objects or self.vocabulary(device), self.tagger)

        def look(name: str, before: list[int]) -> Looked | None:
            return self._looked(gaze, image, (question, system), name, before)

        with gaze.using(Alone("HALC")):
            continuations = Continuations(gaze.model, gaze.inputs([[image]], [question], system))
            search = FocalSearch(continuations, words, stop, look, self._chooser(image, device))
            ids = search.run()
        text = gaze.reader.decode([ids])[0]
        return HalcAnswer(text.strip(), tuple(ids), tuple(search.focuses))

    def _looked(
        self, gaze: Gaze, image: Image.Image, prompt: tuple[str, str | None], name: str, before: list[int]
    ) -> Looked | None:
        """What the fields around an object predict after the answer `before`."""
        boxes = self.detections(image, [name], gaze.model.device).boxes
        if self.as_released and len(boxes) > _MOST_BOXES:
            return None
        smallest = min(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]), default=None)
        box = smallest if self.as_released else next(iter(boxes), None)
        place = centre_of(image.size) if box is None else box
        make = released_fields if self.as_released else growing_fields
        parts = crops(image, make(place, image.size, self.fields, self.growth))
        question, system = prompt
        inputs = gaze.inputs([[part] for part in parts], [question] * len(parts), system)
        seen = Continuations(gaze.model, inputs)
        if before:
            seen.feed(torch.tensor([before] * len(parts)))
        pairs = furthest_pairs(seen.logits, self.pairs, self.as_released)
        scores = contrasted(seen.logits, pairs, self.weight, 0.0 if self.as_released else self.beta)
        return Looked(scores, place, box is not None, tuple(pairs))

    def _chooser(self, image: Image.Image, device: torch.device) -> Any:
        """The number of the best of several answers so far, by the sentence that each ends in."""
        if self.matcher is None:
            return None
        given: Any = self.matcher
        matcher: Matcher = clip_matcher(given, str(device)) if isinstance(given, str) else given

        def choose(texts: list[str]) -> int:
            scores = match(matcher, image, [_last_sentence(text) for text in texts])
            return scores.index(max(scores))

        return choose


def _last_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s+", text.strip())[-1]
