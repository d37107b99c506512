"""`find_objects`: boxes and masks of objects that a model names or is asked about, without training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regaze.display import short_repr
from regaze.errors import BadParameterError
from regaze.toolkit.analysis.answers import token_map_of, with_answers
from regaze.toolkit.analysis.flow import Flow, attention_flow
from regaze.toolkit.analysis.objects.regions import (
    bounding_box,
    contrast,
    main_region,
    overlap,
    pixel_map,
    prompt_points,
)
from regaze.toolkit.analysis.objects.segmenter import PromptedSegmenter, Segmenter
from regaze.toolkit.prompts.content_words import CONTENT_TAGS, find_tagger, read_tokens
from regaze.toolkit.prompts.geometry import Box
from regaze.toolkit.prompts.images import ImageLike, open_image
from regaze.toolkit.prompts.token_map import Role
from regaze.toolkit.wrap import Gaze

#: What is asked where the objects are named, and where the model names them.
ABOUT_A_WORD, OPEN = ("Is there a {} in the image?",), ("Describe the image in detail.",)


@dataclass(frozen=True, eq=False)
class FoundObject:
    """An object that a model's attention points at.

    Attributes:
        word: its name. box: left, upper, right and lower edge in pixels of the image.
        score: of the segmenter, or without one how far the region stands out of the map: 1 - (mean outside) /
            (mean inside). It says nothing about whether there is such an object.
        mask: [H, W] bool, the segment, or without a segmenter the region of the map.
        question: that which found it.
    """

    word: str
    box: Box
    score: float
    mask: Tensor
    question: str

    __repr__ = short_repr


def find_objects(
    gaze: Gaze,
    image: ImageLike,
    words: Sequence[str] | None = None,
    *,
    questions: Sequence[str] | None = None,
    scales: Sequence[float] = (1.0,),
    segmenter: Segmenter | None = None,
    threshold: float = 0.5,
    pairs: int = 1,
    refine: int = 1,
    instances: int = 1,
    suppress: float = 0.5,
    maps: Callable[..., Flow] = attention_flow,
    max_new_tokens: int = 64,
) -> list[FoundObject]:
    """Find objects by the flow of attention from their names to the image, the surest first.

    Source: VL-SAM, "Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts"
    (arXiv:2410.05963). The map of a word (`maps`) is cut at a share of its top; the strongest pixel of its
    largest region is a positive point, the weakest one outside a negative point, and both prompt a segmenter,
    which then refines its mask. What was found is taken out of the map before the next instance is looked
    for; the paper masks the map, too, and what we know of it does not say how. Corner crops of the image and
    several questions find more; of boxes of the same word that overlap the surest stays.

    Every word has a region in its map, also one that is not in the image: check with an answer.

    Args:
        gaze: the wrapped model. image: a picture or its path.
        words: the objects. None: the nouns in the model's answers (without spaCy all words but those of a
            closed list).
        questions: one with "{}" asks about each word, and the word's row in it is read. Any other is answered
            by the model, and the rows of those words are read that it says. None: `ABOUT_A_WORD` where there
            are words, else `OPEN`. The paper asks ten.
        scales: 1 is the whole image; below 1 each stands for four corner crops with sides of this share.
        segmenter: see `load_segmenter`; None: boxes and masks are those of the map's regions.
        threshold: share of the map's top where its regions end.
        pairs: of points per prompt. refine: how often a mask is given back to the segmenter.
        instances: at most so many of each word in each map.
        suppress: of two boxes of one word with a larger overlap (intersection over union) one stays.
        maps: `attention_flow`, `rollout`, `relevance` or another function of (gaze, inputs, rows=positions).
        max_new_tokens: of an answer.

    Raises:
        BadParameterError: questions and words that do not fit, scales outside of (0, 1], counts below 1.
        InputError: an image that cannot be read or has no grid.
    """
    asked = questions or (OPEN if words is None else ABOUT_A_WORD)
    _check(words, questions, asked, scales, min(pairs, instances, 1 + refine))
    whole = open_image(image)
    found: list[FoundObject] = []
    for crop_box in _crops(whole.size, scales):
        crop = whole.crop(crop_box)
        prompted = None if segmenter is None else segmenter(crop)
        for question in asked:
            for word, heat in _word_maps(gaze, crop, question, words, maps, max_new_tokens):
                for mask, score in _instances(heat, prompted, threshold, pairs, refine, instances):
                    there = _in_whole(mask, crop_box, whole.size)
                    found.append(FoundObject(word, bounding_box(there), score, there, question))
    return _surest(found, suppress)


def _check(words: Any, questions: Any, asked: Sequence[str], scales: Sequence[float], least: int) -> None:
    """Raise BadParameterError for choices of `find_objects` that do not fit; `least`: of all counts."""
    if isinstance(words, str) or isinstance(questions, str):
        raise BadParameterError("words and questions are lists of texts, got a single text")
    if words is None and any("{}" in question for question in asked):
        raise BadParameterError('a question with "{}" asks about words: give some')
    if not scales or any(not 0 < scale <= 1 for scale in scales):
        raise BadParameterError(f"scales are shares of the image's sides in (0, 1], got {list(scales)}")
    if least < 1:
        raise BadParameterError("pairs and instances are at least 1, refine at least 0")


def _in_whole(mask: Tensor, box: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """A mask of a crop as one of the whole image, [H, W] bool."""
    left, upper, right, lower = box
    return F.pad(mask, (left, size[0] - right, upper, size[1] - lower))


def _crops(size: tuple[int, int], scales: Sequence[float]) -> list[tuple[int, int, int, int]]:
    """The whole image, or the four corner crops of each scale, as pixel boxes."""
    crops = []
    for scale in scales:
        width, height = (max(1, round(scale * side)) for side in size)
        for left in dict.fromkeys((0, size[0] - width)):
            for upper in dict.fromkeys((0, size[1] - height)):
                crops.append((left, upper, left + width, upper + height))
    return crops


def _word_maps(
    gaze: Gaze,
    image: Image.Image,
    question: str,
    words: Sequence[str] | None,
    maps: Callable[..., Flow],
    max_new_tokens: int,
) -> Iterator[tuple[str, Tensor]]:
    """Each word of a question or of its answer, with its map over the image's pixels."""
    if words is not None and "{}" in question:
        for word in words:
            inputs = gaze.inputs([image], [_about(question, word)])
            rows = _positions(gaze, inputs, Role.QUERY, [word])
            yield from _maps_of(gaze, inputs, rows, image.size, maps)
        return
    inputs = gaze.inputs([image], [question])
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens}
    options["pad_token_id"] = gaze.reader.tokenizer.pad_token_id
    with torch.inference_mode():
        sequences = gaze.model.generate(**inputs, **options)
    forced = with_answers(gaze, inputs, sequences[:, inputs["input_ids"].shape[1] :])
    rows = _positions(gaze, forced, Role.OUTPUT, words)
    yield from _maps_of(gaze, forced, rows, image.size, maps)


