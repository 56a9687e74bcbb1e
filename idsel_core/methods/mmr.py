"""Maximal marginal relevance: importance against the similarity to the nearest pick."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.by_importance import Scored
from idsel_core.methods._shared.checks import check_share
from idsel_core.methods._shared.ragged import cosines, gather_tokens, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

FEATURES = ("projector", "encoder")


@dataclass(frozen=True)
class MMR(Scored):
    """Pick the token of largest importance minus its largest cosine with a pick, round by round.

    With the weight b, a round maximises b times importance minus (1 - b) times the largest cosine with a pick. The
    first pick is the most important token. Ties go to the lowest index.

    Source: maximal marginal relevance (Carbonell and Goldstein, 1998), the greedy of IDPruner, arXiv 2602.13315, at its
    weight. IDPruner reads a trained scorer, which is not part of this package; here any importance can be chosen.

    Parameters
    ----------
    balance : float
        Weight b of the importance, 0 to 1; 1 is top-K by importance.
    features : {"projector", "encoder"}
        Features whose cosines say which tokens look alike: the output or the input of the projector.
    """

    name: ClassVar[str] = "mmr"
    label: ClassVar[str] = "MMR"

    _: KW_ONLY
    balance: float = 0.5
    features: str = "projector"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("balance", self.balance)
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, not {self.features!r}")

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        importance = self.scores(tokens).masked_fill(~tokens.mask, -torch.inf)
        x = unit_vectors(tokens.features if self.features == "projector" else tokens.encoder_features, tokens.mask)
        nearest = torch.full_like(importance, -torch.inf)  # (B, N): largest cosine with a pick
        gain, gone, picks = importance, ~tokens.mask, []
        for _ in range(int(counts.max())):
            pick = gain.max(dim=1, keepdim=True).indices  # (B, 1)
            picks.append(pick)
            gone = gone.scatter(1, pick, True)
            nearest = torch.maximum(nearest, cosines(gather_tokens(x, pick), x)[:, 0])
            gain = (self.balance * importance - (1 - self.balance) * nearest).masked_fill(gone, -torch.inf)
        return Selection.from_order(truncate(torch.cat(picks, dim=1), counts), importance, self.budget)
