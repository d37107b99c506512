"""Three real models recorded, and a picture of each, for docs/real-models.md.

    python benchmarks/recordings.py [--smollm DIR] [--gemma GGUF] [--whisper tiny.en.pt --vocabulary FILE]

Only the models that are given are run. docs/real-models.md says where their weights come from.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from speaking import PROMPT, RATE, load_whisper, read_vocabulary, speak, spectrogram, texts
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import regaze
from regaze import Role
from regaze.cli.models import quiet_libraries
from regaze.toolkit import analysis, plot

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUESTION = "Which planet is known for its rings? Answer in one sentence."
SENTENCES = "Paris is the capital of France. Please close the window before you leave the house."


def load(source: Path) -> tuple[Any, Any]:
    """A language model and its tokenizer, fp32, from a folder or a GGUF file (needs the package gguf)."""
    if source.is_dir():
        model, tokenizer = regaze.load(str(source), dtype=torch.float32)
        return model, tokenizer
    place: dict[str, Any] = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    options = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    return AutoModelForCausalLM.from_pretrained(**place, **options).eval(), AutoTokenizer.from_pretrained(
        **place
    )


def smollm(source: Path, output: Path) -> None:
    """Attention of the answer's tokens by role and layer."""
    gaze = regaze.wrap(*load(source))
    with gaze.recording(slices="all") as record:
        print("answer:", gaze.ask([None], [QUESTION], max_new_tokens=32))
    flow = analysis.role_flow(record)
    system, first = flow.of(Role.SYSTEM).mean(), analysis.sink_share(record).mean()
    print(f"on the system text {system:.3f}, on the first token alone {first:.3f}")
    plot.role_flow(flow, path=output / "smollm2.svg")


def gemma(source: Path, output: Path, text: str, rows: int = 64) -> None:
    """How far back the heads of sliding and of full layers look, in a long text."""
    gaze = regaze.wrap(*load(source))
    inputs = gaze.processor(text, return_tensors="pt")
    with gaze.recording(masses=False, slices="all", rows=rows) as record, torch.inference_mode():
        gaze.model(**inputs, use_cache=False, logits_to_keep=1)
    config, trace = gaze.model.config, record[0]
    back = trace.row_position[:, None] - torch.arange(trace.slices.shape[-1])
    outside = trace.slices[:, 0] * (back >= config.sliding_window)
    beyond = outside.sum(-1).mean((1, 2))
    share = analysis.sink_share(trace).mean((1, 2))
    print(f"{inputs['input_ids'].shape[1]} tokens; window {config.sliding_window}")
    for layer, kind in enumerate(config.layer_types):
        print(f"{layer:3d} {kind:18} beyond the window {beyond[layer]:.4f}, first token {share[layer]:.4f}")
    distance = analysis.attention_distance(trace).mean(2)
    sliding = torch.tensor([kind == "sliding_attention" for kind in config.layer_types])
    print(f"largest weight beyond the window in a sliding layer: {float(outside[sliding].max())}")
    for kind, chosen in (("sliding", distance[sliding]), ("full", distance[~sliding])):
        print(
            f"mean distance of {kind} layers' heads: {float(chosen.min()):.0f} to {float(chosen.max()):.0f}"
        )
    plot.head_scores(distance, label="mean distance looked back (tokens)", path=output / "gemma3.svg")


def whisper(checkpoint: Path, vocabulary: Path, output: Path) -> None:
    """Cross-attention of each written word over time."""
    sound = speak(SENTENCES, "en-us", 140)
    gaze, features = regaze.wrap(load_whisper(checkpoint)), spectrogram(sound)
    model: Any = gaze.model
    start = torch.tensor([PROMPT])
    with gaze.recording(masses=False, slices="all") as record, torch.inference_mode():
        ids = model.generate(features, decoder_input_ids=start, max_length=60, do_sample=False)[0]
    words = texts(read_vocabulary(vocabulary), ids)
    print("heard:", "".join(words), f"({len(sound) / RATE:.1f} s)")
    cross = record[0].cross.slices[:, 0, :, : len(words)]
    print("on padding, by layer:", cross[..., round(len(sound) / RATE / 0.02) :].sum(-1).mean((1, 2)))
    plot.cross_attention(
        record, words=words, layers=[2, 3], end=len(sound) / RATE, path=output / "whisper.png"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Record three real models and draw a picture of each.")
    for name in ("smollm", "gemma", "whisper", "vocabulary"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--output", type=Path, default=DOCS / "assets" / "real-models")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    begun = time.monotonic()
    if options.smollm:
        smollm(options.smollm, options.output)
    if options.gemma:
        gemma(options.gemma, options.output, (DOCS.parent / "LICENSE").read_text(encoding="utf-8")[:6000])
    if options.whisper:
        whisper(options.whisper, options.vocabulary, options.output)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
