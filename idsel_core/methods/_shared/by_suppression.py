"""Base of methods that pick tokens by `id_select`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.selection.greedy import id_select
from idsel_core.selection.result import Selection
from idsel_core.selection.suppression import Update
from idsel_core.visual_tokens import VisualTokens

FEATURES = ("projector", "encoder")


@dataclass(frozen=True)
class Greedy(Method):
    """A method that picks token by token and suppresses the tokens that look like a pick.

    Parameters
    ----------
    gamma : float
        Sharpness of the suppression, see `id_select`.
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    features : {"projector", "encoder"}
        Features whose cosines say which tokens look alike: the output or the input of the projector.
    """

    _: KW_ONLY
    gamma: float = 20.0
    update: Update = "subtract"
    features: str = "projector"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, not {self.features!r}")
        # id_select checks gamma and update.
        id_select(torch.ones(1, 1), torch.ones(1), 1, self.gamma, self.update)

    def pick(self, tokens: VisualTokens, scores: Tensor) -> Selection:
        """Run `id_select` on scores (B, N)."""
        features = tokens.features if self.features == "projector" else tokens.encoder_features
        return id_select(features, scores, self.budget, self.gamma, self.update, tokens.mask)