def _maps_of(
    gaze: Gaze,
    inputs: Any,
    rows: Sequence[tuple[str, int]],
    size: tuple[int, int],
    maps: Callable[..., Flow],
) -> Iterator[tuple[str, Tensor]]:
    if rows:
        flow = maps(gaze, inputs, rows=[position for _, position in rows])
        for number, (word, _) in enumerate(rows):
            yield word, pixel_map(flow, size, row=number)


def _about(question: str, word: str) -> str:
    """The question about a word, with "an" before a vowel."""
    article = "an" if word[:1].lower() in tuple("aeiou") else "a"
    return re.sub(r"\b[Aa] \{\}", f"{article} {{}}", question).replace("{}", word)


def _positions(gaze: Gaze, inputs: Any, role: Role, words: Sequence[str] | None) -> list[tuple[str, int]]:
    """Where words occur in the text of a role: (word, position of its last token), in the words' order.

    None stands for all nouns.
    """
    columns = token_map_of(gaze, inputs).columns(role)
    ids = inputs["input_ids"][0].cpu()[columns].tolist()
    text, offsets = read_tokens(gaze.reader.tokenizer, ids)
    if words is None:
        words = list(dict.fromkeys(w.text for w in find_tagger("auto")(text) if w.tag in _NOUNS))
    found = []
    for word in words:
        for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
            last = [
                n for n, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()
            ]
            if last:
                found.append((word, int(columns[last[-1]])))
    return found


#: Tags of words that can name an object; that of the tagger without spaCy among them.
_NOUNS = CONTENT_TAGS - {"VERB", "ADJ", "ADV", "NUM"}


def _instances(
    heat: Tensor,
    segmenter: PromptedSegmenter | None,
    threshold: float,
    pairs: int,
    refine: int,
    instances: int,
) -> Iterator[tuple[Tensor, float]]:
    """Masks in a map with their scores, from the largest region on: segments, or the regions themselves."""
    rest, top = heat.clone(), float(heat.max())
    for _ in range(instances):
        region = main_region(rest, threshold, top)
        if not bool(region.any()):
            return
        mask, score = region, contrast(heat, region)
        if segmenter is not None:
            points, labels = prompt_points(rest, region, pairs)
            mask, score, logits = segmenter(points, labels, None)
            for _ in range(refine if logits is not None else 0):
                mask, score, logits = segmenter(points, labels, logits)
        rest = rest.masked_fill(region | mask, 0.0)
        if bool(mask.any()):
            yield mask, score


def _surest(found: list[FoundObject], suppress: float) -> list[FoundObject]:
    """The objects by falling score, without those that overlap a surer one of the same word."""
    kept: list[FoundObject] = []
    for each in sorted(found, key=lambda each: -each.score):
        if all(each.word != other.word or overlap(each.box, other.box) <= suppress for other in kept):
            kept.append(each)
    return kept
