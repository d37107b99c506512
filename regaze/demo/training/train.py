"""Train the demo model from nothing.

    python -m regaze.demo.training.train --output DIR --seed N

Five stages, each cheap because of the one before:

1. ``vision``: the tower learns dense labels, the category and colour of the object in every patch;
2. ``projector``: fitted so that a patch lands on the word embeddings of what it shows and of its place,
   and background on the embedding of the image token;
3. ``language``: the language model learns conversations with true answers; tower, projector and word
   embeddings are frozen;
4. ``mix``: everything is trained on all questions with the noise of web captions;
5. ``describe``: a short last stage with more descriptions and more noise.

On one machine the same seed, thread count and precision give the same weights. The output folder is a
complete model after every stage; ``training_log.csv`` in it holds the curves.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from regaze.demo.training.model import build_model
from regaze.demo.training.recipe import STAGES, Recipe
from regaze.demo.training.render import PATCH, SIDE, emoji_font
from regaze.demo.training.stages import run_stage
from regaze.demo.training.trainer import Log, Trainer
from regaze.demo.training.vocabulary import build_processor
from regaze.errors import InputError
from regaze.toolkit.analysis.sink_profile import find_sink_dimensions
from regaze.writing import make_folder, replacing

#: Threshold on |x_d| / RMS above which a dimension of the first token counts as a sink dimension.
SINK_TAU = 2.5


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
        checkpoints: folder for the weights after each stage; stages found in it are not trained again.

    Raises:
        regaze.demo.training.render.FontMissingError: the emoji font is not installed.
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
            checkpoint = checkpoints / f"{stage}.pt" if checkpoints else None
            if checkpoint and checkpoint.exists():
                model.load_state_dict(torch.load(checkpoint))
                continue
            run_stage(trainer, stage)
            trainer.save(output)
            if checkpoint:
                make_folder(checkpoint.parent)
                with replacing(checkpoint) as partial:
                    torch.save(model.state_dict(), partial)
        store_sinks(model.eval(), processor)
        trainer.save(output)
    print(f"trained in {time.monotonic() - started:.0f} s wall, {time.process_time():.0f} s CPU -> {output}")
    return model


def store_sinks(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the model's sink dimensions into its configuration, where `regaze.VAR` looks for them.

    Training this short forms no massive activations: the strongest activation of the first token is about 3
    times the RMS, far from the 20 of large models. `SINK_TAU` is low enough to find it; a model without even
    that gets no entry.
    """
    config: Any = model.config.text_config
    try:
        profile = find_sink_dimensions(model, processor, tau=SINK_TAU)
    except InputError:
        return
    config.sink_dimensions, config.sink_tau = list(profile.dimensions), profile.tau


@contextmanager
def _deterministic(seed: int) -> Iterator[None]:
    """Seed torch and forbid nondeterministic algorithms; both are restored afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _processor_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m regaze.demo.training.train``."""
    parser = argparse.ArgumentParser(
        prog="python -m regaze.demo.training.train", description=__doc__.splitlines()[0]
    )
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
        help="save the weights of every stage here, and continue after the stages found here",
    )
    options = parser.parse_args(arguments)
    recipe = Recipe().scaled(options.scale) if options.scale != 1.0 else None
    train(options.output, options.seed, recipe, options.threads, options.precision, options.checkpoints)


if __name__ == "__main__":
    main()
