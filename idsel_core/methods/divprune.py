"""DivPrune: the tokens that lie furthest apart."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.ragged import cosines, drop_repeats, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class DivPrune(Method):
    """Pick the token that is furthest from all picked ones, again and again, by cosine distance.

    The first pick is the token whose nearest other token is furthest away.

    Source: DivPrune, arXiv 2503.02175, max-min diversity.

    Parameters
    ----------
    faithful : bool
        Compute distances in the features' own dtype and leave picked tokens in the race, as the authors do: among
        duplicates a token is then picked again, and fewer tokens are kept.
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
        """Choose tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        x = unit_vectors(tokens.features, tokens.mask)
        if self.faithful:
            x = x.to(tokens.features.dtype)
        distances = cosines(x, x).neg_().add_(1)
        itself = distances.diagonal(dim1=1, dim2=2)
        to_itself = itself.clone() if self.faithful else torch.full_like(itself, -torch.inf)
        itself.fill_(2.0)
        distances.masked_fill_(~(tokens.mask[:, None] & tokens.mask[..., None]), 2.0)
        # Over rows and columns, so that two tokens that are each other's nearest are tied exactly.
        alone = torch.minimum(distances.amin(1), distances.amin(2)).masked_fill(~tokens.mask, -torch.inf)
        itself.copy_(to_itself)
        order = truncate(_furthest(distances, alone, int(counts.max())), counts)
        return Selection.from_order(drop_repeats(order) if self.faithful else order, alone, self.budget)


def _furthest(distances: Tensor, scores: Tensor, rounds: int) -> Tensor:
    """Pick by the highest score, then by the largest least distance (B, N, N) to what was picked, (B, rounds)."""
    rows = torch.arange(len(scores), device=scores.device)
    picks = [scores.max(dim=1).indices]
    nearest = torch.where(scores > -torch.inf, torch.inf, scores)
    for _ in range(rounds - 1):
        nearest = torch.minimum(nearest, distances[rows, picks[-1]])
        picks.append(nearest.max(dim=1).indices)
    return torch.stack(picks, dim=1)
