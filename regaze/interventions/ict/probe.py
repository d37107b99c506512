"""How well each head tells two kinds of inputs apart, and which way: a probe and a shift per head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Newton's steps, and halvings of one; a probe that is not done by then is as good as it gets.
_STEPS, _HALVINGS = 60, 12
_TOLERANCE = 1e-9


def shifts_and_scores(trusted: Tensor, untrusted: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """What takes a head from untrusted to trusted inputs, and how well a probe tells them apart.

    The shift is the unit difference of the means times the standard deviation of all activations along it.
    The score is the mean accuracy of a logistic probe over two folds, each fitted on the other.

    Args:
        trusted, untrusted: [N, H, d] activations of heads.
        order: [2N] in which the activations, trusted before untrusted, are divided into folds.

    Returns:
        [H, d] and [H] fp64; both are 0 for a head that is the same on both.
    """
    x = torch.cat([trusted, untrusted]).double().transpose(0, 1)  # [H, 2N, d]
    count = len(trusted)
    unit = F.normalize(x[:, :count].mean(1) - x[:, count:].mean(1), dim=-1)
    spread = (x @ unit[..., None])[..., 0].std(1, correction=0)
    labels = torch.ones(2 * count, dtype=torch.float64)
    labels[count:] = -1.0
    x, labels = x[:, order], labels[order]
    half = (len(order) + 1) // 2
    folds = slice(0, half), slice(half, None)
    accuracies = []
    for train, test in (folds[::-1], folds):
        weights = _logistic(x[:, train], labels[train])
        accuracies.append(((_with_one(x[:, test]) @ weights)[..., 0] * labels[test] > 0).double().mean(1))
    differs = unit.norm(dim=-1) > 0
    return spread[:, None] * unit, torch.stack(accuracies).mean(0) * differs


def _logistic(x: Tensor, labels: Tensor) -> Tensor:
    """Weights [H, d + 1, 1] of logistic probes on x [H, n, d], L2 with C = 1, the intercept left free.

    Newton's method with halved steps: the result is that of any solver that converges.
    """
    x = _with_one(x)
    penalty = torch.ones(x.shape[-1], dtype=x.dtype)
    penalty[-1] = 0.0
    weights = x.new_zeros(len(x), x.shape[-1], 1)
    loss = _loss(x, labels, weights, penalty)
    for _ in range(_STEPS):
        margin = labels[:, None] * (x @ weights)
        miss = torch.sigmoid(-margin)
        gradient = penalty[:, None] * weights - x.mT @ (labels[:, None] * miss)
        if float(gradient.abs().max()) < _TOLERANCE:
            break
        curvature = x.mT @ (miss * (1 - miss) * x) + torch.diag(penalty + 1e-12)
        step = torch.linalg.solve(curvature, gradient)
        for _ in range(_HALVINGS):
            trial = _loss(x, labels, weights - step, penalty)
            worse = trial > loss
            if not bool(worse.any()):
                break
            step = torch.where(worse[:, None, None], step / 2, step)
        weights, loss = weights - step, _loss(x, labels, weights - step, penalty)
    return weights


def _with_one(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)


def _loss(x: Tensor, labels: Tensor, weights: Tensor, penalty: Tensor) -> Tensor:
    """[H] what the probe minimises."""
    margin = labels[:, None] * (x @ weights)
    return F.softplus(-margin).sum((1, 2)) + 0.5 * (penalty[:, None] * weights.square()).sum((1, 2))
