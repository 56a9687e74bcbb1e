"""Distribution of a total of tokens over images by how much their first tokens hold."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.methods._shared.ragged import cosines
from idsel_core.selection.suppression import score_dtype


def energy_curves(features: Tensor, mask: Tensor) -> Tensor:
    """Return the share of an image's K largest squared singular values in the sum of all, (B, N) for K of 1 to N.

    Parameters
    ----------
    features : Tensor
        (B, N, D), any float dtype; padding may hold any value.
    mask : Tensor
        bool (B, N); True at tokens.
    """
    x = features.to(score_dtype(features.device)).masked_fill(~mask[..., None], 0)
    tall = x.shape[1] > x.shape[2]
    table = cosines(x.mT, x.mT) if tall else cosines(x, x)  # (B, N, N) or, if smaller, (B, D, D)
    energies = torch.linalg.eigvalsh(table).flip(1).clamp_min(0)
    energies = torch.nn.functional.pad(energies, (0, x.shape[1] - energies.shape[1]))
    return _rising(energies, mask)


def mass_curves(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the share of an image's K largest scores (B, N), 0 or more, in the sum of all, (B, N) for K of 1 to N."""
    working = scores.to(score_dtype(scores.device)).masked_fill(~mask, 0)
    return _rising(working.sort(dim=1, descending=True).values, mask)


def _rising(falling: Tensor, mask: Tensor) -> Tensor:
    """Return the cumulative shares of falling values (B, N); equal ones where all values are 0."""
    total = falling.sum(1, keepdim=True)
    equal = (torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True)).to(falling)
    falling = torch.where(total > 0, falling, equal)
    curves = falling.cumsum(1)
    return curves / curves[:, -1:]


def allocate(curves: Tensor, least: Tensor, most: Tensor, total: int) -> tuple[Tensor, float]:
    """Distribute a total of tokens so that all images reach the same level of their curve, up to whole tokens.

    The next token goes to the image whose tokens so far hold the least; among equal ones to the image with fewer
    tokens, then to the first.

    Parameters
    ----------
    curves : Tensor
        (B, N), rising; what the first 1 to N tokens of each image hold.
    least, most : Tensor
        int64 (B,); fewest and most tokens of each image.
    total : int
        Sum to reach, from the sum of `least` to that of `most`.

    Returns
    -------
    tuple[Tensor, float]
        The number of tokens of each image, int64 (B,), and the highest level that a token was given below; 0 if none
        was given beyond `least`.

    Raises
    ------
    ValueError
        If the total is out of reach.
    """
    low, high = int(least.sum()), int(most.sum())
    if not low <= total <= high:
        raise ValueError(f"the total must be from {low} to {high} tokens, not {total}")
    # (B, N): what an image holds before its token of this rank, from 0.
    before = torch.nn.functional.pad(curves[:, :-1], (1, 0))
    rank = torch.arange(curves.shape[1], device=curves.device)
    free = (rank >= least[:, None]) & (rank < most[:, None])
    # By rank, then by image, so that a stable sort decides equal levels as stated.
    order = before.masked_fill(~free, torch.inf).mT.flatten().sort(stable=True).indices[: total - low]
    images, levels = order % len(curves), before.mT.flatten()[order]
    counts = least + torch.zeros_like(least).scatter_add(0, images, torch.ones_like(images))
    return counts, float(levels.max()) if len(levels) else 0.0
