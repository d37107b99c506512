"""A bed as training writes it, but tiny and with nothing learned: its base, and the folder of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import regaze
from regaze.bed import base as bases
from regaze.bed.training.adapter import attach, save_adapter
from regaze.bed.training.processor import build_config
from regaze.bed.training.recipe import Recipe
from regaze.bed.training.train import new_sight

WIDTH, LAYERS = 48, 6
RECIPE = Recipe(rank=2, alpha=4, attention_from=1, mlp_from=3)
SINKS = (3, 7)


def write_base(folder: Path, vocabulary: int, seed: int = 3) -> Path:
    """A random Llama of the shape that `pretend` makes the bed's."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=LAYERS,
        num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_bed(folder: Path, base: Path, processor: Any, seed: int = 0) -> Path:
    """An adapter that changes something, the demo's tower, a random projector, all else as trained."""
    torch.manual_seed(seed)
    language = bases.load_base(base, dtype=torch.bfloat16)
    config = build_config(language.config)
    config.image_token_index = processor.tokenizer.image_token_id
    text_config: Any = config.text_config
    text_config.sink_dimensions, text_config.sink_tau = list(SINKS), 1.6
    processor.save_pretrained(folder)
    config.save_pretrained(folder)
    sight = new_sight(WIDTH)
    save_file(
        {name: weight.bfloat16() for name, weight in sight.state_dict().items()}, folder / "sight.safetensors"
    )
    model = attach(language, RECIPE)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.2)
    save_adapter(model, RECIPE, folder / "adapter.safetensors")
    return folder


def pretend(monkeypatch: Any, folder: Path) -> tuple[Path, Path]:
    """Write both into a folder, and let `regaze.load("bed")` find them; returns (base, weights)."""
    processor = regaze.load("demo")[1]
    vocabulary = len(processor.tokenizer)
    monkeypatch.setattr(bases, "SHAPE", (WIDTH, LAYERS, vocabulary))
    base = write_base(folder / "base", vocabulary)
    weights = write_bed(folder / "bed", base, processor)
    monkeypatch.setattr("regaze.bed.assembly.MODEL_DIR", weights)
    monkeypatch.setenv("REGAZE_BED_BASE", str(base))
    return base, weights
