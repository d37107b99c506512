"""Functions of the tasks repope_random, repope_popular and repope_adversarial.

The questions and images are those of lmms-eval's own POPE; RePOPE's labels are read from where
`regaze benchmarks get repope` puts them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regaze.errors import InputError
from regaze.eval.benchmarks.common.download import benchmark_folder
from regaze.eval.benchmarks.pope.label_sets import LABEL_SETS_SCORERS, Labels
from regaze.eval.benchmarks.pope.published import SPLITS
from regaze.eval.benchmarks.pope.repope import FILE, Key, question_key, read_labels
from regaze.eval.files import find_file

SCORER = next(scorer for scorer in LABEL_SETS_SCORERS if scorer.name == "repope")


def add_labels(dataset: Any) -> Any:
    """The data set with a column "repope": the corrected label, "" where there is none.

    Raises:
        InputError: The labels are not there, or belong to none of the questions.
    """
    labels = _labels()
    keys = map(question_key, dataset["image_source"], dataset["question"])
    column = [labels.get(key, "") for key in keys]
    if not any(column):
        raise InputError(f"none of the {len(column)} questions has a label of RePOPE")
    return dataset.add_column("repope", column)


def _labels() -> dict[Key, str]:
    """The labels of all splits; a question that several splits have is labelled alike in all."""
    folder = benchmark_folder("repope")
    try:
        paths = {split: find_file(folder, FILE.format(split=split)) for split in SPLITS}
    except InputError as error:
        raise InputError(f"{error}; run `regaze benchmarks get repope`") from error
    return {key: label for split, path in paths.items() for key, label in read_labels(path, split).items()}


def visual(doc: Mapping[str, Any]) -> list[Any]:
    """The image."""
    return [doc["image"].convert("RGB")]


def results(doc: Mapping[str, Any], answers: Sequence[str]) -> dict[str, Any]:
    """{figure: what it is counted from}, the same for every figure."""
    sample = {"pope": doc["answer"].strip().lower(), "repope": doc["repope"], "answer": answers[0]}
    return dict.fromkeys(SCORER.metrics, sample)


def _figure(name: str) -> Callable[[Sequence[Mapping[str, str]]], float]:
    def aggregate(samples: Sequence[Mapping[str, str]]) -> float:
        references = [Labels(sample["pope"], sample["repope"] or None) for sample in samples]
        return SCORER.score(references, [sample["answer"] for sample in samples])[name]

    return aggregate


accuracy, precision, recall, f1 = map(_figure, ("accuracy", "precision", "recall", "f1"))
yes_ratio, unreadable = _figure("yes_ratio"), _figure("unreadable")
pope_accuracy, pope_precision = _figure("pope_accuracy"), _figure("pope_precision")
pope_recall, pope_f1, pope_yes_ratio = map(_figure, ("pope_recall", "pope_f1", "pope_yes_ratio"))
accuracy_shift, precision_shift = _figure("accuracy_shift"), _figure("precision_shift")
recall_shift, f1_shift = _figure("recall_shift"), _figure("f1_shift")
