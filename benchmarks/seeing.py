"""Which map points at the thing that was asked for? Maps of the demo model on 300 scenes.

    python benchmarks/seeing.py [--only phrases] [--work DIR] [--output DIR]

Scenes are drawn for this study alone, which needs the font of docs/guide/demo-model.md. Finished scenes are
kept in --work, so an interrupted run goes on where it stopped. --only measures some maps anew and leaves the
others in the study's file as they are. docs/studies/maps.md tells what came out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawing import draw_curves, draw_examples, draw_heads, draw_layers, draw_pointing
from machine import machine
from PIL import Image
from torch import Tensor

import regaze
from regaze import Gaze, HeadKnockout, Record
from regaze.cli.models import quiet_libraries
from regaze.demo import SceneObject
from regaze.demo.phrases import existence_question
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.demo.training.render import GRID, SIDE, render_scene
from regaze.interventions.carve.contrast import contrastive_map
from regaze.interventions.gift.calibration import find_saliency_layer
from regaze.interventions.gift.shift_map import gaze_shift_map
from regaze.toolkit.analysis.answers import greedy_answer, with_answers
from regaze.toolkit.analysis.boxes import covered_share, holds_centre
from regaze.toolkit.analysis.causal import head_effects, ranked_heads, without_heads
from regaze.toolkit.analysis.faithfulness import (
    agreement,
    mass_inside,
    occlusion_saliency,
    pearson,
    perturbation_curve,
    points_inside,
    shuffle_regions,
    spearman,
)
from regaze.toolkit.analysis.flow import attention_flow, rollout
from regaze.toolkit.analysis.intervals import Estimate, estimate
from regaze.toolkit.analysis.maps import image_map
from regaze.toolkit.analysis.occlusion import ImageCells
from regaze.toolkit.analysis.phrases import PhraseEmbedding, PhraseMaps, optimise_phrase
from regaze.toolkit.analysis.relevance import relevance
from regaze.toolkit.model import compat
from regaze.toolkit.prompts.geometry import Geometry

#: seeds of scenes that neither training nor any other study drew
SEED, OTHER_SEED, KNOWN_SEED = 11, 12, 13
SCENES, OTHER_SCENES, KNOWN_SCENES = 300, 100, 400
#: to how many known boxes of its category a phrase is fitted, at most
KNOWN_BOXES = 4
#: a question that names nothing; its answer is a number
NEUTRAL = "How many objects are there in the image?"
#: how many of the scenes have curves, descriptions, and heads removed, which take longer
CURVES, CAPTIONS, KNOCKOUTS = 60, 50, 100
POINTS, COUNTS, DRAWS = 9, (1, 2, 4, 8), 5
GEOMETRY = Geometry.squash((SIDE, SIDE), (SIDE, SIDE))
CELLS = (GRID, GRID)


@dataclass(frozen=True)
class Case:
    """A scene of at least two things, and a question about one of them."""

    image: Image.Image
    thing: SceneObject
    others: tuple[SceneObject, ...]

    @property
    def question(self) -> str:
        return existence_question(self.thing.category)


@dataclass(frozen=True)
class Chosen:
    """What was chosen on other scenes: a head for the row that answers and one for the row of the asked-for
    word, by the mass in the box; and the layer of the gaze shift, by the method's own rule, without boxes.
    """

    heads: dict[str, tuple[int, int]]
    shift_layer: int


def cases(seed: int, count: int) -> list[Case]:
    """The first scenes of a seed that hold two things or more; which one is asked for is drawn, too."""
    found: list[Case] = []
    index = 0
    while len(found) < count:
        scene = render_scene(seed, "heldout", index)
        if len(scene.objects) > 1:
            chosen = int(np.random.default_rng([seed, index]).integers(len(scene.objects)))
            others = tuple(thing for place, thing in enumerate(scene.objects) if place != chosen)
            found.append(Case(scene.image(), scene.objects[chosen], others))
        index += 1
    return found


# Maps ---------------------------------------------------------------------------------------------------


def record_of(gaze: Gaze, image: Image.Image, question: str) -> Record:
    """Attention of the rows after the image on the image."""
    with gaze.recording(slices="image", rows="text") as record, torch.inference_mode():
        gaze.model(**gaze.inputs(image, question), use_cache=False)
    return record


def maps_of(gaze: Gaze, case: Case, record: Record, cells: ImageCells, best: Chosen) -> dict[str, Tensor]:
    """Every map of a case, [8, 8] each."""
    inputs = gaze.inputs(case.image, case.question)
    general = record_of(gaze, case.image, DETAIL_PROMPTS[0])
    last = [gaze.model.config.text_config.num_hidden_layers - 1]
    maps: dict[str, Tensor] = {}
    for row, token in (("answer", 0), ("word", case.thing.category)):
        layer, head = best.heads[row]
        maps[f"{row}: last layer, mean"] = image_map(record, token=token, layers=last)
        maps[f"{row}: all layers, mean"] = image_map(record, token=token)
        maps[f"{row}: all layers, max"] = image_map(record, token=token, over="max")
        maps[f"{row}: one chosen head"] = image_map(record, token=token, layers=[layer], heads=[head])
    maps["contrastive"] = contrastive_map(record, general)
    maps["gaze shift, all layers"] = gaze_shift_map(record)
    maps["gaze shift, one layer"] = gaze_shift_map(record, layers=[best.shift_layer])
    maps["rollout"] = rollout(gaze, inputs).image_map()
    maps["attention flow"] = attention_flow(gaze, inputs).image_map()
    maps["gradient, last row"] = relevance(gaze, inputs, propagate=False).image_map()
    maps["gradient, propagated"] = relevance(gaze, inputs).image_map()
    maps["occlusion"] = occlusion_saliency(cells, cells.count).sum(0).view(CELLS)
    return {name: each.detach().double() for name, each in maps.items()}


def layer_maps(record: Record, case: Case) -> dict[str, Tensor]:
    """Mean over heads in each layer, for both rows, [layers, 8, 8]."""
    return {
        row: image_map(record, token=token, over="none").mean(1)
        for row, token in (("answer", 0), ("word", case.thing.category))
    }


# Words that nobody has said -----------------------------------------------------------------------------


def unasked(gaze: Gaze, image: Image.Image) -> PhraseMaps:
    """Maps of phrases after a question and an answer that name no thing, over the generation's own cache."""
    inputs = gaze.inputs(image, NEUTRAL)
    options = {"do_sample": False, "max_new_tokens": 8, "return_dict_in_generate": True}
    output = gaze.model.generate(**inputs, **options)  # type: ignore[operator]
    return PhraseMaps(gaze, inputs, compat.cache_of(output))


