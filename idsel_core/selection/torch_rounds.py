"""Backend "torch": picks round by round on any device, the most readable of the four."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.selection.suppression import Suppression, floors, restarted


def pick_in_rounds(
    images: Suppression,
    scores: Tensor,
    dead: Tensor,
    rounds: int,
    steps: list[Tensor] | None = None,
    original: Tensor | None = None,
) -> Tensor:
    """Pick one token of each image a round, and update the scores of all others.

    A round is a few kernels for the whole batch and never waits for the device.

    Parameters
    ----------
    images : Suppression
        B images.
    scores : Tensor
        (B, N) in the dtype of `score_dtype`, -inf where `dead`.
    dead : Tensor
        bool (B, N); tokens that cannot be picked.
    rounds : int
        Number of tokens to pick of each image.
    steps : list of Tensor, optional
        The scores before each pick are appended to it, float32 (B, N).
    original : Tensor, optional
        The scores (B, N) that a restart sets back to; without them there is none.

    Returns
    -------
    Tensor
        Long (B, rounds); the picks.
    """
    picks = []
    dead = dead.clone()
    floor = None if original is None else floors(original)
    for _ in range(rounds):
        if original is not None and floor is not None:
            scores = restarted(scores, dead, original, floor)
        if steps is not None:
            steps.append(scores.float())
        value, pick = scores.max(dim=1, keepdim=True)  # (B, 1); the lowest index of equal scores
        scores = images.suppress(scores, dead.scatter_(1, pick, True), images.strengths_of(pick), value)
        picks.append(pick)
    return torch.cat(picks, dim=1)
