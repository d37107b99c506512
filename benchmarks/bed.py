"""Experiments on the bed: VAR with and without visual sinks, and heads that look, hallucinate and retrieve.

    python benchmarks/bed.py sinks heads hallucination retrieval --scenes 100
    python benchmarks/bed.py base --base FOLDER --base OTHER

Each part writes its figures into the file of results and leaves those of other parts there. Answers lie in
--work, so that an interrupted part goes on with the same line. Heads are chosen on the first half of the
scenes and removed on the second. docs/guide/bed.md shows what came out.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor

import regaze
from regaze import HeadKnockout
from regaze.bed.base import load_base
from regaze.bed.scenes import QUESTIONS_FILE, questions_file, read_questions, scenes
from regaze.bed.training.asking import Asker
from regaze.bed.training.measure import CAPTION_TOKENS
from regaze.bed.training.sink_figures import sink_figures
from regaze.bed.training.targets import PatchTargets
from regaze.cli.models import quiet_libraries
from regaze.demo.phrases import existence_question
from regaze.demo.shipped import Scene, SceneObject
from regaze.demo.training.conversations import DETAIL_PROMPTS
from regaze.demo.training.measure import mentioned
from regaze.demo.training.render import GRID, SIDE
from regaze.errors import InputError
from regaze.eval import EvalConfig, EvalTask, Pope, evaluate
from regaze.eval.benchmarks.chair.benchmark import Chair
from regaze.eval.benchmarks.common.base import with_items
from regaze.interventions import ADHH, VAR, Method
from regaze.interventions.adhh import Caption, find_hallucination_heads
from regaze.interventions.controls import RandomHeads
from regaze.interventions.retrieval_heads import NEEDLES, RetrievalHeads, find_retrieval_heads, read_haystack
from regaze.toolkit.analysis import covered_share, image_map, ranked_heads
from regaze.toolkit.prompts.geometry import Geometry
from regaze.writing import replace_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/bed.json"
SPLITS = ("random", "popular", "adversarial")
GEOMETRY, CELLS = Geometry.squash((SIDE, SIDE), (SIDE, SIDE)), (GRID, GRID)
SINK_IMAGES = 40
#: VAR as the paper has it for questions, and with everything moved in every head
VARS = {"VAR": VAR(), "VAR, all": VAR(moved=1.0, rho=0.0, min_image_mass=0.0)}
#: heads that are removed, and draws of as many others
HEADS, DRAWS = 10, 3
LENGTHS, DEPTHS = (250, 500, 1000), (10, 50, 90)

Head = tuple[int, int]
Part = Callable[["Bed"], dict[str, Any]]


@dataclass(frozen=True)
class Bed:
    """The model, the scenes that it is asked about, and the options of the command.

    Attributes:
        bases: folders or hub ids; None: the one that is found. work: folder of answers.
    """

    gaze: regaze.Gaze
    scenes: Sequence[Scene]
    bases: Sequence[str | None]
    weights: Path | None
    work: Path
    captions: int
    haystacks: Sequence[Path]

    @property
    def chosen_on(self) -> Sequence[Scene]:
        """The first half of the scenes."""
        return self.scenes[: len(self.scenes) // 2]

    @property
    def tested_on(self) -> Sequence[Scene]:
        """The second half."""
        return self.scenes[len(self.scenes) // 2 :]


# Asking -------------------------------------------------------------------------------------------------


def asked(
    bed: Bed, name: str, benchmark: Any, methods: Mapping[str, Method], among: Sequence[Scene], tokens: int
) -> dict[str, Any]:
    """`regaze.eval.evaluate` on some scenes, in a folder of this name: what the pages show, by condition."""
    paths = {scene.path for scene in among}
    task = EvalTask(
        with_items(benchmark, [item for item in benchmark.items if item.image in paths]),
        {"max_new_tokens": tokens},
    )
    config = EvalConfig(batch_size=16, raise_method_errors=True)
    folder = bed.work / name
    results = evaluate(bed.gaze, [task], methods, folder, model_name="bed", config=config)
    (found,) = results["benchmarks"].values()
    return {label: shown(each) for label, each in {"plain": found["plain"], **found["methods"]}.items()}


def shown(condition: Mapping[str, Any]) -> dict[str, Any]:
    """Of a condition's results: its answers, how many of them changed, and the first scorer's figures."""
    splits = {}
    for split, figures in condition["figures"].items():
        scorer = next(entry for entry in figures.values() if isinstance(entry, dict) and "plain" in entry)
        own = scorer["edited"] if "edited" in scorer else scorer["plain"]
        splits[split] = {"questions": figures["questions"], **_kept(own)}
        if "difference" in scorer:
            splits[split]["difference"] = _kept(scorer["difference"])
    return {"asked": condition["asked"], "changed": condition["answers_changed"], "splits": splits}


def _kept(figures: Mapping[str, Any]) -> dict[str, Any]:
    names = ("accuracy", "chair_s", "chair_i", "recall", "words")
    kept = {name: figures[name] for name in names if name in figures}
    if counts := figures.get("counts"):
        for name, label, right in (("present", "label_yes", "yes"), ("absent", "label_no", "no")):
            kept[name] = counts[label][right] / max(1, sum(counts[label].values()))
    return kept


# Parts --------------------------------------------------------------------------------------------------


def sinks(bed: Bed) -> dict[str, Any]:
    """Sinks by layer; VAR with the image's sinks, and with the background in their place."""
    images = [scene.image() for scene in bed.scenes[:SINK_IMAGES]]
    benchmark, found = Pope.of_bed(splits=("adversarial",)), dict[str, Any]()
    for name, change in {"sinks": nullcontext, "background": sinks_as_background}.items():
        with change(bed.gaze):
            found[name] = {
                "figures": sink_figures(bed.gaze, images, DETAIL_PROMPTS[0]),
                "answers": asked(bed, f"sinks-{name}", benchmark, VARS, bed.scenes, tokens=4),
            }
    return found


