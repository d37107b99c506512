"""The log of trials: continued where it is one, left alone and refused in one line where it is not."""

from __future__ import annotations

import json

import pytest

from regaze.errors import InputError
from regaze.interventions.retrieval_heads.head_files import TrialEntry
from regaze.interventions.retrieval_heads.trial_log import TrialLog

TRIAL = {
    "needle": 0,
    "length": 9,
    "depth": 50,
    "span": [1, 3],
    "recall": 0.5,
    "response": "x",
    "kinds": 2,
    "copied": {},
}
LINE = json.dumps({"key": "a", **TRIAL}) + "\n"


@pytest.mark.parametrize("written", [LINE, LINE + '{"key": "b", "nee', LINE + '{"ke'])
def test_whole_lines_are_continued(tmp_path, written):
    (tmp_path / "log").write_text(written)
    with TrialLog(tmp_path / "log") as log:
        assert log.get_or_run("a", lambda: pytest.fail("the trial is known"), TrialEntry)["recall"] == 0.5
        log.get_or_run("c", lambda: TRIAL)
    assert [json.loads(line)["key"] for line in (tmp_path / "log").read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize(
    "written",
    [
        '{"answers": [1, 2, 3]}',
        "notes without a newline",
        "[1]\n",
        '{"key": 1, "recall": 0.5}\n',
        '{"key": "a"}\n',
        '{"key": "a", "recall": 7}\n',
        "[" * 100_000 + "\n",
        '{"key": "a", "recall": ' + "9" * 5000 + "}\n",
    ],
)
def test_other_files_are_refused_and_left_alone(tmp_path, written):
    (tmp_path / "log").write_text(written)
    with pytest.raises(InputError, match="is not a log of trials"):
        TrialLog(tmp_path / "log")
    assert (tmp_path / "log").read_text() == written


@pytest.mark.parametrize("change", [{"kinds": 0}, {"copied": {"x": [1, 1]}}, {"span": [1]}, {"depth": "9"}])
def test_a_damaged_trial_is_named(tmp_path, change):
    (tmp_path / "log").write_text(json.dumps({"key": "a", **TRIAL, **change}) + "\n")
    with TrialLog(tmp_path / "log") as log, pytest.raises(InputError, match="trial with key 'a' is damaged"):
        log.get_or_run("a", lambda: TRIAL, TrialEntry)
