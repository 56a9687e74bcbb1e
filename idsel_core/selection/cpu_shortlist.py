"""Backend "shortlist": picks on a CPU with torch alone, from the tokens of highest score."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from idsel_core.selection.suppression import Suppression, floors, restarted
from idsel_core.selection.torch_rounds import pick_in_rounds

FIRST_SHORTLIST = 128


def pick_from_shortlist(
    image: Suppression, scores: Tensor, dead: Tensor, count: int, restart: bool = False
) -> list[int]:
    """Pick the tokens that `pick_in_rounds` picks.

    Scores never rise within a sweep. So rounds run on a shortlist of the highest scores while no token outside it can
    score higher; then all scores are updated and the next shortlist is taken. If a shortlist yields few picks, as it
    does for equal scores, the remaining rounds run on all tokens.

    Parameters
    ----------
    image : Suppression
        One image (B = 1) on the CPU.
    scores : Tensor
        float64 (1, N), -inf where `dead`.
    dead : Tensor
        bool (1, N); tokens that cannot be picked.
    count : int
        Number of tokens to pick, at most the number of tokens that are not dead.
    restart : bool
        Whether the scores are set back when they have run out.

    Returns
    -------
    list of int
        The picks.
    """
    order: list[int] = []
    dead = dead.clone()
    original = scores if restart else None
    floor = floors(scores) if restart else torch.zeros_like(scores[:, :1])
    stop = float(floor) if restart else -math.inf
    size = min(FIRST_SHORTLIST, 5 * count // 4 + 1)
    while count:
        if original is not None:
            # The exhaustion rule.
            scores = restarted(scores, dead, original, floor)
        ranking = scores.sort(dim=1, descending=True, stable=True)
        if ranking.values[0, 0] <= floor[0, 0]:  # neither update changes such scores, or the next restart undoes it
            return order + ranking.indices[0, :count].tolist()
        size = min(size, int((ranking.values > floor).sum()), scores.shape[1] - 1)
        enough = size >= 4
        picks, values = (
            _on_shortlist(image, scores, dead, ranking.indices[:, : size + 1], count, stop) if enough else ([], [])
        )
        if 4 * len(picks) < size or not picks:
            return order + pick_in_rounds(image, scores, dead, count, original=original)[0].tolist()
        order += picks
        count -= len(picks)
        if count:
            picked = torch.tensor([picks])
            dead.scatter_(1, picked, True)
            scores = image.suppress(scores, dead, image.strengths_of(picked), scores.new_tensor([values]))
        # Long enough for the remaining picks, if it yields as many for its length as this one did.
        size = min(4 * size, 5 * count * size // (4 * len(picks)) + 1)
    return order


def _on_shortlist(
    image: Suppression, scores: Tensor, dead: Tensor, ranked: Tensor, count: int, stop: float
) -> tuple[list[int], list[float]]:
    """Return up to `count` picks from the tokens `ranked` (1, S), and their scores.

    The last token of `ranked` is a sentinel for all tokens outside the shortlist. None of them scores more than it, now
    or later; so its score stays fixed, and picking stops when it becomes the highest, or no score is above `stop`.
    """
    short, rank = ranked.sort(dim=1)  # by index, so that ties go to the lowest; (1, S) each
    sentinel = int(rank.argmax())
    table = image.strengths_among(short)[0].numpy()  # (S, S)
    table[:, sentinel] = 0 if image.update == "subtract" else 1
    below_all = -math.inf if image.update == "subtract" else -1.0  # infinity times 0 would be NaN
    gone = dead.gather(1, short)[0].numpy()
    now = np.where(gone, below_all, scores.gather(1, short)[0].numpy())
    picks: list[int] = []
    values: list[float] = []
    # On rows this short a call of NumPy costs a fifth of a call of torch.
    while len(picks) < count and (best := int(now.argmax())) != sentinel and now[best] > stop:
        picks.append(best)
        values.append(now[best])
        # The update rule, as in `Suppression.suppress`.
        now = now - max(now[best], 0.0) * table[best] if image.update == "subtract" else now * table[best]
        gone[best] = True
        now[gone] = below_all
    return short[0, picks].tolist(), values
