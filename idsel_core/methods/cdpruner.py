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
from idsel_core.visual_tokens import VisualTokens

SPENT = 1e-4
"""Share of its variance, in float32, below which a token is taken to be explained by the picked ones."""


@dataclass(frozen=True)
class CDPruner(Method):
    """Pick greedily for the largest determinant of similarity, scaled by relevance to the question.

    Tokens that the picked ones explain whole, such as duplicates, follow after all others, by falling relevance.

    Source: CDPruner, arXiv 2506.10967.

    Parameters
    ----------
    negated : bool
        Take the least similar tokens as the relevant ones, as the authors do: CLIP's own patches, which were not
        trained to match text, answer with the wrong sign. A companion tuned on patches needs no such thing.
    faithful : bool
        Go on when nothing is left to explain, as the authors do: the root of a negative number makes tokens be picked
        again, and fewer tokens are kept.
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
        """Choose tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        relevance = tokens.relevance.float() * (-1 if self.negated else 1)
        low, high = (
            getattr(relevance.masked_fill(~tokens.mask, end), reduce)(1, keepdim=True)
            for reduce, end in (("amin", torch.inf), ("amax", -torch.inf))
        )
        relevance = torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1.0)
        relevance = relevance.masked_fill(~tokens.mask, -torch.inf)
        x = unit_vectors(tokens.features, tokens.mask)
        order = truncate(_largest_volume(cosines(x, x), relevance, int(counts.max()), not self.faithful), counts)
        return Selection.from_order(drop_repeats(order) if self.faithful else order, relevance, self.budget)


def _largest_volume(similarity: Tensor, relevance: Tensor, rounds: int, guarded: bool) -> Tensor:
    """Pick for the largest determinant by an incremental Cholesky factor of `similarity` (B, N, N); (B, rounds)."""
    rows = torch.arange(len(relevance), device=relevance.device)
    padding = relevance < 0
    weight = relevance.square().masked_fill(padding, 0)
    variance = similarity.diagonal(dim1=1, dim2=2).clone()
    spent = SPENT * variance
    # Below every gain, and rising with relevance.
    last_resort = -1 / (1 + relevance.relu())
    factor = similarity.new_zeros(len(rows), rounds, similarity.shape[2])
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
