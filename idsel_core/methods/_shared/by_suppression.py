"""Base of methods that pick tokens by `id_select`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.ragged import truncate
from idsel_core.selection.greedy import check_knobs, id_select
from idsel_core.selection.result import Selection
from idsel_core.selection.suppression import Exhausted, Update
from idsel_core.visual_tokens import VisualTokens

FEATURES = ("projector", "encoder")


@dataclass(frozen=True)
class Greedy(Method):
    """A method that picks token by token and suppresses the tokens that look like a pick.

    Parameters
    ----------
    gamma : float or "auto"
        Sharpness of the suppression, see `id_select`; "auto" sets it for each image by the image's own distances.
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    features : {"projector", "encoder"}
        Features whose cosines say which tokens look alike: the output or the input of the projector.
    exhausted : {"restart", "continue"}
        What follows when all scores have run out: a new sweep from the first scores, or the least suppressed token.
    """

    _: KW_ONLY
    gamma: float | Literal["auto"] = "auto"
    update: Update = "multiply"
    features: str = "projector"
    exhausted: Exhausted = "restart"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {', '.join(FEATURES)}, not {self.features!r}")
        check_knobs(self.gamma, self.update, self.exhausted)

    def pick(self, tokens: VisualTokens, scores: Tensor, counts: Tensor | None = None) -> Selection:
        """Run `id_select` on scores (B, N), for the budget, or for so many tokens of each image, int64 (B,)."""
        features = tokens.features if self.features == "projector" else tokens.encoder_features
        return self.pick_alike(features, scores, tokens.mask if tokens.padded else None, counts)

    def pick_alike(
        self, features: Tensor, scores: Tensor, mask: Tensor | None, counts: Tensor | None = None
    ) -> Selection:
        """Do the same where tokens are alike by other features (B, N, D)."""
        most = self.budget if counts is None else int(counts.max())
        picked = id_select(features, scores, most, self.gamma, self.update, mask, exhausted=self.exhausted)
        if counts is None:
            return picked
        return Selection.from_order(truncate(picked.order, counts), picked.scores, self.budget)
