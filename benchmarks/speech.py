"""Does the cross-attention of Whisper tiny.en explain what it writes? Measured on sentences of espeak-ng.

    python benchmarks/speech.py tiny.en.pt [--vocabulary gpt2.tiktoken] [--work DIR] [--output DIR]

Nothing is downloaded: `benchmarks/speaking.py` says where the weights come from; espeak-ng is needed, too. A
finished recording (a minute or more on one core) is kept in --work, so that an interrupted run goes on there.
docs/studies/speech.md tells what came out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from matplotlib.figure import Figure
from speaking import HOP, PROMPT, load_whisper, read_vocabulary, speak, spectrogram, texts, transcribe
from torch import Tensor

from regaze.toolkit.analysis.faithfulness import (
    agreement,
    occlusion_saliency,
    perturbation_curve,
    random_mask_saliency,
    random_roll,
    shuffle_regions,
)
from regaze.toolkit.analysis.intervals import estimate
from regaze.toolkit.analysis.speech import EncoderWindows, SpectrogramPatches, Utterance

SENTENCES = (
    "Paris is the capital of France.",
    "The children walked to the old school by the river.",
    "My sister bought fresh bread and two bottles of milk.",
    "Seven ships waited outside the harbour for the storm to pass.",
    "Please close the window before you leave the house.",
    "The doctor asked him to come back on Monday morning.",
    "A black horse was standing alone under the tree.",
    "They opened the letter and read it twice.",
)
#: voice of espeak-ng, words per minute
VOICES = (("en-us", 150), ("en-gb", 130), ("en-us+f3", 170))
#: number of the sentence and its voice; two of the voices, in turn, speak each
RECORDINGS = tuple((i, VOICES[place % 3]) for i in range(len(SENTENCES)) for place in (-i, 1 - i))
#: 100 ms: coarse enough that hiding a window removes a sound, fine enough to tell words apart
WIDTH = 10
POINTS, MASKS = 9, 200
#: saliency that attention is compared with -> its name in the tables
SALIENCY = {
    "spectrogram": "spectrogram, occlusion",
    "gradient": "spectrogram, gradient x input",
    "encoder": "encoder output, occlusion",
    "encoder_masks": "encoder output, random masks",
}
#: Orders in which the sound is silenced.
CURVES = {
    "attention": "cross-attention",
    "spectrogram": SALIENCY["spectrogram"],
    "gradient": SALIENCY["gradient"],
    "turned": "cross-attention, turned in time",
    "shuffled": "cross-attention, shuffled",
}
MEASURES = ("pearson_tokens", "spearman_tokens", "pearson_pooled", "spearman_pooled")


def compare(maps: Tensor, saliency: Tensor) -> dict[str, float]:
    """All agreements of maps with saliency, [T, windows] both."""
    linear, ranks = agreement(maps, saliency), agreement(maps, saliency, rank=True)
    return dict(zip(MEASURES, (linear.mean, ranks.mean, linear.pooled, ranks.pooled), strict=True))


def measure(model: Any, sentence: str, voice: str, speed: int) -> dict[str, Any]:
    """Every figure of one recording, as plain JSON."""
    begun = time.monotonic()
    samples = speak(sentence, voice, speed)
    features = spectrogram(samples)
    answer = transcribe(model, features)
    frames = min(-(-len(samples) // HOP), features.shape[-1])
    heard = Utterance(model, features, torch.tensor(PROMPT), answer, frames, WIDTH)
    sound, encoder = SpectrogramPatches(heard, batch_size=1), EncoderWindows(heard, batch_size=8)
    whole = heard.cross_attention()
    by_head = heard.by_window(whole)  # [layers, heads, T, windows]
    layers = by_head.mean(1)
    maps = {"all layers": layers.mean(0), **{f"layer {i}": each for i, each in enumerate(layers)}}
    saliency = {
        "spectrogram": occlusion_saliency(sound, sound.count),
        "gradient": heard.gradient_saliency(),
        "encoder": occlusion_saliency(encoder, encoder.count),
        "encoder_masks": random_mask_saliency(encoder, encoder.count, masks=MASKS).float(),
    }
    mean = maps["all layers"]
    controls = {
        "turned": random_roll(mean, 1),
        "shuffled": shuffle_regions(mean, 1),
        "other token": mean.roll(1, 0),
    }
    curves = _curves(sound, mean, saliency)
    return {
        "sentence": sentence,
        "voice": voice,
        "speed": speed,
        "answer": answer.tolist(),
        "windows": heard.windows,
        "sound_share": {
            "all layers": float(by_head.sum(-1).mean()),
            **{f"layer {i}": float(each.sum(-1).mean()) for i, each in enumerate(by_head)},
        },
        "agreement": {
            name: {kind: compare(each, against) for kind, against in saliency.items()}
            for name, each in {**maps, **controls}.items()
        },
        "saliency_agreement": {
            kind: compare(saliency["spectrogram"], saliency[kind])
            for kind in SALIENCY
            if kind != "spectrogram"
        },
        "heads": {
            kind: [[agreement(head, saliency[kind]).mean for head in layer] for layer in by_head]
            for kind in ("spectrogram", "encoder")
        },
        "curves": curves,
        "maps": {kind: _rounded(each) for kind, each in {"attention": mean, **saliency}.items()},
        "seconds": round(time.monotonic() - begun, 1),
    }


def _curves(sound: SpectrogramPatches, mean: Tensor, saliency: dict[str, Tensor]) -> dict[str, Any]:
    """Deletion on the spectrogram: attention, both saliencies of the spectrogram, attention turned around."""
    overall = mean.sum(0)
    parts = (
        overall,
        saliency["spectrogram"].sum(0),
        saliency["gradient"].sum(0),
        random_roll(overall, 2),
        shuffle_regions(overall, 2),
    )
    curve = perturbation_curve(sound, torch.stack(parts), "deletion", points=POINTS)
    tokens = len(mean)
    return {name: _rounded(score / tokens) for name, score in zip(CURVES, curve.score, strict=True)}


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().numpy(), 5).tolist()


def load_or_measure(model: Any, work: Path) -> list[dict[str, Any]]:
    """Results of the recordings in order; those in the folder are read, not computed again."""
    work.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (voice, speed) in RECORDINGS:
        path = work / f"{number}-{voice}-{speed}.json"
        if not path.exists():
            result = measure(model, SENTENCES[number], voice, speed)
            path.write_text(json.dumps(result), encoding="utf-8")
            print(f"{path.stem}: {len(result['answer'])} tokens, {result['seconds']} s", flush=True)
        found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over recordings with intervals; whole sentences are resampled, with all their voices."""
    names = list(found[0]["agreement"])
    held_out = {kind: best_head(found, kind) for kind in ("spectrogram", "encoder")}
    return {
        "agreement": {
            name: {
                kind: {
                    m: _over(found, lambda r, n=name, k=kind, m=m: r["agreement"][n][k][m]) for m in MEASURES
                }
                for kind in SALIENCY
            }
            for name in names
        },
        "above_turned": {
            kind: {
                m: _over(
                    found,
                    lambda r, k=kind, m=m: (
                        r["agreement"]["all layers"][k][m] - r["agreement"]["turned"][k][m]
                    ),
                )
                for m in MEASURES
            }
            for kind in SALIENCY
        },
        "saliency_agreement": {
            kind: {m: _over(found, lambda r, k=kind, m=m: r["saliency_agreement"][k][m]) for m in MEASURES}
            for kind in found[0]["saliency_agreement"]
        },
        "best_head": held_out,
        "sound_share": {
            name: _over(found, lambda r, n=name: r["sound_share"][n]) for name in found[0]["sound_share"]
        },
        "deletion_area": {
            name: _over(found, lambda r, n=name: float(np.trapezoid(r["curves"][n]) / (POINTS - 1)))
            for name in found[0]["curves"]
        },
        "deletion_area_below_turned": {
            name: _over(
                found,
                lambda r, n=name: float(
                    np.trapezoid(np.subtract(r["curves"][n], r["curves"]["turned"])) / (POINTS - 1)
                ),
            )
            for name in ("attention", "spectrogram", "gradient")
        },
    }


