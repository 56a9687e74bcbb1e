"""DivPrune: max-min diversity."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.published_counts import share_rounded_to_even
from idsel_core.methods._shared.ragged import cosines, drop_repeats, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(Method):
    """Pick the token with the largest distance to its nearest pick, round by round, by cosine distance.

    The first pick is the token with the largest distance to its nearest other token.

    Source: DivPrune, arXiv 2503.02175.

    Parameters
    ----------
    faithful : bool
        As the authors' code does, round a share half to even, compute distances in the dtype of the features and let
        picks be picked again, which happens among duplicates. The authors' model then reads such a token twice; here it
        reads the token once, so fewer tokens are kept.
    """

    name: ClassVar[str] = "divprune"
    label: ClassVar[str] = "DivPrune"

    _: KW_ONLY
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        if self.faithful:
            counts = share_rounded_to_even(self.budget, tokens.lengths).clamp_min(1)
        x = unit_vectors(tokens.features, tokens.mask)
        if self.faithful:
            x = x.to(tokens.features.dtype)
        distances = cosines(x, x).neg_().add_(1)
        itself = distances.diagonal(dim1=1, dim2=2)
        to_itself = itself.clone() if self.faithful else torch.full_like(itself, -torch.inf)
        itself.fill_(2.0)
        distances.masked_fill_(~(tokens.mask[:, None] & tokens.mask[..., None]), 2.0)
        # The minimum over rows and columns, so that two tokens that are nearest to each other tie exactly.
        alone = torch.minimum(distances.amin(1), distances.amin(2)).masked_fill(~tokens.mask, -torch.inf)
        itself.copy_(to_itself)
        order = truncate(_furthest(distances, alone, int(counts.max())), counts)
        return Selection.from_order(drop_repeats(order) if self.faithful else order, alone, self.budget)


def _furthest(distances: Tensor, scores: Tensor, rounds: int) -> Tensor:
    """Return picks (B, rounds): the highest score, then the largest distance (B, N, N) to the nearest pick."""
    rows = torch.arange(len(scores), device=scores.device)
    picks = [scores.max(dim=1).indices]
    nearest = torch.where(scores > -torch.inf, torch.inf, scores)  # (B, N): distance to the nearest pick
    for _ in range(rounds - 1):
        nearest = torch.minimum(nearest, distances[rows, picks[-1]])
        picks.append(nearest.max(dim=1).indices)
    return torch.stack(picks, dim=1)