class FittedPhrases:
    """The embeddings of a category, fitted when first needed to known boxes in scenes of their own."""

    def __init__(self, gaze: Gaze):
        self.gaze, self._made = gaze, dict[str, PhraseEmbedding]()
        self._known: dict[str, list[tuple[Image.Image, Any]]] = {}
        for case in cases(KNOWN_SEED, KNOWN_SCENES):
            for thing in (case.thing, *case.others):
                self._known.setdefault(thing.category, []).append((case.image, thing.box))

    def of(self, category: str) -> PhraseEmbedding:
        if category not in self._made:
            examples = [
                (unasked(self.gaze, image), covered_share([box], GEOMETRY, CELLS))
                for image, box in self._known[category][:KNOWN_BOXES]
            ]
            self._made[category] = optimise_phrase(examples, category, steps=40)
        return self._made[category]


def measure_phrases(
    gaze: Gaze, case: Case, head: tuple[int, int], fitted: FittedPhrases, index: int
) -> dict[str, Any]:
    """Pointing and mass of the maps of the thing's word where nobody has said it, as plain JSON."""
    maps, word = unasked(gaze, case.image), case.thing.category
    named = {
        "phrase: all layers, mean": maps.of(word),
        "phrase: all layers, scores": maps.of(word, scores=True),
        "phrase: one chosen head": maps.of(word, layers=[head[0]], heads=[head[1]]),
        "phrase, fitted: all layers, mean": maps.of(fitted.of(word)),
    }
    figures = pointing_of(torch.cat([*named.values()]).double(), case, index)
    return {
        "maps": {
            name: {kind: _plain(values[i]) for kind, values in figures.items()}
            for i, name in enumerate(named)
        }
    }


def phrase_head(gaze: Gaze, chosen: Iterable[Case]) -> tuple[int, int]:
    """The head whose row of an appended word has the most mass on the thing, on other scenes."""
    masses = [
        mass_inside(
            unasked(gaze, case.image).of(case.thing.category, over="none")[0],
            covered_share([case.thing.box], GEOMETRY, CELLS),
        )
        for case in chosen
    ]
    return ranked_heads(torch.stack(masses).nanmean(0))[0]


