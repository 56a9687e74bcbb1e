"""The greedy of id_select on a CPU, computing only similarities that can matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idsel_core.suppression import Suppression, Update

FIRST_SHORTLIST = 128
MOST_ROWS = 256
Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]


def lazy_greedy(image: Suppression, scores: Tensor, dead: Tensor, count: int) -> list[int]:
    """Pick the tokens that `suppression.greedy` picks.

    Scores never rise. So rounds run on a shortlist of the highest scores alone, as far as they cannot be beaten
    from outside, and only then all scores are brought up to date. Where a shortlist yields few picks, as with equal
    scores, the rows of the tokens that lead are computed together, and rounds run on all tokens.

    Parameters
    ----------
    image : Suppression
        One image (B = 1) on the CPU.
    scores : Tensor
        float64 (1, N), -inf where `dead`.
    dead : Tensor
        bool (1, N); tokens that cannot be picked.
    count : int
        Tokens to pick, at most those not dead.

    Returns
    -------
    list of int
        The picks.
    """
    order: list[int] = []
    dead = dead.clone()
    size = min(FIRST_SHORTLIST, 5 * count // 4 + 1)
    while count:
        ranking = scores.sort(dim=1, descending=True, stable=True)
        if ranking.values[0, 0] <= 0:  # neither update moves such scores
            return order + ranking.indices[0, :count].tolist()
        size = min(size, int((ranking.values > 0).sum()), scores.shape[1] - 1)
        picks, values = (
            _rounds_on_shortlist(image, scores, dead, ranking.indices[:, : size + 1], count) if size >= 4 else ([], [])
        )
        if 4 * len(picks) < size or not picks:
            return order + _rounds_on_all(image, scores[0].numpy(), dead[0].numpy(), count)
        order += picks
        count -= len(picks)
        if count:
            picked = torch.tensor([picks])
            dead.scatter_(1, picked, True)
            scores = image.suppress(scores, dead, image.strengths_of(picked), scores.new_tensor([values]))
        # As many as will do for the rest, should they yield as much.
        size = min(4 * size, 5 * count * size // (4 * len(picks)) + 1)
    return order


def _rounds_on_shortlist(
    image: Suppression, scores: Tensor, dead: Tensor, ranked: Tensor, count: int
) -> tuple[list[int], list[float]]:
    """Return up to `count` picks from the tokens `ranked` (1, S), and their scores.

    The last of `ranked` is the sentinel. It stands for all tokens outside: none of them scores more, now or later,
    so its score is left as it is, and once it would win nothing more is known.
    """
    short, rank = ranked.sort(dim=1)
    sentinel = int(rank.argmax())
    table = image.strengths_among(short)[0].numpy()
    table[:, sentinel] = 0 if image.update == "subtract" else 1
    row_of = list(range(len(table)))
    row_of[sentinel] = -1
    now, gone = scores.gather(1, short)[0].numpy(), dead.gather(1, short)[0].numpy()
    picks, values, _ = _rounds(image.update, now, gone, table, row_of, count)
    return short[0, picks].tolist(), values


def _rounds_on_all(image: Suppression, now: Floats, gone: Flags, count: int) -> list[int]:
    """Return `count` picks of all tokens (N,), computing the rows of those that lead in blocks."""
    order: list[int] = []
    rows: list[Floats] = []
    row_of = [-1] * len(now)
    block = 16
    while len(order) < count:
        known = np.array(row_of) >= 0
        leading = np.where(gone | known, -math.inf, now)
        tokens = np.argsort(-leading, kind="stable")
        alive = np.flatnonzero(~gone)
        if now[alive].max() <= 0:
            return order + alive[np.argsort(-now[alive], kind="stable")][: count - len(order)].tolist()
        tokens = tokens[: min(block, count)]
        tokens = tokens[leading[tokens] > -math.inf]
        if len(rows) + len(tokens) > MOST_ROWS:
            rows.clear()
            row_of = [-1] * len(now)
        for token in tokens.tolist():
            row_of[token] = len(rows)
            rows.append(np.empty(0))
        rows[-len(tokens) :] = image.strengths_of(torch.from_numpy(tokens)[None])[0].numpy()
        picks, _, now = _rounds(image.update, now, gone, rows, row_of, count - len(order))
        order += picks
        block = (
            min(32, 2 * block) if 2 * len(picks) > block else max(4, block // 2) if 4 * len(picks) < block else block
        )
    return order


def _rounds(
    update: Update, now: Floats, gone: Flags, rows: Sequence[Floats] | Floats, row_of: Sequence[int], count: int
) -> tuple[list[int], list[float], Floats]:
    """Run rounds on scores (M,) until a token wins that has no row, which `row_of` says by -1.

    Return up to `count` picks, their scores, and the new scores; `gone` is brought up to date.
    """
    # NumPy's calls cost a fifth of torch's on rows as short as these.
    below_all = -math.inf if update == "subtract" else -1.0  # infinity times 0 would be NaN
    now = np.where(gone, below_all, now)
    picks: list[int] = []
    values: list[float] = []
    while len(picks) < count and (row := row_of[best := int(now.argmax())]) >= 0:
        picks.append(best)
        values.append(now[best])
        now = now - max(now[best], 0.0) * rows[row] if update == "subtract" else now * rows[row]
        gone[best] = True
        now[gone] = below_all
    return picks, values, now
