"""Greedy selections as plain loops over the N x N table of cosines, parts of their work, tokens, a check in float64.

They need torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

FEATURES = ("random", "clustered", "common")
SCORES = ("peaked", "uniform", "equal")

RUN_OUT = torch.finfo(torch.float64).eps ** 0.75
"""Share of the highest score at and below which scores have run out."""
NEAR = 1e-6
"""Share of the highest score below which rounding decides whether scores have run out."""


def own_gamma(x: Tensor) -> Tensor:
    """Return the gamma at which a token at the mean distance of all pairs of unit vectors (N, D) has weight 0.01."""
    count = len(x)
    distance = 1 - (x.double().sum(0).square().sum() - count) / (count * (count - 1))
    return math.log(100) / distance.square()


def reference(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """ID-Selection as it is by default, with all N x N cosines, a few kernels a step."""
    x = normalize(x.float(), dim=-1)
    distance = torch.nn.functional.threshold(1 - (x @ x.T).double(), 32 * torch.finfo(torch.float32).eps, 0.0)
    weights = torch.exp(-own_gamma(x) * distance.square())
    first, picks = scores.double(), []
    scores, floor, gone = first, RUN_OUT * first.max(), torch.zeros_like(first, dtype=torch.bool)
    for _ in range(k):
        if scores.max() <= floor:  # a new sweep
            scores = first.masked_fill(gone, -torch.inf)
        best = scores.argmax()
        gone[best] = True
        picks.append(best)
        scores = (scores * (1 - weights[best])).masked_fill(gone, -torch.inf)
    return torch.stack(picks)


def divprune(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """Max-min distance: the token whose nearest pick is farthest; first, whose nearest neighbour is."""
    x = normalize(x, dim=-1)
    distance = 1 - x @ x.T
    picks = distance.topk(2, dim=0, largest=False).values[1].argmax()[None]
    for _ in range(k - 1):
        picks = torch.cat([picks, distance[picks].amin(dim=0).argmax()[None]])
    return picks


def cdpruner(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """Greedy determinant of diag(r) S diag(r), by incremental Cholesky."""
    x = normalize(x, dim=-1)
    r = (scores - scores.min() + 1e-6) / (scores.max() - scores.min() + 1e-6)
    kernel = r[:, None] * (x @ x.T) * r
    gain = kernel.diagonal().clone()
    factors = torch.zeros(k, len(x), device=x.device)
    picks = []
    for step in range(k):
        best = gain.argmax()
        picks.append(best)
        row = (kernel[best] - factors[:step, best] @ factors[:step]) / gain[best].clamp_min(1e-12).sqrt()
        factors[step] = row
        gain = gain - row.square()
        gain[best] = -torch.inf
    return torch.stack(picks)


def scope(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """Coverage gained, times the score."""
    x = normalize(x, dim=-1)
    cosines = x @ x.T
    covered = torch.zeros(len(x), device=x.device)
    picked = torch.zeros_like(covered, dtype=torch.bool)
    picks = []
    for _ in range(k):
        gain = (cosines - covered).clamp_min(0).sum(dim=1) * scores
        best = gain.masked_fill(picked, -torch.inf).argmax()
        picks.append(best)
        picked[best] = True
        covered = torch.maximum(covered, cosines[best])
    return torch.stack(picks)


LOOPS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "reference": reference,
    "divprune": divprune,
    "cdpruner": cdpruner,
    "scope": scope,
}


def lengths_and_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Read features (N, D) twice: for their lengths (N,), and for the sum of all (D,)."""
    return torch.linalg.vector_norm(x, dim=1), x.sum(0)


def rows_at_once(x: Tensor, k: int) -> list[Tensor]:
    """Multiply K rows of the table of all products in one call."""
    return [*lengths_and_mean(x), x[:k] @ x.T]


def rows_in_turn(x: Tensor, k: int) -> list[Tensor]:
    """Multiply K rows of the table, one after the other."""
    return [*lengths_and_mean(x), *(x @ row for row in x[:k])]


def half_the_table(x: Tensor, k: int, block: int = 128) -> list[Tensor]:
    """Multiply each pair of tokens about once."""
    return [*lengths_and_mean(x), *(x[at : at + block] @ x[at:].T for at in range(0, len(x), block))]


BOUNDS: dict[str, Callable[[Tensor, int], list[Tensor]]] = {
    "K rows at once": rows_at_once,
    "K rows in turn": rows_in_turn,
    "half the table": half_the_table,
}
"""Parts of the work of an exact selection; they pick nothing."""


def make_features(kind: str, n: int, d: int) -> Tensor:
    """Return (n, d) features."""
    noise = torch.randn(n, d)
    if kind == "random":
        return noise
    x = torch.randn(40, d)[torch.randint(40, (n,))] + 0.5 * noise
    return x if kind == "clustered" else x + 1.5 * torch.randn(d)


def make_scores(kind: str, *shape: int) -> Tensor:
    """Return scores, with images as rows."""
    if kind == "peaked":
        return torch.randn(shape).mul(2).softmax(-1)
    return torch.rand(shape) if kind == "uniform" else torch.ones(shape)


def gap(x: Tensor, scores: Tensor, order: Tensor) -> float:
    """Follow the default rule along `order` in float64; return the worst pick's distance from the best token."""
    x, first = normalize(x.double(), dim=-1), scores.double()
    highest, worst, scores, gone = float(first.max()), 0.0, first, torch.zeros_like(first, dtype=torch.bool)
    gamma = own_gamma(x)
    for start in range(0, len(order), 64):
        block = order[start : start + 64]
        weights = torch.exp(-gamma * (1 - x[block] @ x.T).clamp_min(0).square())
        for pick, row in zip(block.tolist(), weights, strict=True):
            # Scores near 0 may have run out or not, by rounding.
            again = first.masked_fill(gone, -torch.inf)
            below = float(scores.max() - scores[pick])
            if scores.max() <= RUN_OUT * highest or (scores.max() < NEAR * highest and below > 0):
                scores, below = again, float(again.max() - again[pick])
            worst = max(worst, below)
            gone[pick] = True
            scores = (scores * (1 - row)).masked_fill(gone, -torch.inf)
    return worst / highest
