"""The logit lens: the next-token prediction of every layer, read from its hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regaze.display import Tabular, ranges
from regaze.errors import BadParameterError, InputError, UnsupportedModelError
from regaze.toolkit.analysis.answers import token_map_of
from regaze.toolkit.analysis.forward import (
    EachDevice,
    HiddenStateProbe,
    RowChoice,
    row_index,
    run_forward,
    stacked,
)
from regaze.toolkit.model.hidden_logits import LogitReader
from regaze.toolkit.prompts.token_map import TokenMap
from regaze.toolkit.wrap import Gaze

#: Logits in memory at once, in elements: 32 MiB in fp32, and a few copies of them.
_ELEMENTS = 1 << 23


@dataclass(frozen=True, eq=False, repr=False)
class LogitLens(Tabular):
    """Predictions of the hidden states in some layers, through the model's final norm and output matrix.

    Attributes:
        layers: [S] l is the input of layer l (0: the embeddings); the number of layers is the output of the
            last layer, which gives the model's own logits.
        top_ids: [S, B, R, k] the likeliest tokens, best first. top_probs: [S, B, R, k] their probabilities.
        entropy: [S, B, R] of the prediction, in nats.
        targets: [T] ids of the targets. target_probs, target_ranks: [S, B, R, T], ranks from 0.
        rows: [B, R] positions; -1 where a sample has fewer, whose entries are meaningless.
        tokens: roles of the prompt. strings: text of all these ids, if there is a tokenizer.
    """

    layers: tuple[int, ...]
    top_ids: Tensor
    top_probs: Tensor
    entropy: Tensor
    targets: tuple[int, ...]
    target_probs: Tensor
    target_ranks: Tensor
    rows: Tensor
    tokens: TokenMap
    strings: dict[int, str]

    def __repr__(self) -> str:
        return f"LogitLens(layers {ranges(self.layers)}, top_ids {list(self.top_ids.shape)})"

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer, sample, position and rank of the likeliest tokens."""
        real = (self.rows >= 0)[..., None].expand_as(self.top_ids)
        state, sample, row, rank = real.nonzero(as_tuple=True)
        ids = self.top_ids[state, sample, row, rank].tolist()
        return {
            "layer": [self.layers[each] for each in state.tolist()],
            "sample": sample.tolist(),
            "position": self.rows[sample, row].tolist(),
            "rank": rank.tolist(),
            "token": ids,
            "text": [self.strings.get(token, "") for token in ids],
            "probability": self.top_probs[state, sample, row, rank].tolist(),
        }

    def words(self, sample: int = 0, best: int = 0) -> list[list[str]]:
        """The likeliest word (`best` 0; 1 is the second) of each layer and row of a sample."""
        real = self.rows[sample] >= 0
        ids = self.top_ids[:, sample, real, best]
        return [[self.strings.get(token, str(token)) for token in layer] for layer in ids.tolist()]

    def image_words(self, layer: int, sample: int = 0, image: int = 0, best: int = 0) -> list[list[str]]:
        """The word of each patch of an image in a layer, as rows and columns of its grid."""
        columns = self.tokens.grids[sample][image][1] if self.tokens.grids[sample] else 0
        ids = self.top_ids[self._state(layer), sample, self._patches(sample, image), best].tolist()
        words = [self.strings.get(token, str(token)) for token in ids]
        return [words[start : start + columns] for start in range(0, len(words), columns)]

    def image_map(self, target: int = 0, sample: int = 0, image: int = 0) -> Tensor:
        """Probability of a target (by its index) at the patches of an image, [S, rows, columns]."""
        if not 0 <= target < len(self.targets):
            raise BadParameterError(f"target {target} was not asked for; there are {len(self.targets)}")
        values = self.target_probs[:, sample, self._patches(sample, image), target]
        return values.unflatten(1, self.tokens.grids[sample][image])

    def _state(self, layer: int) -> int:
        if layer not in self.layers:
            raise BadParameterError(f"layer {layer} was not read; the lens has {list(self.layers)}")
        return self.layers.index(layer)

    def _patches(self, sample: int, image: int) -> Tensor:
        """Numbers of the rows that show an image's cells, in row-major order."""
        row_at = {int(position): row for row, position in enumerate(self.rows[sample]) if position >= 0}
        cells = self.tokens.image_cells(sample, image).tolist()
        if not all(cell in row_at for cell in cells):
            raise InputError('the image\'s tokens are not among the rows of the lens; use rows="all"')
        return torch.tensor([row_at[cell] for cell in cells])