@contextmanager
def sinks_as_background(gaze: regaze.Gaze) -> Iterator[None]:
    """Inside, an image token that is nearest to the sink's target is the background's target instead."""
    model: Any = gaze.model
    targets = PatchTargets.of(model.get_input_embeddings().weight.cpu(), gaze.reader.tokenizer)
    known = torch.stack([targets.sink, targets.background, *targets.categories]).to(model.device)

    def put_background(module: Any, inputs: Any, output: Tensor) -> Tensor:
        distances = torch.cdist(output.detach().float().flatten(0, -2), known)
        is_sink = (distances.argmin(-1) == 0).view(*output.shape[:-1], 1)
        return torch.where(is_sink, known[1].to(output.dtype), output)

    handle = model.model.multi_modal_projector.register_forward_hook(put_background)
    try:
        yield
    finally:
        handle.remove()


def heads(bed: Bed) -> dict[str, Any]:
    """Remove the heads that look from a category's word at the thing, and as many others."""
    masses = [looking(bed.gaze, scene, thing) for scene in bed.chosen_on for thing in scene.objects]
    mean = torch.stack(masses).mean(0)
    ranking = ranked_heads(mean)
    best, rest = tuple(ranking[:HEADS]), ranking[HEADS:]
    methods: dict[str, Method] = {f"the {HEADS} that look": HeadKnockout(heads=best)}
    for seed in range(DRAWS):
        methods[f"others of these layers, draw {seed + 1}"] = RandomHeads(HeadKnockout(heads=best), seed=seed)
        drawn = tuple(random.Random(seed).sample(rest, HEADS))
        methods[f"others of any layer, draw {seed + 1}"] = HeadKnockout(heads=drawn)
    benchmark = Pope.of_bed(splits=("random", "adversarial"))
    answers = asked(bed, "heads", benchmark, methods, bed.tested_on, tokens=4)
    return {
        "words": len(masses),
        "heads": [[*head, float(mean[head])] for head in best],
        "mean": float(mean.mean()),
        "answers": answers,
    }


def looking(gaze: regaze.Gaze, scene: Scene, thing: SceneObject) -> Tensor:
    """Attention of the asked-for word's row on the patches of the thing, [layers, heads]."""
    inputs = gaze.inputs(scene.image(), existence_question(thing.category))
    with gaze.recording(masses=False, slices="image", rows="text") as record, torch.inference_mode():
        gaze.model(**inputs, use_cache=False)
    maps = image_map(record, token=thing.category, over="none")
    return (maps * covered_share([thing.box], GEOMETRY, CELLS)).sum((-2, -1)).float()


def hallucination(bed: Bed) -> dict[str, Any]:
    """Find the heads that support words for absent things, and deactivate or remove them."""
    entries = [{"text": DETAIL_PROMPTS[0], "image": scene.name} for scene in bed.chosen_on]
    texts = Asker(bed.gaze).ask(entries, CAPTION_TOKENS)
    captions = list(marked(bed.chosen_on, texts))[: bed.captions]
    if not captions:
        raise InputError("no caption names both a present and an absent thing: give more --scenes")
    influence = find_hallucination_heads(bed.gaze, captions, progress=True)
    best = influence.top(HEADS)
    methods: dict[str, Method] = {
        "AD-HH": ADHH(heads=best),
        "AD-HH in other heads": RandomHeads(ADHH(heads=best)),
        "removed": HeadKnockout(heads=best),
        "others removed": RandomHeads(HeadKnockout(heads=best)),
    }
    return {
        "captions": len(captions),
        "heads": [[*head, float(influence.score[head])] for head in best],
        "answers": asked(bed, "hallucination", Chair.of_bed(), methods, bed.tested_on, tokens=CAPTION_TOKENS),
    }


