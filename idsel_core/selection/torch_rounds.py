"""The greedy by torch alone, round by round, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.selection.suppression import Suppression


def greedy(images: Suppression, scores: Tensor, dead: Tensor, rounds: int, steps: list[Tensor] | None = None) -> Tensor:
    """Run rounds on all tokens; a round is a few kernels for the whole batch and never waits for the device.

    Parameters
    ----------
    images : Suppression
        B images.
    scores : Tensor
        (B, N) in the dtype of `score_dtype`, -inf where `dead`.
    dead : Tensor
        bool (B, N); tokens that cannot be picked.
    rounds : int
        Tokens to pick of each image.
    steps : list of Tensor, optional
        Receives the scores before each pick, float32 (B, N).

    Returns
    -------
    Tensor
        Long (B, rounds); the picks.
    """
    picks = []
    dead = dead.clone()
    for _ in range(rounds):
        if steps is not None:
            steps.append(scores.float())
        value, pick = scores.max(dim=1, keepdim=True)
        scores = images.suppress(scores, dead.scatter_(1, pick, True), images.strengths_of(pick), value)
        picks.append(pick)
    return torch.cat(picks, dim=1)
