"""PruneSID: groups of tokens by principal components, and suppression of similar tokens in each group."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_above_zero, check_count
from idsel_core.methods._shared.ragged import argsort_by, cosines, rank_in_group, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.selection.suppression import score_dtype
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class PruneSID(Attended):
    """Group tokens by principal components, and keep the most attended tokens of each group without a similar one.

    A column of a matrix holds the logistic function of one token's features, less their mean. Its first right singular
    vectors, one for every four tokens of the budget but no more than its rank, are the components, and a token belongs
    to the one in which its entry is largest. In a group the most attended token is taken, those whose cosine with it is
    above a threshold are set aside, and so on; the tokens set aside follow, by attention. The threshold is the image's
    mean cosine of two tokens times K / `scale` for K tokens. Each group gets one token, and the rest in proportion to
    the tokens that its suppression took, at most 5 for every 64 tokens of the budget begun.

    Source: PruneSID, arXiv 2603.09480. Singular vectors are exact; the authors draw them at random. The authors also
    keep [CLS], as one of the tokens of the budget; here one more token is kept instead. Ties go to the lowest index.

    Parameters
    ----------
    per_group : int
        Tokens of the budget for each group.
    scale : float
        Budget at which the threshold is the mean cosine.
    """

    name: ClassVar[str] = "prunesid"
    label: ClassVar[str] = "PruneSID"

    _: KW_ONLY
    per_group: int = 4
    scale: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("per_group", self.per_group)
        check_above_zero("scale", self.scale)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        mask, attention = tokens.mask, self.row(tokens)
        counts = resolve_budget(self.budget, tokens.lengths)
        x = unit_vectors(tokens.encoder_features, mask)
        alike = cosines(x, x)
        pairs = tokens.lengths * (tokens.lengths - 1)
        mean = (alike.sum((1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(1)) / pairs.clamp_min(1)  # (B,)
        groups = (counts // self.per_group).clamp_min(1)
        group = _components(tokens.encoder_features, mask, groups)
        taken = _suppressed(alike > (mean * counts / self.scale)[:, None, None], group, attention, mask)
        # (B, G): tokens of each group, and those that the suppression took.
        shape = (len(mask), int(groups.max()))
        sizes, firsts = (
            group.new_zeros(shape).scatter_add(1, group.clamp_min(0), (where & mask).long()) for where in (mask, taken)
        )
        quotas = [
            _quotas(count, np.array(size), np.array(first))
            for count, size, first in zip(counts.tolist(), sizes.tolist(), firsts.tolist(), strict=True)
        ]
        quota = torch.tensor(np.stack(quotas), device=mask.device)
        # By group, then those that were taken, then attention.
        order = argsort_by((attention,), mask)
        place = torch.empty_like(order).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        rank = rank_in_group(group, taken * order.shape[1] - place, mask)
        keep = mask & (rank < quota.gather(1, group.clamp_min(0)))
        return Selection.from_order(truncate(argsort_by((keep, attention), mask), counts), attention, self.budget)


def _components(features: Tensor, mask: Tensor, groups: Tensor) -> Tensor:
    """Return the component of each token, from 0 and below `groups` (B,), int64 (B, N); -1 at padding.

    Components of no energy but rounding are none. A token whose features are all equal has an entry in no component,
    and belongs to the first.
    """
    working = score_dtype(features.device)
    values = torch.sigmoid(features.to(working).masked_fill(~mask[..., None], 0))  # (B, N, D)
    values = (values - values.mean(2, keepdim=True)).masked_fill(~mask[..., None], 0)
    flat = values.square().sum(2) <= values.shape[2] * (8 * torch.finfo(working).eps) ** 2  # (B, N)
    values = values.masked_fill(flat[..., None], 0)
    long = values.shape[1] > values.shape[2]
    with full_precision(values.device):
        # (B, D, D) if there are more tokens than channels, else (B, N, N).
        energies, vectors = torch.linalg.eigh(values.mT @ values if long else values @ values.mT)
        most = min(int(groups.max()), vectors.shape[2])
        energies, vectors = energies.flip(1)[:, :most], vectors.flip(2)[..., :most]
        if long:
            vectors = values @ vectors / energies[:, None].clamp_min(torch.finfo(working).tiny).sqrt()
    vectors = vectors.abs()  # (B, N, G)
    # The squares of the singular values are exact to this share of the largest.
    rounding = torch.finfo(working).eps * mask.sum(1, keepdim=True).clamp_min(values.shape[2])  # (B, 1)
    groups = groups.minimum((energies > rounding * energies[:, :1]).sum(1).clamp_min(1))
    beyond = torch.arange(vectors.shape[2], device=mask.device) >= groups[:, None]  # (B, G)
    return vectors.masked_fill(beyond[:, None], -1).max(dim=2).indices.masked_fill(flat, 0).masked_fill(~mask, -1)


def _suppressed(alike: Tensor, group: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return a mask (B, N) of the tokens that are taken in turn by falling score, each setting aside those like it.

    `alike` (B, N, N) says which tokens set each other aside if they are of one group (B, N).
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    # before[b, i, j]: token j comes before token i.
    before = (scores[:, None] > scores[..., None]) | ((scores[:, None] == scores[..., None]) & (place < place[:, None]))
    rivals = alike & before & (group[:, None] == group[..., None])
    open_, taken = mask.clone(), torch.zeros_like(mask)
    while bool(open_.any()):
        # Open tokens without an open rival before them are taken; those that they set aside are closed.
        first = open_ & ~(rivals & open_[:, None]).any(2)
        taken |= first
        open_ = open_ & ~first & ~(rivals & first[:, None]).any(2)
    return taken


def _quotas(count: int, sizes: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Distribute `count` tokens over groups of `sizes` tokens, of which suppression took `firsts`; all int (G,)."""
    least, most = np.minimum(1, sizes), np.minimum(5 * math.ceil(count / 64), np.minimum(sizes, firsts))
    while most.sum() < count:
        most = np.minimum(most + 1, sizes)
    rest = max(count - int(least.sum()), 0)
    ends = np.round(np.cumsum(firsts / firsts.sum()) * rest).astype(int)
    quotas = np.minimum(np.diff(ends, prepend=0) + least, most)
    for group in np.argsort(-firsts, kind="stable"):
        quotas[group] += min(most[group] - quotas[group], max(count - quotas.sum(), 0))
    return quotas
