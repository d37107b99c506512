"""`Trace`: the attention statistics of one generation.

Nothing in it is L x L: for each layer, head and recorded row there is the mass of each role, and optionally
the entropy, the strongest column, the log-sum-exp and a slice of columns.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from regaze.display import Summary, Tabular, ranges
from regaze.errors import BadParameterError, RecordingError
from regaze.toolkit.prompts.token_map import Role, TokenMap

#: Statistics of a trace, named as in `Stats`.
STATISTICS = ("masses", "entropy", "top_weight", "top_column", "lse", "slices")


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Tabular):
    """The statistics of one generation in N rows: those of the prefill, then one per decode step.

    Attributes:
        layers: numbers of the recorded layers, in order; the first dimension of every statistic.
        masses: [layers, B, Hq, N, 7] by `Role`. entropy, lse, top_weight, top_column: [layers, B, Hq, N].
        slices: [layers, B, Hq, N, n] weights of `slice_columns` [B, n] (-1: a sample has fewer), or of all
            columns.
        row_position: [N] column of each row's query token. row_step: [N] the step of each row.
        row_active: [B, N] whether a sample has the row. A row after the end of its answer, which `generate`
            feeds while other samples go on, is none of its rows; statistics are 0 there.
        input_ids: [B, L] of the prompt. output_ids: [B, T] of the answer, where they are known; padded after
            the end.
        tokens: roles of the prompt, or None where they are not known.
        text: for each sample the text of each token of prompt and answer up to its end; None without a
            tokenizer.
        interventions: those that were active, as `Intervention.to_dict()`.
        cross: the same rows in the cross-attention layers; its `tokens` are the keys of these layers.
    """

    layers: tuple[int, ...]
    row_position: Tensor
    row_step: Tensor
    row_active: Tensor
    masses: Tensor | None = None
    entropy: Tensor | None = None
    top_weight: Tensor | None = None
    top_column: Tensor | None = None
    lse: Tensor | None = None
    slices: Tensor | None = None
    slice_columns: Tensor | None = None
    input_ids: Tensor | None = None
    output_ids: Tensor | None = None
    tokens: TokenMap | None = None
    text: tuple[tuple[str, ...], ...] | None = None
    interventions: tuple[dict[str, Any], ...] = ()
    cross: Trace | None = None

    def __repr__(self) -> str:
        tensors = {name: getattr(self, name) for name in STATISTICS}
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in tensors.items() if t is not None)
        return f"Trace(layers {ranges(self.layers)}, steps 0..{int(self.row_step.max())}: {shapes})"

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per layer, sample, head and recorded row that a sample has; slices are left out."""
        known = {name: each for name in STATISTICS if (each := getattr(self, name)) is not None}
        slices = known.pop("slices", None)
        masses = known.pop("masses", None)
        first = next(each for each in (masses, slices, *known.values()) if each is not None)
        real = self.row_active[None, :, None].expand(first.shape[:4])
        layer, sample, head, row = real.nonzero(as_tuple=True)
        columns: dict[str, Sequence[Any]] = {
            "layer": [self.layers[each] for each in layer.tolist()],
            "sample": sample.tolist(),
            "head": head.tolist(),
            "step": self.row_step[row].tolist(),
            "column": self.row_position[row].tolist(),
        }
        if masses is not None:
            columns |= {role.name.lower(): masses[..., int(role)][real].tolist() for role in Role}
        return columns | {name: each[real].tolist() for name, each in known.items()}

    def _summary(self) -> Summary:
        """What was recorded, and under which interventions."""
        facts = {
            "layers": ranges(self.layers),
            "samples": len(self.row_active),
            "rows": f"{len(self.row_step)}, of steps 0 to {int(self.row_step.max())}",
            "interventions": self.method_names,
        }
        shapes = {name: list(each.shape) for name in STATISTICS if (each := getattr(self, name)) is not None}
        answers = {f"answer {row}": "".join(self.answer_text(row)) for row in range(len(self.row_active))}
        return Summary("Trace", facts=facts | shapes | {name: text for name, text in answers.items() if text})

    @property
    def method_names(self) -> str:
        """The names of the interventions that were active; "plain" without one."""
        return " + ".join(each["method"] for each in self.interventions) or "plain"

    def require(self, name: str) -> Tensor:
        """A statistic. Raises RecordingError, which says how to record it, where it is missing."""
        tensor: Tensor | None = getattr(self, name)
        if tensor is None:
            option = _OPTIONS.get(name, f"{name}=True")
            raise RecordingError(f"{name} was not recorded; use gaze.recording({option}, ...)")
        return tensor

    def answer_rows(self, sample: int | None = None) -> Tensor:
        """[T] rows that predict the answer's tokens 0, 1, ...: the last prefill row, and the decode rows.

        Args:
            sample: rows of this one's answer; None: up to the end of the longest.
        """
        last = int((self.row_step == 0).nonzero()[-1]) if bool((self.row_step == 0).any()) else 0
        rows = torch.arange(last, len(self.row_step))
        if sample is None:
            return rows
        return rows[self.row_active[sample, rows] | (self.row_step[rows] == 0)]

    def answer_text(self, sample: int = 0) -> list[str]:
        """Texts of the answer's tokens, one per answer row; "" where the token is not known."""
        count = len(self.answer_rows(sample))
        known = [] if self.text is None else list(self.text[sample][self._prompt_length :])
        return (known + [""] * count)[:count]

    @property
    def _prompt_length(self) -> int:
        return 0 if self.input_ids is None else self.input_ids.shape[1]

    def row_of(self, token: int | str, sample: int = 0) -> int:
        """Index, among the N recorded rows, of the row of an answer token (its number) or of a word.

        A word is searched for in the answer first: its row is the one that predicts its last token. Then it
        is searched for in the prompt: its row is that of its last token (record it with rows="text").

        Raises:
            BadParameterError: no such token, or the word's row was not recorded.
        """
        rows = self.answer_rows(sample)
        if isinstance(token, int):
            if not 0 <= token < len(rows):
                raise BadParameterError(
                    f"answer token {token} was not recorded; the record has 0..{len(rows) - 1}"
                )
            return int(rows[token])
        found = _last_token_of(token, self.answer_text(sample))
        if found is not None:
            return int(rows[found])
        found = _last_token_of(token, [] if self.text is None else self.text[sample][: self._prompt_length])
        if found is None:
            raise BadParameterError(f"the word {token!r} occurs neither in the answer nor in the question")
        here = ((self.row_position == found) & self.row_active[sample]).nonzero().flatten()
        if not len(here):
            raise BadParameterError(
                f'the row of {token!r} was not recorded; use gaze.recording(rows="text", ...)'
            )
        return int(here[0])

    def image_maps(self, sample: int = 0, view: int = 0) -> Tensor:
        """Slices as maps over the grid of a view (its number), [layers, Hq, N, rows, columns]."""
        if self.tokens is None or not self.tokens.grids[sample]:
            raise RecordingError("the record has no image grid, so its slices cannot be laid out as a map")
        slices, (rows, columns) = self.require("slices")[:, sample], self.tokens.grids[sample][view]
        cells = self.tokens.image_cells(sample, view)
        if self.slice_columns is not None:  # slices have image columns only: find each cell among them
            recorded = self.slice_columns[sample]
            cells = torch.tensor([int((recorded == column).nonzero()[0]) for column in cells])
        return slices[..., cells].unflatten(-1, (rows, columns))


