"""OPERA's scores of over-trust against hand examples."""

from __future__ import annotations

import math

import pytest
import torch

from regaze.interventions.opera.over_trust import (
    grow_columns,
    over_trust_penalty,
    penalised_log_probs,
    rollback_column,
    row_modes,
)


def columns_of(rows: list[list[float]], scale: float = 50.0) -> torch.Tensor:
    columns = torch.zeros(1, 0, dtype=torch.float64)
    for row in rows:
        columns = grow_columns(columns, torch.tensor([row]), scale)
    return columns


# Scores -------------------------------------------------------------------------------------------------

ROWS = [[0.5], [0.3, 0.2], [0.2, 0.3, 0.1]]


def test_column_scores_of_the_hand_example():
    scores = (columns_of(ROWS) + math.log(1e-7)).exp()[0]
    torch.testing.assert_close(scores, torch.tensor([3.75e-4, 1.5e-5, 5e-7]).double(), rtol=1e-6, atol=0)
    for window, expected in ((None, (3.75e-4, 0)), (2, (1.5e-5, 1)), (1, (5e-7, 2)), (9, (3.75e-4, 0))):
        penalty, place = over_trust_penalty(columns_of(ROWS), window)
        assert (float(penalty), int(place)) == (pytest.approx(expected[0], rel=1e-6), expected[1])


def test_long_answers_neither_overflow_nor_underflow():
    columns = torch.zeros(3, 0, dtype=torch.float64)
    weights = torch.tensor([1.0, 1e-3, 0.0])
    for length in range(1, 701):
        columns = grow_columns(columns, weights[:, None].expand(3, length), 50.0)
    assert columns[0, 0] == pytest.approx(700 * math.log(50))
    assert columns[0, 0] > math.log(torch.finfo(torch.float64).max)
    assert columns[1, 0] == pytest.approx(700 * math.log(0.05), rel=1e-6)
    assert columns[1, 0] < math.log(torch.finfo(torch.float64).tiny)
    penalty, place = over_trust_penalty(columns)
    assert penalty[0] == pytest.approx(1e6)
    assert penalty[2] == 0.0
    assert place.tolist() == [0, 699, 0]
    logits = torch.tensor([[-1.0, -2.0]]).double()
    shares = penalised_log_probs(
        logits, penalty[:1, None].expand(1, 2), 1.0
    )  # penalised alike, they stay as they were
    torch.testing.assert_close(shares, logits, rtol=0, atol=1e-6)


def test_candidates_share_their_own_probability_or_all_of_it():
    probs = torch.tensor([[0.4, 0.2]]).double()
    lowered = torch.tensor([[math.log(2), 0.0]]).double()  # 0.4 becomes 0.2
    torch.testing.assert_close(
        penalised_log_probs(probs.log(), lowered, 1.0).exp(), torch.tensor([[0.3, 0.3]]).double()
    )
    torch.testing.assert_close(
        penalised_log_probs(probs.log(), lowered, 1.0, True).exp(), torch.tensor([[0.5, 0.5]]).double()
    )
    torch.testing.assert_close(penalised_log_probs(probs.log(), lowered, 0.0), probs.log())


def test_place_is_the_candidates_mode_and_all_beams_must_agree():
    assert row_modes(torch.tensor([[3, 1, 3, 0], [2, 1, 1, 2], [5, 4, 3, 2]])).tolist() == [3, 1, 2]
    often = torch.tensor([[0, 4, 4, 4], [4, 2, 4, 4]])
    assert rollback_column(often, threshold=2, min_position=4) == 4
    assert rollback_column(often, threshold=3, min_position=4) is None
    assert rollback_column(often, threshold=2, min_position=5) is None
    assert (
        rollback_column(torch.tensor([[4, 4, 4, 4], [4, 4, 4, 2]]), 2, 0) is None
    )  # one beam leans elsewhere
    assert rollback_column(torch.tensor([[4, 4, 4], [3, 3, 3]]), 2, 0) == 3  # the earliest of several
    assert rollback_column(torch.tensor([[4, 4, 4], [3, 3, 3]]), 2, 4) is None