def logit_lens(
    gaze: Gaze,
    inputs: Mapping[str, Any],
    *,
    rows: RowChoice = "all",
    layers: Sequence[int] | None = None,
    k: int = 5,
    targets: Sequence[int | str] = (),
) -> LogitLens:
    """Predictions of every layer: the next word at text positions, a word at image positions.

    Source: nostalgebraist, "interpreting GPT: the logit lens" (2020); on image tokens Neo et al., "Towards
    Interpreting Visual Information Processing in Vision-Language Models" (arXiv:2410.07149). The final norm
    is applied to every layer, as the model does to its last. Logits exist for one block of rows at a time.

    Args:
        inputs: from `gaze.inputs`, or `with_answers` to include an answer. rows: see `RowChoice`.
        layers: see `LogitLens`; default: all, from 0 to the number of layers.
        k: how many of the likeliest tokens to keep per layer and row.
        targets: ids, or words. Of a word, with a space before it as inside a text, the first token counts.

    Raises:
        BadParameterError: layers or k that do not exist. UnsupportedModelError: the model does something else
        after its last layer than a norm, its output matrix, and a scale or soft cap.
    """
    tokens = token_map_of(gaze, inputs)
    vocabulary = gaze.model.get_output_embeddings().weight.shape[0]
    if not 1 <= k <= vocabulary:
        raise BadParameterError(f"k must be in 1..{vocabulary}, got {k}")
    ids = tuple(_target(gaze, target, vocabulary) for target in targets)
    probe = _LensProbe(gaze.model, row_index(tokens, rows), layers, k, ids)
    with torch.no_grad():
        probe.check(run_forward(gaze, inputs, probe).logits)
    parts = stacked(probe.per_layer, probe.chosen)
    strings = _strings(gaze, [*parts[0].unique().tolist(), *ids])
    top_ids, top_probs, entropy, probabilities, ranks = parts
    return LogitLens(
        probe.chosen, top_ids, top_probs, entropy, ids, probabilities, ranks, probe.rows, tokens, strings
    )


class _LensProbe(HiddenStateProbe):
    """Reads predictions from the hidden states of each layer."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Tensor,
        layers: Sequence[int] | None,
        k: int,
        targets: tuple[int, ...],
    ):
        super().__init__(layers)
        self.rows, self.k, self.reader = rows, k, LogitReader(model)
        self._index = EachDevice(rows.clamp_min(0))
        self._targets = EachDevice(torch.tensor(targets, dtype=torch.int64))
        self.per_layer: dict[int, tuple[Tensor, ...]] = {}

    def measure(self, layer: int, hidden: Tensor) -> None:
        self.per_layer[layer] = self._read(hidden)

    def check(self, logits: Tensor) -> None:
        """Compare the prediction of the last layer with the model's own logits [B, 1, V] of the last row."""
        own = self.reader.read(self.last_output[:, -1]).float()
        expected = logits[:, -1].to(own)
        tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
        if not torch.allclose(own, expected, rtol=0, atol=tolerance * max(1.0, float(own.abs().max()))):
            raise UnsupportedModelError(
                "the model's logits are not its last layer read through the final norm and the output matrix "
                "(or another intervention changes them): its layers cannot be read the same way"
            )

    def _read(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """[B, L, D] -> the tensors of a `LogitLens` for one layer, in the order of `_summary`."""
        index = self._index.to(hidden.device).tensor
        rows = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2])).flatten(0, 1)
        size = max(1, _ELEMENTS // self.reader.read(rows[:1]).shape[-1])
        parts = [self._summary(self.reader.read(part).float()) for part in rows.split(size)]
        return tuple(torch.cat(part).unflatten(0, index.shape) for part in zip(*parts, strict=True))

    def _summary(self, logits: Tensor) -> tuple[Tensor, ...]:
        probabilities = logits.softmax(-1)
        top = probabilities.topk(self.k)
        targets = self._targets.to(logits.device).tensor
        of_targets = logits[:, targets]
        ranks = torch.zeros_like(of_targets, dtype=torch.int64)
        for column, own in enumerate(of_targets.unbind(1)):  # one by one: [rows, V] at a time
            ranks[:, column] = (logits > own[:, None]).sum(-1)
        entropy = torch.special.entr(probabilities).sum(-1)
        return top.indices, top.values, entropy, probabilities[:, targets], ranks


def _target(gaze: Gaze, target: int | str, vocabulary: int) -> int:
    if isinstance(target, str):
        tokenizer = gaze.reader.tokenizer
        if tokenizer is None:
            raise InputError("give targets as ids: regaze.wrap was given no tokenizer")
        ids = tokenizer(" " + target.strip(), add_special_tokens=False)["input_ids"]
        spelled = [token for token in ids if tokenizer.decode([token]).strip()]
        if not spelled:
            raise BadParameterError(f"the word {target!r} has no token")
        return int(spelled[0])
    if not 0 <= int(target) < vocabulary:
        raise BadParameterError(f"target {target} is not among the ids 0..{vocabulary - 1}")
    return int(target)


def _strings(gaze: Gaze, ids: Sequence[int]) -> dict[int, str]:
    tokenizer = gaze.reader.tokenizer
    if tokenizer is None:
        return {}
    return {token: tokenizer.decode([token]).strip() or tokenizer.decode([token]) for token in ids}
