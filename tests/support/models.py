"""Tiny random models for tests: same classes and processors as the real ones, nothing learned."""

from __future__ import annotations

import functools
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, LlamaConfig, LlavaForConditionalGeneration

from regaze.demo.training.model import build_model
from regaze.demo.training.vocabulary import build_processor
from regaze.interventions import VAR
from regaze.toolkit.model import compat
from regaze.toolkit.model.context import Context
from regaze.toolkit.prompts.token_map import TokenMap

#: VAR that edits something in a random model: any two dimensions, a threshold that some tokens pass.
SMALL_VAR: dict[str, Any] = {"sink_dimensions": (3, 7), "tau": 1.6, "min_image_mass": 0.05, "rho": 0.3}


@lru_cache
def llava_processor() -> Any:
    return build_processor(112, 14)


def tiny_llava(seed: int = 0) -> LlavaForConditionalGeneration:
    """A random LLaVA, 6 layers, 6 query heads on 2 key-value heads, 64 image tokens."""
    torch.manual_seed(seed)
    return build_model(llava_processor().tokenizer).eval()


def tiny_llama(seed: int = 0, **changes: Any) -> Any:
    """A random text model with 5 layers and a GQA ratio of 3."""
    torch.manual_seed(seed)
    options = {
        "vocab_size": len(llava_processor().tokenizer),
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": 3,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    return AutoModelForCausalLM.from_config(LlamaConfig(**{**options, **changes})).eval()


def varied(model: Any) -> Any:
    """Random output weights: with those of the input, a random model repeats its last token."""
    torch.manual_seed(7)
    model.lm_head.weight = torch.nn.Parameter(0.4 * torch.randn_like(model.lm_head.weight))
    return model


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    """Random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def small_var(**changes: Any) -> VAR:
    return VAR(**{**SMALL_VAR, **changes})


def logits_of(model: Any, inputs: Any, tokens: int = 5) -> torch.Tensor:
    """Greedy logits of `tokens` steps, [steps, B, V]; no early end."""
    out = model.generate(
        **inputs,
        max_new_tokens=tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    return torch.stack(out.logits)


def compile_decoding(model: Any, backend: Any = "eager", mode: str | None = None) -> None:
    """Compile the forwards of single tokens, as `generate` does on a GPU, without room for a graph break."""
    own = model.forward
    chosen: dict[str, Any] = {"backend": backend} if mode is None else {"mode": mode}
    compiled = torch.compile(own, fullgraph=True, **chosen)

    @functools.wraps(own)
    def forward(**inputs: Any) -> Any:
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        return (
            compiled if ids.shape[1] == 1 and compat.cache_length(compat.cache_argument(inputs)) else own
        )(**inputs)

    model.forward = forward


def context_for(roles: Any, *, layers: int = 6, heads: int = 2, hidden_size: int = 8) -> Context:
    """The context of a prompt with these roles [B, L], for tests of an intervention without a model."""
    config = SimpleNamespace(
        model_type="test",
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=1,
    )
    tokens = TokenMap.from_roles(roles)
    inputs = {"input_ids": torch.zeros(tokens.batch, tokens.length, dtype=torch.int64)}
    return Context(None, config, inputs, tokens, ())  # type: ignore[arg-type]
