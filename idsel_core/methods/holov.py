"""HoloV: a budget for each stretch of the image, and the most attended tokens of each."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_above_zero, check_count
from idsel_core.methods._shared.ragged import argsort_by, cosines, rank_in_group, sum_by_group, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

LEAST_VARIANCE = 1e-6
"""What the authors add to a mean variance before they divide by it."""


@dataclass(frozen=True)
class HoloV(Attended):
    """Distribute the budget over stretches of the image by attention and variety, and keep the most attended of each.

    The tokens are cut into stretches in raster order, of equal length up to one token. The variety of a token is the
    variance of its cosines with the others of its stretch, brought to the mean attention of the stretch. A stretch gets
    a share of the budget in proportion to the mean of attention plus `alpha` times variety: its share is rounded down,
    and what is left goes to the largest shares. What a full stretch cannot take goes to the others in turn, the largest
    share first; the authors' code loses it.

    Because variety is brought to the mean attention, a stretch's share is that of its attention unless all of its
    tokens are alike; variety does not choose tokens within a stretch. Ties go to the lowest index.

    Source: HoloV, arXiv 2510.02912. The paper's code includes a token's own entry, set to 0, in its variance; here the
    other tokens count alone. It reads a stretch by falling attention; here tokens stay in raster order.

    Parameters
    ----------
    crops : int
        Number of stretches; as many as tokens if there are fewer of these.
    alpha : float
        Weight of the variety.
    """

    name: ClassVar[str] = "holov"
    label: ClassVar[str] = "HoloV"

    _: KW_ONLY
    crops: int = 16
    alpha: float = 0.09

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("crops", self.crops)
        check_above_zero("alpha", self.alpha)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        mask, attention = tokens.mask, self.row(tokens)
        counts = resolve_budget(self.budget, tokens.lengths)
        part = _stretches(mask, self.crops)
        x = unit_vectors(tokens.features, mask)
        together = (part[:, None] == part[..., None]) & mask[:, None] & mask[..., None]
        together.diagonal(dim1=1, dim2=2).fill_(False)
        alike, others = cosines(x, x), together.sum(2).clamp_min(1)
        mean = (alike * together).sum(2) / others  # (B, N)
        variance = ((alike - mean[..., None]).square() * together).sum(2) / others
        # (B, P)
        sizes, attended, varied = (_total(part, v, self.crops) for v in (mask.float(), attention, variance))
        variety = variance * (attended / (varied + sizes * LEAST_VARIANCE).clamp_min(LEAST_VARIANCE)).gather(1, part)
        scores = (attention + self.alpha * variety).masked_fill(~mask, -torch.inf)
        worth = _total(part, scores, self.crops) / sizes.clamp_min(1)
        quotas = [_quotas(*row) for row in zip(counts.tolist(), worth.tolist(), sizes.int().tolist(), strict=True)]
        keep = mask & (rank_in_group(part, attention, mask) < torch.tensor(quotas, device=mask.device).gather(1, part))
        return Selection.from_order(truncate(argsort_by((keep, attention), mask), counts), scores, self.budget)


def _stretches(mask: Tensor, parts: int) -> Tensor:
    """Return the stretch of each token, from 0, int64 (B, N); the first stretches have one token more, 0 at padding."""
    length = mask.sum(1, keepdim=True)
    parts_of = length.clamp_max(parts)
    short, longer = length // parts_of, length % parts_of  # tokens of a short stretch, number of longer ones
    rank = mask.cumsum(1) - 1
    edge = longer * (short + 1)  # tokens in the longer stretches
    part = torch.where(rank < edge, rank // (short + 1), longer + (rank - edge) // short)
    return part.where(mask, 0)


def _total(part: Tensor, values: Tensor, parts: int) -> Tensor:
    """Return the sum of finite values (B, N) over each stretch, (B, parts)."""
    return sum_by_group(values.masked_fill(values == -torch.inf, 0)[..., None], part, parts)[0][..., 0]


def _quotas(count: int, worth: list[float], sizes: list[int]) -> list[int]:
    """Distribute `count` tokens over stretches of `sizes` tokens in proportion to their worth."""
    total = sum(worth)
    shares = [count * w / total if total > 0 else count * n / sum(sizes) for w, n in zip(worth, sizes, strict=True)]
    quotas = [math.floor(share) for share in shares]
    ranking = sorted(range(len(shares)), key=lambda p: (-shares[p], p))
    for part in ranking[: count - sum(quotas)]:
        quotas[part] += 1
    quotas = [min(quota, size) for quota, size in zip(quotas, sizes, strict=True)]
    while (rest := count - sum(quotas)) > 0:
        for part in [p for p in ranking if quotas[p] < sizes[p]][:rest]:
            quotas[part] += 1
    return quotas
