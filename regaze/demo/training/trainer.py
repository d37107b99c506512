"""The training loop that all stages share, and its log."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
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

from regaze.demo.training.batches import scene_batches
from regaze.demo.training.model import pixel_batch
from regaze.demo.training.recipe import STAGES, Recipe, Stage
from regaze.demo.training.render import Rendered

LOG_EVERY = 20

#: ``loss_of(index, scenes) -> (loss, accuracy)``; ``index`` is the number of the first scene.
LossFunction: TypeAlias = Callable[[int, list[Rendered]], tuple[torch.Tensor, torch.Tensor]]


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
    """Model, processor and recipe, and the loop that minimises a stage's loss."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    recipe: Recipe
    seed: int
    log: Log
    autocast: bool

    def run(self, name: str, parameters: list[dict[str, Any]], loss_of: LossFunction) -> None:
        """Minimise ``loss_of`` with AdamW, warm-up and a cosine, over the batches of stage ``name``.

        Args:
            parameters: parameter groups for AdamW, each with its "lr".
        """
        stage = self.recipe.stage(name)
        optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.97), weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(stage))
        trained = [weight for group in parameters for weight in group["params"]]
        batches = scene_batches(self.seed, STAGES.index(name), stage.scenes)
        recent: list[tuple[float, float]] = []
        with _progress() as bar:
            task = bar.add_task(name, total=stage.steps, loss=float("nan"), accuracy=float("nan"))
            for step in range(1, stage.steps + 1):
                with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                    loss, accuracy = loss_of(*next(batches))
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, 1.0)
                optimiser.step()
                scheduler.step()
                recent.append((loss.item(), accuracy.item()))
                if step % LOG_EVERY == 0 or step == stage.steps:
                    mean_loss, mean_accuracy = np.mean(recent, axis=0)
                    self.log.write(name, step, mean_loss, mean_accuracy, float(scheduler.get_last_lr()[0]))
                    bar.update(task, loss=mean_loss, accuracy=mean_accuracy)
                    recent.clear()
                bar.advance(task)

    def pixels(self, scenes: list[Rendered]) -> torch.Tensor:
        """``pixel_values`` of scenes, as the processor would make them."""
        image_processor = self.processor.image_processor
        return pixel_batch([s.pixels for s in scenes], image_processor.image_mean, image_processor.image_std)

    def save(self, folder: Path) -> None:
        """Write model (bf16) and processor, loadable by the Auto classes.

        A copy is converted to bf16, never the model in training: its rotary frequencies are buffers outside
        the saved weights, and would stay rounded.
        """
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)  # type: ignore[arg-type]
        self.processor.save_pretrained(folder)


def _schedule(stage: Stage) -> Callable[[int], float]:
    """Factor of the learning rate at each step: linear warm-up, then a cosine down to ``decay_to``."""
    warmup = max(1, min(60, stage.steps // 10))

    def factor(step: int) -> float:
        progress = (step - warmup) / max(1, stage.steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return min(1.0, (step + 1) / warmup) * (stage.decay_to + (1 - stage.decay_to) * cosine)

    return factor


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:9s}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
