"""A Llama whose weights are written by hand, so that one known head retrieves: what heads should be found."""

from __future__ import annotations

import math
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from regaze.interventions.retrieval_heads import Needle

WORDS = [
    "<unk>",
    "<s>",
    "</s>",
    ".",
    "Every",
    "old",
    "ship",
    "sails",
    "far",
    "away",
    "from",
    "home",
    "slowly",
]
WORDS += ["The", "gold", "is", "under", "seven", "blue", "stones", "near", "a", "dry", "well", "Where"]
HAYSTACK = (
    "Every old ship sails slowly from home . Every ship sails far away . The old ship sails home slowly . "
)
NEEDLE = Needle(
    "The gold is under seven blue stones near dry well.",
    "Where is the gold?",
    "seven blue stones near dry well",
    "The gold is under",
)
TEMPLATE = "{question} {context}"
#: Options of a search that this model can answer.
LENGTHS, DEPTHS = (60, 150), (0, 30, 100)
OPTIONS: dict[str, Any] = {"template": TEMPLATE, "max_new_tokens": 8}
#: (layer, head) of the head that looks for what followed the current token before, and of the one that tells
#: every token what stands before it
RETRIEVAL, PREVIOUS = (1, 2), (0, 0)
LAYERS, HEADS = 2, 4
_HEAD_DIM, _THETA = 128, 1e8


def copying_tokenizer() -> Any:
    """A token per word."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def copying_model() -> LlamaForCausalLM:
    """An induction circuit in two layers of four heads on two key-value heads; no other head does anything.

    The residual stream has a part for the token, one for the token before, one for the answer and a constant.
    """
    size = len(WORDS)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=3 * size + 1,
        intermediate_size=4,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=_HEAD_DIM,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        token, before, answer = (slice(i * size, (i + 1) * size) for i in range(3))
        model.model.embed_tokens.weight[:, token] = torch.eye(size)
        model.model.embed_tokens.weight[:, -1] = 1.0
        model.lm_head.weight[:, answer] = torch.eye(size)
        _look_back(model.model.layers[0].self_attn, token, before)
        _look_for_same(model.model.layers[1].self_attn, token, before, answer)
    return model


def _look_back(attention: Any, token: slice, before: slice) -> None:
    """Head 0 looks one position back, by the fast frequencies of the rotation, and notes the token there."""
    size, half = token.stop - token.start, _HEAD_DIM // 2
    angles = _THETA ** (-torch.arange(16) * 2 / _HEAD_DIM)  # radians per position
    attention.q_proj.weight[:16, -1] = 40.0
    attention.k_proj.weight[:16, -1] = angles.cos()
    attention.k_proj.weight[half : half + 16, -1] = angles.sin()
    attention.v_proj.weight[:size, token] = torch.eye(size)
    attention.o_proj.weight[before, :size] = torch.eye(size)


def _look_for_same(attention: Any, token: slice, before: slice, answer: slice) -> None:
    """Head 2 looks where the token before is the current one, by slow frequencies, and says what is there.

    It is the first of the two heads that share the second key-value head.
    """
    size, slow = token.stop - token.start, _HEAD_DIM // 4
    query = slice(2 * _HEAD_DIM + slow, 2 * _HEAD_DIM + slow + size)
    key = slice(_HEAD_DIM + slow, _HEAD_DIM + slow + size)
    attention.q_proj.weight[query, token] = 40.0 * math.sqrt(_HEAD_DIM) * torch.eye(size)
    attention.k_proj.weight[key, before] = torch.eye(size)
    attention.v_proj.weight[_HEAD_DIM : _HEAD_DIM + size, token] = torch.eye(size)
    attention.o_proj.weight[answer, 2 * _HEAD_DIM : 2 * _HEAD_DIM + size] = torch.eye(size)
