"""The greedy of id_select on a CPU by torch alone: rounds run on a shortlist as long as it is sure to hold the best."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from idsel_core.selection.suppression import Suppression
from idsel_core.selection.torch_rounds import greedy

FIRST_SHORTLIST = 128


def lazy_greedy(image: Suppression, scores: Tensor, dead: Tensor, count: int) -> list[int]:
    """Pick the tokens that `suppression.greedy` picks.

    Scores never rise. So rounds run on a shortlist of the highest scores alone, as far as they cannot be beaten
    from outside, and only then all scores are brought up to date. Where a shortlist yields few picks, as with equal
    scores, rounds run on all tokens.

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
        enough = size >= 4
        picks, values = (
            _on_shortlist(image, scores, dead, ranking.indices[:, : size + 1], count) if enough else ([], [])
        )
        if 4 * len(picks) < size or not picks:
            return order + greedy(image, scores, dead, count)[0].tolist()
        order += picks
        count -= len(picks)
        if count:
            picked = torch.tensor([picks])
            dead.scatter_(1, picked, True)
            scores = image.suppress(scores, dead, image.strengths_of(picked), scores.new_tensor([values]))
        # As many as will do for the rest, should they yield as much.
        size = min(4 * size, 5 * count * size // (4 * len(picks)) + 1)
    return order


def _on_shortlist(
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
    below_all = -math.inf if image.update == "subtract" else -1.0  # infinity times 0 would be NaN
    gone = dead.gather(1, short)[0].numpy()
    now = np.where(gone, below_all, scores.gather(1, short)[0].numpy())
    picks: list[int] = []
    values: list[float] = []
    # NumPy's calls cost a fifth of torch's on rows as short as these.
    while len(picks) < count and (best := int(now.argmax())) != sentinel:
        picks.append(best)
        values.append(now[best])
        now = now - max(now[best], 0.0) * table[best] if image.update == "subtract" else now * table[best]
        gone[best] = True
        now[gone] = below_all
    return short[0, picks].tolist(), values
