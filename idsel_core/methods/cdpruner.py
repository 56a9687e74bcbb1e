"""CDPruner: a determinantal point process of relevance and diversity."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.ragged import cosines, drop_repeats, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.selection.suppression import score_dtype
from idsel_core.visual_tokens import VisualTokens

SPENT = 0.75
"""Exponent of the machine epsilon that gives the share of its first variance below which a token counts as explained.

In float64 the share is 2e-12: tokens that differ from what the picks explain by the rounding of float32 features.
"""


@dataclass(frozen=True)
class CDPruner(Method):
    """Pick tokens greedily to maximise the determinant of their similarity, weighted by relevance to the question.

    Variances are computed in float64 (float32 on MPS), so that they tell apart tokens of a tight cluster. Tokens that
    the picks explain up to rounding, such as duplicates, come after all others, by falling relevance. Ties go to the
    lowest index. If all tokens are equally relevant, relevance plays no part.

    Source: CDPruner, arXiv 2506.10967.

    Parameters
    ----------
    negated : bool
        Count the least similar tokens as the most relevant, as the authors do: the similarity of CLIP's patches, which
        were not trained to match text, has the wrong sign. A companion tuned on patches does not need it.
    faithful : bool
        As the authors' code does, compute in float32 and continue when no variance is left: the root of a negative
        number then makes it pick tokens again, and fewer tokens are kept.
    """

    name: ClassVar[str] = "cdpruner"
    label: ClassVar[str] = "CDPruner"

    _: KW_ONLY
    negated: bool = False
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("negated", self.negated)
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        relevance = tokens.relevance.float() * (-1 if self.negated else 1)
        low, high = (
            getattr(relevance.masked_fill(~tokens.mask, end), reduce)(1, keepdim=True)
            for reduce, end in (("amin", torch.inf), ("amax", -torch.inf))
        )
        relevance = torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)
        relevance = relevance.masked_fill(~tokens.mask, -torch.inf)
        working = torch.float32 if self.faithful else score_dtype(relevance.device)
        x = unit_vectors(tokens.features.to(working), tokens.mask)
        order = truncate(_largest_volume(cosines(x, x), relevance, int(counts.max()), not self.faithful), counts)
        return Selection.from_order(drop_repeats(order) if self.faithful else order, relevance, self.budget)


def _largest_volume(similarity: Tensor, relevance: Tensor, rounds: int, guarded: bool) -> Tensor:
    """Return greedy picks (B, rounds) for the largest determinant, by an incremental Cholesky factor.

    Parameters
    ----------
    similarity : Tensor
        Cosines of tokens, (B, N, N).
    relevance : Tensor
        (B, N), 0 or more, -inf at padding.
    rounds : int
        Number of picks.
    guarded : bool
        Whether tokens without variance come last, by relevance, instead of the roots of negative numbers.
    """
    rows = torch.arange(len(relevance), device=relevance.device)
    padding = relevance < 0
    weight = relevance.to(similarity.dtype).square().masked_fill(padding, 0)
    variance = similarity.diagonal(dim1=1, dim2=2).clone()
    spent = torch.finfo(variance.dtype).eps ** SPENT * variance
    # Below every gain, and rising with relevance: (B, N) in -1 to 0.
    last_resort = -1 / (1 + relevance.to(similarity.dtype).relu())
    factor = similarity.new_zeros(len(rows), rounds, similarity.shape[2])  # one row of the Cholesky factor a round
    gone = padding.clone()
    picks: list[Tensor] = []
    for step in range(rounds):
        gain = variance * weight
        if guarded:
            gain = torch.where(variance > spent, gain, last_resort).masked_fill_(gone, -torch.inf)
        else:
            gain = gain.masked_fill(padding | (gone & ~gain.isnan()), -torch.inf)
            if picks:
                gain[rows, picks[-1]] = -torch.inf
        pick = gain.max(dim=1).indices
        picks.append(pick)
        gone[rows, pick] = True
        before = factor[:, :step]
        with full_precision(factor.device):
            explained = (before[rows, :, pick][:, None] @ before)[:, 0]
        row = (similarity[rows, pick] - explained) * variance[rows, pick, None].rsqrt()
        if guarded:
            row = row.where((variance > spent)[rows, pick, None], 0)
        factor[:, step] = row
        variance = variance - row.square()
    return torch.stack(picks, dim=1)
