"""Language models: tiny, random, with a small tokenizer and one chat template for all."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from zoo.base import Entry
from zoo.tokenizer import tiny_tokenizer

#: `<|begin|><|user|>\n{question}<|end|>\n<|assistant|>\n`, an optional system message in front.
_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\n' -}}{%- endif -%}"
)

#: By the names that most configurations have; a configuration of other names takes no notice.
_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}
#: A window shorter than any prompt: at decode, keys have left the cache.
_WINDOW: dict[str, Any] = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
_WIDE_HEADS: dict[str, Any] = {"head_dim": 12}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
#: Fewer keys, or blocks of keys, than a prompt has; enough heads that no two keys are chosen equally.
_CHOSEN: dict[str, Any] = {"index_topk": 8, "index_head_dim": 8, "index_n_heads": 8}
_BLOCKS: dict[str, Any] = {
    "head_dim": 8,
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "index_topk_blocks": 2,
    "index_block_size": 4,
    "index_local_blocks": 1,
    "index_n_heads": 2,
    "index_head_dim": 8,
}


def _build(model_type: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    tokenizer = tiny_tokenizer(*roles, bos="<|begin|>", eos="<|end|>", chat_template=_TEMPLATE)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    options = {**_COMMON, **changes, **ids, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):  # zero at first, as if there were none
                parameter.normal_(std=2.0)
    return model, tokenizer


def _entry(
    model_type: str, *parts: dict[str, Any], note: str = "", refused: str | None = None, **changes: Any
) -> Entry:
    """An entry whose configuration differs from the common one by `parts` and `changes`."""
    for part in parts:
        changes = {**part, **changes}
    return Entry(model_type, partial(_build, model_type, changes), 0, refused, note)


_OUTSIDE = "does not go through transformers' attention interface"
_SINCE_5_24 = "refused before transformers 5.24"
_WITHOUT = "has no attention modules that regaze can reach"

#: Not among the families: blocks count from the padding, with which SDPA and eager attention differ.
BLOCK_SPARSE = _entry("minimax_m3_vl_text", _EXPERTS, _BLOCKS)

ENTRIES: tuple[Entry, ...] = (
    _entry("llama"),
    _entry("mistral", sliding_window=6, note="sliding window"),
    _entry("mixtral", _EXPERTS),
    _entry("qwen2"),
    _entry("qwen2_moe", _ROUTED, shared_expert_intermediate_size=16),
    _entry("qwen3", _WIDE_HEADS, note="heads wider than hidden size / heads"),
    _entry("qwen3_moe", _ROUTED, _WIDE_HEADS),
    _entry(
        "qwen3_next",
        _ROUTED,
        head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        shared_expert_intermediate_size=16,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        note="attention in some layers only",
    ),
    _entry("gemma", _WIDE_HEADS),
    _entry(
        "gemma2",
        _WINDOW,
        _WIDE_HEADS,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=2.0,
        note="soft cap, sliding layers; eager",
    ),
    _entry("gemma3_text", _WINDOW, _WIDE_HEADS, query_pre_attn_scalar=12, note="sliding layers"),
    _entry("phi"),
    _entry("phi3"),
    _entry("phimoe", _EXPERTS),
    _entry("gpt2", _GPT, note="learned positions"),
    _entry("gpt_bigcode", _GPT, note="one key head"),
    _entry("gpt_neox", note="parallel residual"),
    _entry("opt", ffn_dim=48, word_embed_proj_dim=32),
    _entry("biogpt"),
    _entry("olmo"),
    _entry("olmo2"),
    _entry("olmo3", _WINDOW, note="sliding layers"),
    _entry("olmoe", num_experts=4, num_experts_per_tok=2),
    _entry("smollm3", no_rope_layers=[1, 0, 1], note="a layer without positions"),
    _entry("gpt_oss", _EXPERTS, _WINDOW, _WIDE_HEADS, note="sink logits, sliding layers; eager"),
    _entry("deepseek_v2", _LATENT, n_shared_experts=1, note="latent keys; values narrower than keys"),
    _entry("deepseek_v3", _LATENT, note="latent keys; values narrower than keys"),
    _entry("deepseek_v32", _LATENT, _CHOSEN, note="each query sees the keys that it chooses"),
    _entry("glm_moe_dsa", _LATENT, _CHOSEN, note="each query sees the keys that it chooses"),
    _entry("hy_v4", _LATENT, _CHOSEN, note="each query sees the keys that it chooses; sink logits; eager"),
    _entry("granite"),
    _entry("granitemoe", _EXPERTS),
    _entry("cohere"),
    _entry("cohere2", _WINDOW, note="sliding layers"),
    _entry("glm", _WIDE_HEADS),
    _entry("glm4", _WIDE_HEADS),
    _entry("starcoder2", sliding_window=None),
    _entry("stablelm"),
    _entry("nemotron"),
    _entry("helium", head_dim=8),
    _entry("exaone4", _WINDOW, note="sliding layers"),
    _entry("ernie4_5", _WIDE_HEADS),
    _entry("hunyuan_v1_dense", _WIDE_HEADS),
    _entry("arcee"),
    _entry("apertus"),
    _entry("seed_oss", _WIDE_HEADS),
    _entry("persimmon"),
    _entry("bitnet"),
    _entry(
        "llama4_text",
        _EXPERTS,
        head_dim=8,
        intermediate_size_mlp=48,
        attention_chunk_size=8,
        note="chunked layers",
    ),
    _entry(
        "lfm2",
        layer_types=["conv", "full_attention", "conv"],
        block_multiple_of=16,
        note="attention in some layers only",
    ),
    _entry(
        "falcon_h1",
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        note="attention beside Mamba",
    ),
    _entry("falcon", refused=_OUTSIDE),
    _entry("gptj", _GPT, rotary_dim=4, refused=_OUTSIDE, note=_SINCE_5_24),
    _entry("bloom", _GPT, refused=_WITHOUT),
    _entry("mpt", d_model=32, n_layers=3, n_heads=4, refused=_WITHOUT),
    _entry("codegen", _GPT, rotary_dim=4, refused=_WITHOUT, note=_SINCE_5_24),
    _entry("xglm", d_model=32, ffn_dim=48, num_layers=3, attention_heads=4, refused=_WITHOUT),
)