#: How to record a statistic, where it is not the option of the same name.
_OPTIONS = {"slices": 'slices="image"', "top_weight": "top1=True", "top_column": "top1=True"}


def _last_token_of(word: str, tokens: Sequence[str]) -> int | None:
    """Number of the token in which the last occurrence of `word`, as whole words in any case, ends."""
    ends = list(accumulate(len(token) for token in tokens))
    pattern = r"\s+".join(map(re.escape, word.split()))
    # Only letters and digits need a word boundary beside them: "?" follows a word without one.
    before, after = (r"(?<!\w)" if word[:1].isalnum() else ""), (r"(?!\w)" if word[-1:].isalnum() else "")
    found = list(re.finditer(before + pattern + after, "".join(tokens), re.IGNORECASE)) if pattern else []
    return bisect_left(ends, found[-1].end()) if found else None


def token_texts(
    tokenizer: Any, input_ids: Tensor | None, output_ids: Tensor | None, lengths: Sequence[int] | None = None
) -> tuple[tuple[str, ...], ...] | None:
    """For each sample the text of each token of prompt and answer; None without a tokenizer or ids.

    Args:
        lengths: number of tokens of each answer; None: all.
    """
    if tokenizer is None or input_ids is None:
        return None
    ids = (input_ids if output_ids is None else torch.cat([input_ids, output_ids], 1)).tolist()
    if lengths is not None:
        ids = [row[: input_ids.shape[1] + count] for row, count in zip(ids, lengths, strict=True)]
    # Of equal parts, as an image's tokens and the prompts of a batch have many, one is decoded.
    parts: dict[tuple[int, ...], None] = {}
    for row in ids:
        parts |= dict.fromkeys([*((token,) for token in row), *pairwise(row)])
    decoded = tokenizer.batch_decode([list(part) for part in parts]) if parts else []
    texts = dict(zip(parts, decoded, strict=True))
    return tuple(tuple(_token_texts(texts, row)) for row in ids)


def _token_texts(texts: Mapping[tuple[int, ...], str], ids: list[int]) -> list[str]:
    """The text of each token with the space before it, which decoding the token alone may drop.

    Args:
        texts: of every token alone, and of every two that follow each other.
    """
    alone, pairs = [texts[token,] for token in ids], [texts[pair] for pair in pairwise(ids)]
    rest = [
        pair[len(first) :] if pair.startswith(first) else second
        for first, pair, second in zip(alone, pairs, alone[1:], strict=False)
    ]
    return alone[:1] + rest
