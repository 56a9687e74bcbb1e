"""SCOPE: saliency times coverage gain."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_above_zero
from idsel_core.methods._shared.coverage import cover
from idsel_core.methods._shared.ragged import cosines, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class SCOPE(Attended):
    """Pick the token of largest attention times coverage gain, round by round.

    A token covers every token by their cosine, or 0 if it is negative. Its gain is the increase of the best coverage so
    far, summed over the image.

    Source: SCOPE, arXiv 2510.24214.

    Parameters
    ----------
    alpha : float
        Exponent of the attention.
    """

    name: ClassVar[str] = "scope"
    label: ClassVar[str] = "SCOPE"

    _: KW_ONLY
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("alpha", self.alpha)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths)
        x = unit_vectors(tokens.encoder_features, tokens.mask)
        weights = self.row(tokens).relu().pow(self.alpha)
        order, gains = cover(cosines(x, x), weights, tokens.mask, int(counts.max()))
        return Selection.from_order(truncate(order, counts), gains, self.budget)