# Measuring ----------------------------------------------------------------------------------------------


def pointing_of(maps: Tensor, case: Case, index: int) -> dict[str, Tensor]:
    """How well maps [n, 8, 8] point at the case's thing, and shuffled ones, [n] each."""
    box, others = [case.thing.box], [thing.box for thing in case.others]
    inside, share = holds_centre(box, GEOMETRY, CELLS), covered_share(box, GEOMETRY, CELLS)
    control = shuffle_regions(maps, index, dims=2)
    return {
        "hit": points_inside(maps, inside),
        "mass": mass_inside(maps, share),
        "hit_shuffled": points_inside(control, inside),
        "mass_shuffled": mass_inside(control, share),
        "hit_other": points_inside(maps, holds_centre(others, GEOMETRY, CELLS)),
    }


def hider(gaze: Gaze, case: Case, question: str, longest: int = 4) -> ImageCells:
    """What hides cells of the case's image from the model's own answer to a question."""
    answer = greedy_answer(gaze, case.image, question, longest)
    return ImageCells(gaze, case.image, question, answer, geometry=GEOMETRY, batch_size=64)


def measure(gaze: Gaze, case: Case, best: Chosen, index: int) -> dict[str, Any]:
    """Every figure of one case, as plain JSON."""
    cells, record = hider(gaze, case, case.question), record_of(gaze, case.image, case.question)
    maps = maps_of(gaze, case, record, cells, best)
    names, stacked = list(maps), torch.stack(list(maps.values()))
    box, others = [case.thing.box], [thing.box for thing in case.others]
    inside, share = holds_centre(box, GEOMETRY, CELLS), covered_share(box, GEOMETRY, CELLS)
    beside = holds_centre(others, GEOMETRY, CELLS)
    control, hiding = (
        shuffle_regions(stacked, index, dims=2),
        maps["occlusion"].flatten().expand(len(names), -1),
    )
    figures = {
        **pointing_of(stacked, case, index),
        "pearson": pearson(stacked.flatten(1), hiding),
        "spearman": spearman(stacked.flatten(1), hiding),
        "pearson_shuffled": pearson(control.flatten(1), hiding),
        "spearman_shuffled": spearman(control.flatten(1), hiding),
    }
    chance = {"hit": inside, "mass": share, "hit_other": beside}
    return {
        "asked": case.thing.category,
        "answer": str(gaze.reader.tokenizer.decode(cells.answer)).strip(),
        "chance": {kind: float(each.double().mean()) for kind, each in chance.items()},
        "maps": {
            name: {kind: _plain(values[i]) for kind, values in figures.items()}
            for i, name in enumerate(names)
        },
        "curves": curves_of(cells, {**maps, "the box itself": share, "shuffled": control[0]}, index),
        "layers": {
            row: {"hit": _plain(points_inside(each, inside)), "mass": _plain(mass_inside(each, share))}
            for row, each in layer_maps(record, case).items()
        },
    }


def curves_of(cells: ImageCells, maps: dict[str, Tensor], index: int) -> dict[str, dict[str, Any]] | None:
    """Deletion and insertion curves of all maps, for the first scenes only."""
    if index >= CURVES:
        return None
    orders = torch.stack(list(maps.values())).flatten(1)
    found = {}
    for kind in ("deletion", "insertion"):
        curve = perturbation_curve(cells, orders, kind, points=POINTS, seed=index)
        found[kind] = {name: _plain(score) for name, score in zip(maps, curve.score, strict=True)}
    return found


def head_masses(gaze: Gaze, chosen: Iterable[Case]) -> dict[str, Tensor]:
    """Mean share of each head's image attention that lies on the asked-for thing, [layers, Hq], two rows."""
    found: dict[str, list[Tensor]] = {"answer": [], "word": []}
    for case in chosen:
        record = record_of(gaze, case.image, case.question)
        share = covered_share([case.thing.box], GEOMETRY, CELLS)
        for row, token in (("answer", 0), ("word", case.thing.category)):
            found[row].append(mass_inside(image_map(record, token=token, over="none"), share))
    return {row: torch.stack(masses).nanmean(0) for row, masses in found.items()}


