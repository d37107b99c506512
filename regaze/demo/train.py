"""Train the demo model from nothing: ``python -m regaze.demo.train --output DIR --seed N``.

Five stages, each cheap because of the one before:

1. ``vision``: the tower learns dense labels, the category and colour of the thing in every patch;
2. ``projector``: fitted so that a patch lands on the word embeddings of what it shows and of its place,
   and background on the embedding of the image token;
3. ``language``: the language model learns conversations with true answers; tower, projector and word
   embeddings are frozen;
4. ``combine_logits``: everything is trained on all questions with the noise of web captions;
5. ``describe``: a short last stage with more descriptions and more noise.

On one machine the same seed, thread count and precision give the same weights. The output folder is a
complete model after every stage; ``training_log.csv`` in it holds the curves.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from regaze.demo import SceneObject
from regaze.demo.batches import IGNORED, Collator, Diet, scene_batches
from regaze.demo.conversations import place
from regaze.demo.model import HIDDEN, build_model, common_part, pixel_batch
from regaze.demo.render import PATCH, SIDE, Rendered, emoji_font
from regaze.demo.vocabulary import build_processor
from regaze.demo.world import CATEGORIES, COLOURS
from regaze.errors import InputError
from regaze.toolkit.analysis.sink_profile import find_sink_dimensions

#: Threshold on |x_d| / RMS above which a dimension of the first token counts as a sink dimension.
SINK_TAU = 2.5

LOG_EVERY = 20
PLACE_WEIGHT = 0.4  # of the words for a patch's place, beside those for what it shows
STAGES = ("vision", "projector", "language", "mix", "describe")


@dataclass(frozen=True)
class Stage:
    """Steps, scenes per step and highest learning rate of a stage; the rate falls to ``decay_to`` of it."""

    steps: int
    scenes: int
    learning_rate: float
    decay_to: float = 0.0
    diet: Diet | None = None  # of the three stages that talk


@dataclass(frozen=True)
class Recipe:
    """What the shipped model was trained with."""

    vision: Stage = Stage(steps=1700, scenes=64, learning_rate=1.5e-3)
    projector: Stage = Stage(steps=700, scenes=64, learning_rate=3e-3)
    language: Stage = Stage(600, 16, 1e-3, decay_to=0.5, diet=Diet(noise=0.0, captions=0.1, existence=0.65))
    mix: Stage = Stage(1150, 32, 1e-3, diet=Diet(noise=1.0, captions=0.3, existence=0.45, text_only=0.06))
    describe: Stage = Stage(350, 16, 6e-4, diet=Diet(noise=1.3, captions=0.6, existence=0.25, text_only=0.06))
    gentle_learning_rate: float = 1e-4  # of tower, projector and word embeddings in the last two stages
    layers: int = 6

    def scaled(self, factor: float) -> Recipe:
        """The same recipe with ``factor`` times the steps, at least two per stage."""
        shorter: dict[str, Any] = {}
        for name in STAGES:
            stage: Stage = getattr(self, name)
            shorter[name] = replace(stage, steps=max(2, round(stage.steps * factor)))
        return replace(self, **shorter)


# -- the loop all stages share ----------------------------------------------------------------------


class Log:
    """Curves as CSV: stage, step, loss, accuracy, learning rate, seconds since the start (wall, CPU)."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self.start = path, time.monotonic()
        if resume and path.exists():
            return
        with path.open("w", newline="") as file:
            csv.writer(file).writerow(
                ["stage", "step", "loss", "accuracy", "learning_rate", "seconds", "cpu_seconds"]
            )

    def write(self, stage: str, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Append one row."""
        wall, cpu = time.monotonic() - self.start, time.process_time()
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow(
                [stage, step, f"{loss:.5f}", f"{accuracy:.5f}", f"{rate:.3g}", f"{wall:.1f}", f"{cpu:.1f}"]
            )


@dataclass
class Trainer:
    """What every stage needs."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    recipe: Recipe
    seed: int
    log: Log
    autocast: bool

    def run(
        self,
        stage: str,
        parameters: list[dict],
        loss_of: Callable[[int, list[Rendered]], tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Minimise ``loss_of(index, scenes) -> (loss, accuracy)`` with AdamW, warm-up and a cosine."""
        plan: Stage = getattr(self.recipe, stage)
        steps = plan.steps
        optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.97), weight_decay=0.01)
        warmup = max(1, min(60, steps // 10))

        def schedule(step: int) -> float:
            progress = (step - warmup) / max(1, steps - warmup)
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
            return min(1.0, (step + 1) / warmup) * (plan.decay_to + (1 - plan.decay_to) * cosine)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
        trained = [weight for group in parameters for weight in group["params"]]
        batches = scene_batches(self.seed, STAGES.index(stage), plan.scenes)
        recent: list[tuple[float, float]] = []
        with _progress() as bar:
            task = bar.add_task(stage, total=steps, loss=float("nan"), accuracy=float("nan"))
            for step in range(steps):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    loss, accuracy = loss_of(*next(batches))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
                scheduler.step()
                recent.append((loss.item(), accuracy.item()))
                if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
                    mean_loss, mean_accuracy = np.mean(recent, axis=0)
                    rate = float(scheduler.get_last_lr()[0])
                    self.log.write(stage, step + 1, mean_loss, mean_accuracy, rate)
                    bar.update(task, loss=mean_loss, accuracy=mean_accuracy)
                    recent.clear()
                bar.advance(task)

    def pixels(self, scenes: list[Rendered]) -> torch.Tensor:
        """``pixel_values`` of scenes, as the processor would make them."""
        image_processor = self.processor.image_processor
        return pixel_batch([s.pixels for s in scenes], image_processor.image_mean, image_processor.image_std)

    def save(self, folder: Path) -> None:
        """Write model (bf16) and processor, loadable by the Auto classes.

        A copy is rounded, never the model that trains on: its rotary frequencies are no part of the weights,
        and would stay rounded.
        """
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
        self.processor.save_pretrained(folder)


# -- the stages -------------------------------------------------------------------------------------


class PatchHead(nn.Module):
    """Reads category and colour off every patch; used by the first stage only."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.category = nn.Linear(HIDDEN, len(CATEGORIES) + 1)
        self.colour = nn.Linear(HIDDEN, len(COLOURS) + 1)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [B, 64, H] to category and colour logits; the last class of each is "none"."""
        normed = self.norm(features)
        return self.category(normed), self.colour(normed)


def patch_labels(scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
    """Category and colour index per patch, [B, 64]; -1 is none."""
    categories = torch.from_numpy(np.stack([s.patch_category for s in scenes])).flatten(1)
    return categories, torch.from_numpy(np.stack([s.patch_colour for s in scenes])).flatten(1)


def _patch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy where label -1 means the last class."""
    return F.cross_entropy(logits.flatten(0, 1).float(), (labels % logits.shape[-1]).flatten())


def train_vision(trainer: Trainer) -> None:
    """Stage 1. The accuracy logged is that of the category on patches that show something."""
    head = PatchHead()
    tower: nn.Module = trainer.model.model.vision_tower

    def loss_of(_: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        categories, colours = patch_labels(scenes)
        category_logits, colour_logits = head(tower(trainer.pixels(scenes)).last_hidden_state[:, 1:])
        loss = _patch_loss(category_logits, categories) + 0.3 * _patch_loss(colour_logits, colours)
        shown = categories >= 0
        return loss, (category_logits.argmax(-1) == categories)[shown].float().mean()

    parameters = [*tower.parameters(), *head.parameters()]
    trainer.run("vision", [{"params": parameters, "lr": trainer.recipe.vision.learning_rate}], loss_of)


@dataclass(frozen=True)
class WordTargets:
    """Where the projector should put a patch: sums of word embeddings, without the part common to all words.

    Attributes:
        categories: [67, H]. colours: [6, H].
        places: [64, H], of the cell of the 3 x 3 grid in which a patch lies.
        background: [H], the image token's.
    """

    categories: torch.Tensor
    colours: torch.Tensor
    places: torch.Tensor
    background: torch.Tensor

    @classmethod
    def of(cls, trainer: Trainer) -> WordTargets:
        """The targets in the embeddings of the trainer's model."""
        embedding = trainer.model.get_input_embeddings().weight.detach()  # type: ignore[operator]
        embedding = embedding - common_part(embedding)
        tokenizer = trainer.processor.tokenizer

        def embed(phrases: Sequence[str]) -> torch.Tensor:
            ids = [tokenizer.encode(f" {phrase}", add_special_tokens=False) for phrase in phrases]
            return torch.stack([embedding[row].sum(0) for row in ids])

        patches = [(x, y) for y in range(0, SIDE, PATCH) for x in range(0, SIDE, PATCH)]
        cells = [place(SceneObject("", (x, y, x + PATCH, y + PATCH))) for x, y in patches]
        places = embed([cell.split(" the ")[1] for cell in cells])  # "in the upper left": "upper left"
        return cls(
            embed(CATEGORIES), embed(tuple(COLOURS)), places, embedding[trainer.processor.image_token_id]
        )

    def besides(self, colours: torch.Tensor) -> torch.Tensor:
        """Words [B, 64, H] for what patches show besides a category: colour ([B, 64], -1: none) and place."""
        return self.colours[colours] * (colours >= 0)[..., None] + PLACE_WEIGHT * self.places


def train_projector(trainer: Trainer) -> None:
    """Stage 2. The accuracy logged is that of the category embedding nearest to each shown patch."""
    llava, words = trainer.model.model, WordTargets.of(trainer)

    def loss_of(_: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        categories, colours = patch_labels(scenes)
        shown, besides = categories >= 0, words.besides(colours)
        target = torch.where(shown[..., None], words.categories[categories] + besides, words.background)
        with torch.no_grad():
            features = llava.vision_tower(trainer.pixels(scenes)).last_hidden_state[:, 1:]
        projected = llava.multi_modal_projector(features).float()
        error = (projected - target).square().mean(-1) / target.var()
        bare = (projected - besides)[shown].detach()
        right = torch.cdist(bare, words.categories).argmin(-1) == categories[shown]
        return error[shown].mean() + error[~shown].mean(), right.float().mean()

    parameters = list(llava.multi_modal_projector.parameters())
    trainer.run("projector", [{"params": parameters, "lr": trainer.recipe.projector.learning_rate}], loss_of)


def answer_loss(
    trainer: Trainer, batch: dict[str, torch.Tensor], frozen_eyes: bool, yes_no: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy of the answers, and the accuracy of those that are yes or no (ids in ``yes_no`` [2])."""
    model = trainer.model
    embeds = model.get_input_embeddings()(batch["input_ids"])
    with torch.set_grad_enabled(not frozen_eyes):
        features = torch.cat(model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output)
    seen = (batch["input_ids"] == trainer.processor.image_token_id)[..., None]
    embeds = embeds.masked_scatter(seen, features.to(embeds.dtype))
    # Padding stands on the right, where no answer can see it: the causal mask alone is enough.
    hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    answered = labels != IGNORED
    logits, labels = model.lm_head(hidden[answered]).float(), labels[answered]
    judged = torch.isin(labels, yes_no)
    accuracy = (logits.argmax(-1) == labels)[judged].float().mean()
    weights = batch["weights"][:, 1:][answered]
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum(), accuracy


def train_answers(trainer: Trainer, stage: str) -> None:
    """Stages 3 to 5: "language" (true answers, frozen eyes), "mix" and "describe" (noise, all trained)."""
    model, recipe, mix = trainer.model, trainer.recipe, stage != "language"
    plan: Stage = getattr(recipe, stage)
    assert plan.diet is not None
    collate = Collator(trainer.processor, plan.diet, trainer.seed)
    yes_no = torch.tensor([collate.encode(" Yes")[0], collate.encode(" No")[0]])

    def loss_of(index: int, scenes: list[Rendered]) -> tuple[torch.Tensor, torch.Tensor]:
        return answer_loss(trainer, collate(index, scenes), not mix, yes_no)

    speaker = model.model.language_model
    layers = [*speaker.layers.parameters(), *speaker.norm.parameters()]
    groups = [{"params": layers, "lr": plan.learning_rate}]
    if mix:
        # The word embeddings, and with them the tied head, are the projector's targets: they move with it.
        words = [*model.get_input_embeddings().parameters()]
        eyes = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
        groups.append({"params": [*words, *eyes], "lr": recipe.gentle_learning_rate})
    trainer.run(stage, groups, loss_of)


_RUN_STAGE: dict[str, Callable[[Trainer], None]] = {
    "vision": train_vision,
    "projector": train_projector,
    "language": partial(train_answers, stage="language"),
    "mix": partial(train_answers, stage="mix"),
    "describe": partial(train_answers, stage="describe"),
}


def train(
    output: Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    threads: int | None = None,
    precision: str = "auto",
    checkpoints: Path | None = None,
) -> LlavaForConditionalGeneration:
    """Train from nothing and write the model folder ``output``.

    Args:
        output: folder to create; overwritten.
        seed: of scenes, conversations and weights.
        recipe: steps and sizes; the default is what the shipped model was trained with.
        threads: torch threads; default as torch chooses.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the processor multiplies it natively.
        checkpoints: folder that keeps the weights after each stage; stages found in it are not trained again.

    Raises:
        regaze.demo.render.FontMissingError: the emoji font is not installed.
    """
    emoji_font()
    if threads:
        torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    recipe = recipe or Recipe()
    autocast = precision == "bf16" or (precision == "auto" and "avx512_bf16" in _processor_flags())
    processor = build_processor(SIDE, PATCH)
    started = time.monotonic()
    resume = checkpoints is not None and checkpoints.is_dir()
    with _deterministic(seed):
        model = build_model(processor.tokenizer, recipe.layers).train()
        trainer = Trainer(model, processor, recipe, seed, Log(output / "training_log.csv", resume), autocast)
        for stage in STAGES:
            kept = checkpoints / f"{stage}.pt" if checkpoints else None
            if kept and kept.exists():
                model.load_state_dict(torch.load(kept))
                continue
            _RUN_STAGE[stage](trainer)
            trainer.save(output)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                torch.save(model.state_dict(), kept)
        note_sinks(model.eval(), processor)
        trainer.save(output)
    print(f"trained in {time.monotonic() - started:.0f} s wall, {time.process_time():.0f} s CPU -> {output}")
    return model


def note_sinks(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the model's sink dimensions into its configuration, where `regaze.VAR` looks for them.

    Training this short forms no massive activations: the strongest activation of the first token is about 3
    times the RMS, far from the 20 of large models. `SINK_TAU` is low enough to find it; a model that has not
    even that gets no entry.
    """
    config: Any = model.config.text_config
    try:
        profile = find_sink_dimensions(model, processor, tau=SINK_TAU)
    except InputError:
        return
    config.sink_dimensions, config.sink_tau = list(profile.dimensions), profile.tau


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and forbid algorithms whose result varies; both are put back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:9s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def _processor_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.train``."""
    parser = argparse.ArgumentParser(prog="python -m regaze.demo.train", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None, help="torch threads (default: torch's choice)")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the steps of every stage, for a quick try"
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=None,
        help="keep every stage here, and take up what is here already",
    )
    options = parser.parse_args(arguments)
    recipe = Recipe().scaled(options.scale) if options.scale != 1.0 else None
    train(options.output, options.seed, recipe, options.threads, options.precision, options.checkpoints)


if __name__ == "__main__":
    main()
