"""`RetrievalHeads`: the scores of every head in every trial, and the file formats they are kept in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regaze.display import Tabular, long_table, short_repr
from regaze.errors import BadParameterError
from regaze.interventions.retrieval_heads import head_files
from regaze.interventions.retrieval_heads.head_files import FORMAT, VERSION
from regaze.reading import StrPath
from regaze.writing import make_folder, replace_file

_LINE = ",\n  "
Head = tuple[int, int]
Score = Literal["paper", "released"]


@dataclass(frozen=True)
class Trial:
    """A successful search for one needle.

    Attributes:
        needle: its index. length: tokens of the prompt. depth: percent. span: the answer's tokens.
        recall: share of the answer's words in the response. response: the model's text.
        kinds: number of different tokens of the answer.
        copied: per (layer, head) that copied any: number of different tokens, and of steps.
    """

    needle: int
    length: int
    depth: float
    span: tuple[int, int]
    recall: float
    response: str
    kinds: int
    copied: Mapping[Head, tuple[int, int]]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        copied = {_name(head): list(counts) for head, counts in self.copied.items()}
        return {**vars(self), "recall": round(self.recall, 4), "copied": copied}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Inverse of `to_dict`; other entries of `data` are ignored."""
        values = {field: data[field] for field in cls.__dataclass_fields__}
        values["copied"] = {_head(name): (kinds, steps) for name, (kinds, steps) in data["copied"].items()}
        return cls(**{**values, "span": tuple(data["span"])})


@dataclass(frozen=True, eq=False)
class RetrievalHeads(Tabular):
    """Scores found by `find_retrieval_heads` or read from a file.

    Attributes:
        released: [trials, layers, Hq] float64, scores as the released code counts.
        paper: the same by the paper's definition; None when read from a file in the released format.
        trials: the successful trials; empty when read from a file in the released format.
        about: the model, how the trials were run, and how many failed.
    """

    released: Tensor
    paper: Tensor | None = None
    trials: tuple[Trial, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    __repr__ = short_repr

    def table(self) -> dict[str, Sequence[Any]]:
        """A row per head, with its mean scores over the trials."""
        known = {"paper": self.paper, "released": self.released}
        means = {name: each.mean(0) for name, each in known.items() if each is not None}
        layers, heads = self.released.shape[1:]
        return long_table({"layer": range(layers), "head": range(heads)}, **means)

    @classmethod
    def from_trials(
        cls, trials: Sequence[Trial], shape: tuple[int, int], about: dict[str, Any] | None = None
    ) -> RetrievalHeads:
        """From trials on a model with `shape` = (layers, query heads)."""
        paper = torch.zeros(len(trials), *shape, dtype=torch.float64)
        released = torch.zeros_like(paper)
        for number, trial in enumerate(trials):
            for (layer, head), (kinds, steps) in trial.copied.items():
                paper[number, layer, head] = kinds / trial.kinds
                released[number, layer, head] = steps / (trial.span[1] - trial.span[0])
        return cls(released, paper, tuple(trials), about or {})

    def scores(self, score: Score = "paper") -> Tensor:
        """[trials, layers, Hq]. Raises BadParameterError for a score that is not known here."""
        if score not in ("paper", "released"):
            raise BadParameterError(f'score must be "paper" or "released", got {score!r}')
        tensor = self.paper if score == "paper" else self.released
        if tensor is None:
            raise BadParameterError("a file in the released format has no paper scores: ask for 'released'")
        return tensor

    def mean(self, score: Score = "paper") -> Tensor:
        """[layers, Hq] float64, the mean score over successful trials."""
        return self.scores(score).mean(0)

    def frequency(self) -> Tensor:
        """[layers, Hq] float64, activation frequency: the share of trials in which a head copied anything."""
        return (self.released > 0).double().mean(0)

    def top(self, count: int, score: Score = "paper") -> list[Head]:
        """The heads with the highest scores, best first; of equal scores the lower layer and head."""
        mean = self.mean(score)
        if not 0 <= count <= mean.numel():
            raise BadParameterError(f"there are {mean.numel()} heads, so there is no top {count}")
        order = mean.flatten().argsort(descending=True, stable=True)[:count]
        return [(int(i) // mean.shape[1], int(i) % mean.shape[1]) for i in order]

    def below(self, threshold: float, score: Score = "paper") -> list[Head]:
        """Heads that score less than `threshold`, in order: those that are not retrieval heads."""
        return [(layer, head) for layer, head in (self.mean(score) < threshold).nonzero().tolist()]

    # Files --------------------------------------------------------------------------------------------

    def save(self, path: StrPath) -> None:
        """Write everything as JSON; `load` gives an equal object.

        Raises:
            BadParameterError: read from a released file, so that there are no trials to write.
        """
        if not self.trials:
            raise BadParameterError("these scores came from a released file: use save_released")
        paper, released, frequency = self.mean("paper"), self.mean("released"), self.frequency()
        layers, heads = paper.shape
        content = {
            "format": FORMAT,
            "version": VERSION,
            **self.about,
            "layers": layers,
            "heads": heads,
            "columns of mean": ["paper score", "released score", "activation frequency"],
            "columns of copied": ["different tokens", "steps"],
        }
        mean = [
            f'"{_name(head)}": {[round(float(table[head]), 4) for table in (paper, released, frequency)]}'
            for head in self.top(layers * heads)
            if frequency[head] > 0
        ]
        trials = [json.dumps(trial.to_dict(), ensure_ascii=False) for trial in self.trials]
        # A line per head and per trial keeps the file small, and the difference of two files readable.
        start = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
        listed = f'"mean": {{\n  {_LINE.join(mean)}\n }},\n "trials": [\n  {_LINE.join(trials)}\n ]\n}}\n'
        _write(path, f"{start},\n {listed}")

    def save_released(self, path: StrPath) -> None:
        """Write the released code's file: one line `{"layer-head": [score of each trial, ...], ...}`."""
        _, layers, heads = self.released.shape
        content = {
            _name((layer, head)): self.released[:, layer, head].tolist()
            for layer in range(layers)
            for head in range(heads)
        }
        _write(path, json.dumps(content))

    @classmethod
    def load(cls, path: StrPath) -> RetrievalHeads:
        """Read a file of either format. Raises InputError, in one line, when it is neither."""
        content = head_files.read(path)
        if "format" not in content:
            return cls(_released_scores(content))
        trials = [Trial.from_dict(trial) for trial in content["trials"]]
        about = {key: value for key, value in content.items() if key not in _OWN}
        return cls.from_trials(trials, (content["layers"], content["heads"]), about)


#: Entries of a file that do not say how the trials were run.
_OWN = {"format", "version", "layers", "heads", "mean", "trials", "columns of mean", "columns of copied"}


def _released_scores(content: dict[str, list[float]]) -> Tensor:
    """[trials, layers, Hq] from the released format."""
    scores = {_head(name): torch.tensor(values, dtype=torch.float64) for name, values in content.items()}
    layers, heads = (1 + max(head[i] for head in scores) for i in (0, 1))
    rows = [scores[layer, head] for layer in range(layers) for head in range(heads)]
    return torch.stack(rows, -1).view(-1, layers, heads)


def _name(head: Head) -> str:
    return f"{head[0]}-{head[1]}"


def _head(name: str) -> Head:
    layer, head = name.split("-")
    return int(layer), int(head)


def _write(path: StrPath, text: str) -> None:
    make_folder(Path(path).parent)
    replace_file(path, text)