def marked(shown_scenes: Sequence[Scene], texts: Sequence[str]) -> Iterator[Caption]:
    """The captions that name both present and absent things, with these marked."""
    for scene, text in zip(shown_scenes, texts, strict=True):
        present = {thing.category for thing in scene.objects}
        found = Caption.marked(
            scene.image(), DETAIL_PROMPTS[0], text, dict.fromkeys(mentioned(text)), present
        )
        if found.hallucinated and found.grounded:
            yield found


def retrieval(bed: Bed) -> dict[str, Any]:
    """Retrieval heads of the bed and of its base, in long texts."""
    texts = [read_haystack(path) for path in bed.haystacks]
    base = load_base(bed.bases[0], dtype=torch.float32).eval()
    found: dict[str, RetrievalHeads] = {}
    failed: dict[str, str] = {}
    for name, model in {"base": base, "bed": bed.gaze.model}.items():
        log = bed.work / f"retrieval-{name}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            found[name] = find_retrieval_heads(
                model, bed.gaze.reader.tokenizer, texts, NEEDLES, LENGTHS, DEPTHS, name=name, log=log
            )
        except InputError as error:
            if not str(error).startswith("none of"):
                raise
            failed[name] = str(error)  # no trial succeeded, which is a result
    shown_heads = {name: retrieval_figures(each) for name, each in found.items()}
    result: dict[str, Any] = {"models": shown_heads, "failed": failed, "lengths": LENGTHS, "depths": DEPTHS}
    if len(found) == 2:
        both = torch.stack([found[name].mean().flatten() for name in ("base", "bed")])
        result["correlation"] = float(torch.corrcoef(both)[0, 1])
        result["shared"] = len({*found["base"].top(HEADS)} & {*found["bed"].top(HEADS)})
    return result


def retrieval_figures(found: RetrievalHeads) -> dict[str, Any]:
    """Trials, and the best heads with their scores."""
    mean = found.mean()
    return {
        "run": found.about["trials_run"],
        "succeeded": found.about["trials_succeeded"],
        "over 0.1": int((mean >= 0.1).sum()),
        "heads": [[*head, float(mean[head])] for head in found.top(HEADS)],
    }


def base(bed: Bed) -> dict[str, Any]:
    """How far the answers over two bases differ, such as the hub's weights and those out of the GGUF."""
    if len(bed.bases) != 2:
        raise InputError("the part base compares two bases: give --base twice")
    entries = [entry for split in SPLITS for entry in read_questions(questions_file(split), bed.scenes)]
    entries += read_questions(QUESTIONS_FILE, bed.scenes)
    hashes, replies = [], []
    for place in bed.bases:
        gaze = open_bed(place, bed.weights)
        hashes.append(gaze.model.config.get_text_config().bed_base)
        replies.append(Asker(gaze).ask(entries, max_new_tokens=16))
    labels = [entry.get("label", "").capitalize() for entry in entries]
    return {
        "bases": hashes,
        "questions": len(entries),
        "same": sum(first == second for first, second in zip(*replies, strict=True)),
        "yes_no": sum(map(bool, labels)),
        "right": [sum(map(str.__eq__, labels, each)) for each in replies],
    }


# The command --------------------------------------------------------------------------------------------

PARTS: dict[str, Part] = {each.__name__: each for each in (sinks, heads, hallucination, retrieval, base)}


def open_bed(base: str | None, weights: Path | None) -> regaze.Gaze:
    """The bed, wrapped."""
    chosen = {} if weights is None else {"weights": weights}
    return regaze.wrap(*regaze.load("bed", base=base, **chosen))


def measure(part: str, bed: Bed, output: Path) -> None:
    """Run a part, and put its figures into the file of results."""
    facts, began = machine(), time.monotonic()
    print(f"{part}: {len(bed.scenes)} scenes", flush=True)
    figures = PARTS[part](bed)
    about = {"machine": facts, "scenes": len(bed.scenes), "seconds": round(time.monotonic() - began)}
    known = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    known[part] = {**about, **figures}
    ordered = {name: known[name] for name in PARTS if name in known}
    replace_file(output, json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    print(f"{part}: {about['seconds']} s -> {output}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--scenes", type=int, default=100, help="of the shipped ones (%(default)s)")
    parser.add_argument("--captions", type=int, default=2, help="that heads are searched on (%(default)s)")
    parser.add_argument("--base", action="append", help="folder or hub id of the base; twice for `base`")
    parser.add_argument("--weights", type=Path, help="folder of another training")
    parser.add_argument("--haystack", type=Path, action="append", help="long text (the licence)")
    parser.add_argument("--work", type=Path, default=Path("out/bed"), help="folder of answers (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    quiet_libraries()
    bases: Sequence[str | None] = given.base or [None]
    bed = Bed(
        open_bed(bases[0], given.weights),
        scenes()[: given.scenes],
        bases,
        given.weights,
        given.work,
        given.captions,
        given.haystack or [ROOT / "LICENSE"],
    )
    for part in given.parts:
        measure(part, bed, given.output)


if __name__ == "__main__":
    main()
