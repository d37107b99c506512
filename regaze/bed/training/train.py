"""Train the bed from nothing but SmolLM2 and the demo's tower.

    python -m regaze.bed.training.train --output DIR --base FOLDER --seed N

1. ``sight``: the demo's tower and a new projector learn to put every patch on its target
   (`regaze.bed.training.vision`);
2. ``adapter``: low-rank changes of the language model learn conversations about new scenes, and are held to
   SmolLM2 on texts that it wrote itself; tower, projector and SmolLM2 itself are frozen.

The output folder has ``state.pt`` every few minutes; the same command goes on from it. ``log.csv`` has the
curves. One seed gives one set of weights on one machine with one number of threads, resumed or not.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from regaze.bed.base import load_base
from regaze.bed.training.adapter import save_adapter
from regaze.bed.training.adapter_trainer import AdapterTrainer
from regaze.bed.training.log import EVERY, Log
from regaze.bed.training.own_words import write_texts
from regaze.bed.training.processor import build_config, build_processor
from regaze.bed.training.quick import quick_dtype
from regaze.bed.training.recipe import Recipe
from regaze.bed.training.targets import PatchTargets
from regaze.bed.training.vision import Sight, train_sight
from regaze.demo.training.render import emoji_font
from regaze.toolkit.load import load
from regaze.writing import replace_file, replacing


def train_or_load_sight(path: Path, base: Any, processor: Any, recipe: Recipe, seed: int, log: Log) -> Sight:
    """Stage 1, or its result from ``path``; in bf16, as it ships."""
    sight = new_sight(base.config.hidden_size)
    if not path.exists():
        targets, recent = PatchTargets.of(base.get_input_embeddings().weight, processor.tokenizer), []
        steps = train_sight(sight.train(), processor.image_processor, targets, seed, recipe.sight_steps)
        for step, error in steps:
            recent.append(error)
            if step % EVERY == 0:
                log.write("sight", step, sum(recent) / len(recent), float("nan"), 0, time.process_time())
                recent.clear()
        with replacing(path) as partial:
            weights = {
                name: weight.detach().to(torch.bfloat16) for name, weight in sight.state_dict().items()
            }
            save_file(weights, partial)
    sight.load_state_dict(load_file(path))
    return sight.eval()


def write_or_load_texts(path: Path, base: Any, processor: Any, recipe: Recipe, seed: int) -> list[list[int]]:
    """SmolLM2's own texts, or those of ``path``."""
    if not path.exists():
        replace_file(path, json.dumps(write_texts(base, processor.tokenizer, recipe.own_words, seed)) + "\n")
    found: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def new_sight(width: int) -> Sight:
    """The demo's tower, and an untrained projector of LLaVA's form into ``width`` dimensions."""
    demo, _ = load("demo")
    projector = demo.model.multi_modal_projector
    projector.linear_1 = nn.Linear(projector.linear_1.in_features, width)
    projector.linear_2 = nn.Linear(width, width)
    return Sight(demo.model.vision_tower, projector)


def train(output: Path, base: str | None = None, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Train from nothing, or go on from the checkpoint in ``output``, and write ``sight`` and ``adapter``
    there.

    Raises:
        regaze.demo.training.render.FontMissingError: the emoji font is not installed.
        regaze.errors.ModelNotFoundError: the base is not there.
    """
    emoji_font()
    recipe = recipe or Recipe()
    output.mkdir(parents=True, exist_ok=True)
    log = Log(output / "log.csv")
    model = load_base(base, dtype=quick_dtype())
    processor = build_processor(base)
    torch.manual_seed(seed)
    sight = train_or_load_sight(output / "sight.safetensors", model, processor, recipe, seed, log)
    texts = write_or_load_texts(output / "own_words.json", model, processor, recipe, seed)
    trainer = AdapterTrainer(model, sight, processor, texts, recipe, seed)
    if (output / "state.pt").exists():
        trainer.load(output / "state.pt")
    processor.save_pretrained(output)
    build_config(model.config).save_pretrained(output)
    trainer.run(output, log)
    save_adapter(trainer.model, recipe, output / "adapter.safetensors")
    print(f"trained in {trainer.cpu:.0f} s of CPU time, {trainer.tokens} tokens -> {output}")


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.bed.training.train``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.bed.training.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for weights, checkpoint and log")
    parser.add_argument("--base", default=None, help="folder or hub id of SmolLM2-135M-Instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiply the steps of every stage, for a quick try"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe().scaled(options.scale) if options.scale != 1.0 else None
    train(options.output, options.base, options.seed, recipe)


if __name__ == "__main__":
    main()