def _over(found: list[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> dict[str, Any]:
    """Mean over the recordings of a sentence, then mean and interval over sentences."""
    by_sentence: dict[str, list[float]] = {}
    for result in found:
        by_sentence.setdefault(result["sentence"], []).append(figure(result))
    return estimate([float(np.nanmean(values)) for values in by_sentence.values()]).rounded(3)


def best_head(found: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The head that agrees best, chosen on all other sentences, measured on each sentence in turn."""
    values, chosen = [], []
    for sentence in SENTENCES:
        others = np.mean([r["heads"][kind] for r in found if r["sentence"] != sentence], 0)
        layer, head = np.unravel_index(others.argmax(), others.shape)
        chosen.append(f"{layer}-{head}")
        own = [r["heads"][kind][layer][head] for r in found if r["sentence"] == sentence]
        values.append(float(np.mean(own)))
    return {"chosen": sorted(set(chosen)), "pearson_tokens": estimate(values).rounded(3)}


def draw(found: list[dict[str, Any]], vocabulary: dict[int, bytes] | None, path: Path) -> None:
    """One recording: attention and the saliencies, token by window."""
    result = found[0]
    labels = texts(vocabulary, torch.tensor(result["answer"])) if vocabulary else result["answer"]
    titles = {"attention": "cross-attention, mean of all heads", **SALIENCY}
    shown = {
        kind: np.array(result["maps"][kind]) for kind in ("attention", "spectrogram", "gradient", "encoder")
    }
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    for axes, (kind, values) in zip(figure.subplots(1, 4, sharey=True), shown.items(), strict=True):
        reach = np.abs(values).max(1, keepdims=True)
        axes.imshow(values / reach, cmap="inferno", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_title(titles[kind], fontsize=8)
        axes.set_xlabel("time (100 ms)", fontsize=8)
        axes.set_yticks(range(len(labels)), [str(label).strip() for label in labels], fontsize=7)
        axes.tick_params(axis="x", labelsize=7)
    figure.savefig(path, dpi=140)


def draw_summary(found: list[dict[str, Any]], figures: dict[str, Any], path: Path) -> None:
    """Agreement of each layer and of the controls, and deletion curves."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = list(figures["agreement"])
    for offset, (kind, colour) in enumerate(
        zip(SALIENCY, ("#0072B2", "#56B4E9", "#D55E00", "#E69F00"), strict=True)
    ):
        values = [figures["agreement"][name][kind]["pearson_tokens"] for name in names]
        errors = [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]
        places = np.arange(len(names)) + 0.18 * (offset - 1.5)
        heights = [v["value"] for v in values]
        left.bar(places, heights, 0.18, yerr=errors, color=colour, label=SALIENCY[kind], capsize=2)
    left.axhline(0, color="black", linewidth=0.6)
    left.set_xticks(range(len(names)), names, fontsize=8, rotation=20)
    left.set_ylabel("Pearson with saliency, per token", fontsize=9)
    left.legend(fontsize=7, frameon=False)
    share = np.linspace(0, 1, POINTS)
    for name, colour in zip(CURVES, ("#D55E00", "#0072B2", "#56B4E9", "#999999", "#000000"), strict=True):
        mean = np.mean([np.array(r["curves"][name]) for r in found], 0)
        right.plot(share, mean, color=colour, marker="o", markersize=3, label=CURVES[name])
    right.set_xlabel("share of the sound silenced, most important first", fontsize=9)
    right.set_ylabel("log-probability per token (nats)", fontsize=9)
    right.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="OpenAI's tiny.en.pt")
    parser.add_argument("--vocabulary", type=Path, help="gpt2.tiktoken, to label tokens")
    parser.add_argument("--work", type=Path, default=Path("out/speech"))
    parser.add_argument("--output", type=Path, default=Path("docs/studies/seeing"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    facts, vocabulary = machine(), read_vocabulary(options.vocabulary) if options.vocabulary else None
    found = load_or_measure(load_whisper(options.checkpoint), options.work)
    figures = summary(found)
    heard = [
        {k: r[k] for k in ("sentence", "voice", "speed", "windows", "seconds")}
        | {
            "heard": "".join(texts(vocabulary, torch.tensor(r["answer"]))).strip()
            if vocabulary
            else r["answer"]
        }
        for r in found
    ]
    study = {"machine": facts, "recordings": heard, **figures}
    text = json.dumps(study, indent=1, ensure_ascii=False) + "\n"
    (options.output / "speech.json").write_text(text, encoding="utf-8")
    draw(found, vocabulary, options.output / "speech-example.png")
    draw_summary(found, figures, options.output / "speech.png")


if __name__ == "__main__":
    main()
