"""Three real models recorded: a picture of each and figures.json, for docs/studies/real-models.md.

    python benchmarks/recordings.py [--smollm DIR] [--gemma GGUF] [--whisper tiny.en.pt --vocabulary FILE]

Only the models that are given are run; the figures of the others stay. docs/studies/real-models.md says where
their weights come from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from machine import machine
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


def smollm(source: Path, output: Path) -> dict[str, Any]:
    """Attention of the answer's tokens by role and layer."""
    gaze = regaze.wrap(*load(source))
    with gaze.recording(slices="all") as record:
        answer = gaze.ask([None], [QUESTION], max_new_tokens=32)[0]
    flow = analysis.role_flow(record)
    plot.role_flow(flow, path=output / "smollm2.svg")
    system, first = flow.of(Role.SYSTEM).mean(), analysis.sink_share(record).mean()
    return {"question": QUESTION, "answer": answer, "system": float(system), "first token": float(first)}


def gemma(source: Path, output: Path, text: str, rows: int = 64) -> dict[str, Any]:
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
    distance = analysis.attention_distance(trace).mean(2)
    plot.head_scores(distance, label="mean distance looked back (tokens)", path=output / "gemma3.svg")
    sliding = torch.tensor([kind == "sliding_attention" for kind in config.layer_types])
    return {
        "tokens": inputs["input_ids"].shape[1],
        "window": config.sliding_window,
        "sliding": sliding.tolist(),
        "beyond the window": beyond.tolist(),
        "largest weight beyond it in a sliding layer": float(outside[sliding].max()),
        "first token": share.tolist(),
        "distance": distance.flatten(1).tolist(),
    }


def whisper(checkpoint: Path, vocabulary: Path, output: Path) -> dict[str, Any]:
    """Cross-attention of each written word over time."""
    sound = speak(SENTENCES, "en-us", 140)
    gaze, features = regaze.wrap(load_whisper(checkpoint)), spectrogram(sound)
    model: Any = gaze.model
    start = torch.tensor([PROMPT])
    with gaze.recording(masses=False, slices="all") as record, torch.inference_mode():
        ids = model.generate(features, decoder_input_ids=start, max_length=60, do_sample=False)[0]
    words = texts(read_vocabulary(vocabulary), ids)
    cross = record[0].cross.slices[:, 0, :, : len(words)]
    padding = cross[..., round(len(sound) / RATE / 0.02) :].sum(-1).mean((1, 2))
    plot.cross_attention(
        record, words=words, layers=[2, 3], end=len(sound) / RATE, path=output / "whisper.png"
    )
    return {
        "said": SENTENCES,
        "heard": "".join(words).strip(),
        "seconds": len(sound) / RATE,
        "on padding": padding.tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Record three real models and draw a picture of each.")
    for name in ("smollm", "gemma", "whisper", "vocabulary"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--output", type=Path, default=DOCS / "assets" / "real-models")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    quiet_libraries()
    path, facts = options.output / "figures.json", machine()
    figures = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if options.smollm:
        figures["smollm"] = {"machine": facts, **smollm(options.smollm, options.output)}
    if options.gemma:
        text = (DOCS.parent / "LICENSE").read_text(encoding="utf-8")[:6000]
        figures["gemma"] = {"machine": facts, **gemma(options.gemma, options.output, text)}
    if options.whisper:
        found = whisper(options.whisper, options.vocabulary, options.output)
        figures["whisper"] = {"machine": facts, **found}
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