def knock_out(gaze: Gaze, chosen: list[Case], masses: dict[str, Tensor]) -> dict[str, Any]:
    """Without the heads that look at the asked-for thing, and without as many others of their layers."""
    batches = []
    for start in range(0, len(chosen), 50):
        part = chosen[start : start + 50]
        answers = [greedy_answer(gaze, case.image, case.question, 4) for case in part]
        padded = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=-100)
        batches.append((gaze.inputs([c.image for c in part], [c.question for c in part]), padded))
    score = without_heads(gaze, batches, lambda heads: HeadKnockout(heads=heads))
    found = {}
    for row, mass in masses.items():
        ranking = ranked_heads(mass)
        effects = head_effects(score, ranking, COUNTS, draws=DRAWS)
        found[row] = {
            "heads": [f"{layer}-{head}" for layer, head in ranking[: max(COUNTS)]],
            "plain": estimate(effects.plain).rounded(3),
            "change": {
                str(count): {kind: value.rounded(3) for kind, value in effects.change(place).items()}
                for place, count in enumerate(COUNTS)
            },
        }
    return found


def captions(gaze: Gaze, chosen: list[Case]) -> dict[str, Any]:
    """Agreement of maps with occlusion for each word of a description, not for one yes or no."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed, case in enumerate(chosen):
        cells = hider(gaze, case, DETAIL_PROMPTS[0], 48)
        saliency = occlusion_saliency(cells, cells.count).double()
        inputs = with_answers(gaze, gaze.inputs(case.image, DETAIL_PROMPTS[0]), cells.answer[None])
        maps = caption_maps(gaze, inputs, len(cells.answer))
        mean = maps["all layers, mean"]
        maps |= {"shuffled": shuffle_regions(mean, seed), "another word's": mean.roll(1, 0)}
        for name, each in maps.items():
            linear, ranks = agreement(each, saliency), agreement(each, saliency, rank=True)
            values = (linear.mean, ranks.mean, linear.pooled, ranks.pooled)
            kinds = ("pearson_tokens", "spearman_tokens", "pearson_pooled", "spearman_pooled")
            for kind, value in zip(kinds, values, strict=True):
                found.setdefault(name, {}).setdefault(kind, []).append(value)
    return {name: {k: estimate(v).rounded(3) for k, v in kinds.items()} for name, kinds in found.items()}


def caption_maps(gaze: Gaze, inputs: Any, count: int) -> dict[str, Tensor]:
    """Maps of the rows that predict each token of an answer, [T, cells]."""
    with gaze.recording(slices="image", rows="text", tokens=inputs.tokens) as record, torch.inference_mode():
        gaze.model(**inputs, use_cache=False)
    rows = record[0].image_maps()[:, :, -count - 1 : -1].flatten(3)  # [layers, Hq, T, cells]
    flow, graded = (
        rollout(gaze, inputs, rows="answer"),
        relevance(gaze, inputs, rows="answer", propagate=False),
    )
    return {
        "last layer, mean": rows[-1].mean(0),
        "all layers, mean": rows.mean((0, 1)),
        "all layers, max": rows.amax((0, 1)),
        "rollout": torch.stack([flow.image_map(row).flatten() for row in range(count)]),
        "gradient, last row": torch.stack([graded.image_map(row).flatten() for row in range(count)]),
    }


def _plain(values: Tensor) -> Any:
    """Plain numbers; nan becomes None, which JSON has."""
    numbers = np.round(values.double().numpy(), 5)
    return np.where(np.isnan(numbers), None, numbers).tolist()


# The study ----------------------------------------------------------------------------------------------


def kept(path: Path, count: int, make: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """`count` results in order; those that an earlier run wrote to the file are not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    with path.open("a", encoding="utf-8") as file:
        for index in range(len(found), count):
            found.append(make(index))
            file.write(json.dumps(found[-1]) + "\n")
            file.flush()
    return found[:count]


def over(found: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float | None]) -> Estimate:
    """Mean and interval over scenes."""
    return estimate([np.nan if (value := figure(result)) is None else value for result in found])


