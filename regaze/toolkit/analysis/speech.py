"""Cross-attention of speech models (Whisper), and scorers for `faithfulness` that hide sound from them.

After "Cross-Attention is Half Explanation in Speech-to-Text Models" (arXiv:2509.18010), which compares
cross-attention with saliency on the spectrogram and on the encoder's output. Its saliency method, SPES,
scores masks by the divergence of the whole next-token distribution; here the score is the log-probability of
the answer's tokens, as everywhere in this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from regaze.caching import cached_property
from regaze.display import short_repr
from regaze.errors import ShapeError, UnsupportedModelError
from regaze.toolkit.analysis.occlusion import check_hidden
from regaze.toolkit.model import compat


@dataclass(frozen=True, eq=False)
class Utterance:
    """A recording and its transcript by a model.

    Args:
        model: an encoder-decoder speech model of transformers, such as WhisperForConditionalGeneration.
        features: [1, mels, frames] log-mel spectrogram, padded as the model needs it.
        prompt: [P] decoder ids before the answer (start of transcript, ...).
        answer: [T] ids of the transcript.
        frames: frames of the spectrogram with sound; regions cover these and not the padding.
        width: frames of the spectrogram per region, a multiple of those per encoder frame.

    Raises:
        ShapeError: features, frames or a width that do not fit.
    """

    model: Any
    features: Tensor
    prompt: Tensor
    answer: Tensor
    frames: int
    width: int = 10

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.features.dim() != 3 or len(self.features) != 1:
            raise ShapeError(f"features are [1, mels, frames], got {list(self.features.shape)}")
        total = self.features.shape[-1]
        if not 0 < self.frames <= total:
            raise ShapeError(
                f"frames of sound must be within 1..{total}, the spectrogram's; got {self.frames}"
            )
        if self.width < 1 or self.width % self.stride:
            raise ShapeError(
                f"an encoder frame spans {self.stride} frames: width must be a multiple, got {self.width}"
            )

    @cached_property
    def encoded(self) -> Tensor:
        """[1, encoder frames, hidden], the encoder's output."""
        return self.encode(self.features)

    @cached_property
    def stride(self) -> int:
        """Frames of the spectrogram that an encoder frame spans (Whisper: 2)."""
        return self.features.shape[-1] // self.encoded.shape[1]

    @property
    def windows(self) -> int:
        """Number of regions in time; the last one may reach into the padding."""
        return -(-self.frames // self.width)

    def encode(self, features: Tensor) -> Tensor:
        """[m, mels, frames] -> [m, encoder frames, hidden]."""
        with torch.inference_mode():
            return self.model.get_encoder()(features).last_hidden_state

    def log_probs(self, encoded: Tensor) -> Tensor:
        """[m, encoder frames, hidden] -> [m, T] log-probabilities of the answer's tokens."""
        return self._answer_log_probs(self._decode(encoded).logits)

    def cross_attention(self) -> Tensor:
        """[layers, heads, T, encoder frames], the rows that predict the tokens of the answer.

        The model runs with eager attention for this one forward.

        Raises:
            UnsupportedModelError: the model returns no cross-attention.
        """
        before = compat.current_attention(self.model)
        self.model.set_attn_implementation("eager")
        try:
            maps = self._decode(self.encoded, output_attentions=True).cross_attentions
        finally:
            self.model.set_attn_implementation(before)
        if not maps or maps[0] is None:
            raise UnsupportedModelError(f"{type(self.model).__name__} returns no cross-attention")
        return torch.stack([layer[0, :, len(self.prompt) - 1 : -1] for layer in maps])

    def gradient_saliency(self) -> Tensor:
        """Gradient x (input - silence) in each window of time, [T, windows] in nats.

        What hiding a window would cost if the log-probability of a token were linear in the spectrogram. It
        takes one forward and T backward passes, and complements `occlusion_saliency`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            features = self.features.clone().requires_grad_()
            encoded = self.model.get_encoder()(features).last_hidden_state
            scores = self._answer_log_probs(self._run(encoded).logits)[0]
            gradients = [torch.autograd.grad(score, features, retain_graph=True)[0][0] for score in scores]
            effect = torch.stack(gradients) * (self.features - self.features.amin())
        return self._sum_windows(effect.sum(1), self.width).detach().cpu()

    def by_window(self, maps: Tensor) -> Tensor:
        """Mass of maps [..., encoder frames] in each window of time, [..., windows]."""
        return self._sum_windows(maps, self.width // self.stride)

    def _sum_windows(self, maps: Tensor, size: int) -> Tensor:
        end = min(self.windows * size, maps.shape[-1])
        padded = F.pad(maps[..., :end], (0, self.windows * size - end))
        return padded.unflatten(-1, (self.windows, size)).sum(-1)

    def _decode(self, encoded: Tensor, **options: Any) -> Any:
        with torch.inference_mode():
            return self._run(encoded, **options)

    def _run(self, encoded: Tensor, **options: Any) -> Any:
        ids = torch.cat([self.prompt, self.answer]).to(encoded.device).expand(len(encoded), -1)
        return self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded),
            decoder_input_ids=ids,
            use_cache=False,
            **options,
        )

    def _answer_log_probs(self, logits: Tensor) -> Tensor:
        """[m, T] log-probabilities of the answer's tokens, from the logits of prompt and answer."""
        # A clone: autograd cannot use ids that were generated in inference mode.
        answer = self.answer.to(logits.device).clone().expand(len(logits), -1)
        rows = logits[:, len(self.prompt) - 1 : -1].float()
        return rows.log_softmax(-1).gather(-1, answer[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class SpectrogramPatches:
    """A `Scorer` that silences parts of the spectrogram, before the encoder.

    Hidden patches get the lowest value of the spectrogram, as the padding has.

    Args:
        utterance: the recording. bands: regions in frequency; there are bands x windows regions, row-major.
        batch_size: variants per forward.
    """

    utterance: Utterance
    bands: int = 1
    batch_size: int = 8

    @property
    def count(self) -> int:
        return self.bands * self.utterance.windows

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, bands * windows] bool -> [m, T] log-probabilities of the answer's tokens."""
        check_hidden(hidden, self.count)
        return torch.cat([self._score(part) for part in hidden.split(self.batch_size)])

    def _score(self, hidden: Tensor) -> Tensor:
        features, width = self.utterance.features, self.utterance.width
        mels, frames = features.shape[1:]
        band = torch.arange(mels) * self.bands // mels
        window = torch.arange(frames) // width
        grid = F.pad(
            hidden.unflatten(1, (self.bands, self.utterance.windows)),
            (0, max(0, int(window[-1]) + 1 - self.utterance.windows)),
        )
        silent = grid[:, band][:, :, window].to(features.device)
        return self.utterance.log_probs(
            self.utterance.encode(torch.where(silent, features.amin(), features))
        ).cpu()


@dataclass(frozen=True, eq=False)
class EncoderWindows:
    """A `Scorer` that hides windows of time from the decoder, after the encoder.

    Hidden frames get the mean of the encoder's output, which has no information about their place in time.

    Args:
        utterance: the recording. batch_size: variants per forward.
    """

    utterance: Utterance
    batch_size: int = 32

    @property
    def count(self) -> int:
        return self.utterance.windows

    def __call__(self, hidden: Tensor) -> Tensor:
        """[m, windows] bool -> [m, T] log-probabilities of the answer's tokens."""
        check_hidden(hidden, self.count)
        encoded = self.utterance.encoded
        size = self.utterance.width // self.utterance.stride
        window = torch.arange(encoded.shape[1]) // size
        scores = []
        for part in hidden.split(self.batch_size):
            padded = F.pad(part, (0, max(0, int(window[-1]) + 1 - self.count)))
            masked = padded[:, window, None].to(encoded.device)
            scores.append(
                self.utterance.log_probs(torch.where(masked, encoded.mean(1, keepdim=True), encoded))
            )
        return torch.cat(scores).cpu()