def map_means(found: list[dict[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Each figure of each map."""
    return {
        name: {kind: over(found, lambda r, n=name, k=kind: r["maps"][n][k]) for kind in kinds}
        for name, kinds in found[0]["maps"].items()
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the scenes with their intervals."""

    def area(result: dict[str, Any], kind: str, name: str) -> float:
        return float(np.trapezoid(result["curves"][kind][name]) / (POINTS - 1))

    curved = [result for result in found if result["curves"]]
    figures: dict[str, Any] = {
        "chance": {kind: over(found, lambda r, k=kind: r["chance"][k]) for kind in found[0]["chance"]},
        "maps": map_means(found),
        "area": {
            kind: {
                name: {
                    "area": over(curved, lambda r, k=kind, n=name: area(r, k, n)),
                    "above_shuffled": over(
                        curved, lambda r, k=kind, n=name: area(r, k, n) - area(r, k, "shuffled")
                    ),
                }
                for name in names
            }
            for kind, names in curved[0]["curves"].items()
        },
        "hit_by_answer": {
            said: {
                name: over([r for r in found if r["answer"] == said], lambda r, n=name: r["maps"][n]["hit"])
                for name in found[0]["maps"]
            }
            for said in sorted({result["answer"] for result in found})
        },
        "layers": {
            row: {
                kind: [
                    over(found, lambda r, w=row, k=kind, i=i: r["layers"][w][k][i])
                    for i in range(len(values))
                ]
                for kind, values in kinds.items()
            }
            for row, kinds in found[0]["layers"].items()
        },
    }
    return _rounded(figures)


def _rounded(figures: Any) -> Any:
    if isinstance(figures, Estimate):
        return figures.rounded(3)
    if isinstance(figures, dict):
        return {name: _rounded(each) for name, each in figures.items()}
    return [_rounded(each) for each in figures]


def study_phrases(gaze: Gaze, chosen: list[Case], work: Path) -> dict[str, Any]:
    """Means over the scenes of the maps of phrases, by map."""
    head, fitted = phrase_head(gaze, cases(OTHER_SEED, OTHER_SCENES)), FittedPhrases(gaze)
    found = kept(
        work / "phrases.jsonl",
        len(chosen),
        lambda index: measure_phrases(gaze, chosen[index], head, fitted, index),
    )
    layer, number = head
    return {"phrase_head": f"{layer}-{number}", "phrases": _rounded(map_means(found))}


def study_asked(gaze: Gaze, chosen: list[Case], work: Path, output: Path) -> dict[str, Any]:
    """Everything about the thing that was asked for, and its figures."""
    others = cases(OTHER_SEED, OTHER_SCENES)
    masses = head_masses(gaze, others)
    layer = find_saliency_layer(gaze, [case.image for case in others], [case.question for case in others])
    best = Chosen({row: ranked_heads(mass)[0] for row, mass in masses.items()}, layer)
    found = kept(work / "scenes.jsonl", len(chosen), lambda index: measure(gaze, chosen[index], best, index))
    study = {
        "scenes": len(found),
        "answers": dict(Counter(result["answer"] for result in found)),
        "chosen": {
            "heads": {row: f"{layer}-{head}" for row, (layer, head) in best.heads.items()},
            "shift_layer": best.shift_layer,
        },
        **summary(found),
        "captions": captions(gaze, chosen[:CAPTIONS]),
        "knockout": knock_out(gaze, chosen[:KNOCKOUTS], masses),
    }
    draw_curves([result for result in found if result["curves"]], POINTS, output / "curves.png")
    draw_layers(study, output / "layers.png")
    draw_heads(masses, output / "heads.png")
    examples = []
    for case in chosen[:3]:
        record = record_of(gaze, case.image, case.question)
        examples.append((case, maps_of(gaze, case, record, hider(gaze, case, case.question), best)))
    draw_examples(examples, output / "examples.png")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--only", choices=["phrases"], help="leave the rest of the study's file as it is")
    parser.add_argument("--work", type=Path, default=Path("out/seeing"))
    parser.add_argument("--output", type=Path, default=Path("docs/studies/seeing"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    facts, begun = machine(), time.monotonic()
    gaze = regaze.wrap(*regaze.load("demo"))
    chosen, file = cases(SEED, options.scenes), options.output / "study.json"
    if options.only:
        study = json.loads(file.read_text(encoding="utf-8"))
    else:
        study = {"machine": facts, **study_asked(gaze, chosen, options.work, options.output)}
    study |= study_phrases(gaze, chosen, options.work)
    study["phrases_seconds" if options.only else "seconds"] = round(time.monotonic() - begun)
    file.write_text(json.dumps(study, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_pointing(study, options.output / "pointing.png")


if __name__ == "__main__":
    main()
