"""MMTok: coverage of the words of the question and of the image."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_above_zero, check_share
from idsel_core.methods._shared.coverage import cover
from idsel_core.methods._shared.ragged import cosines, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class MMTok(Method):
    """Pick tokens greedily to cover the words of the question and the tokens of the image.

    The similarities of a word, or of a token, with all tokens go through a softmax; the largest value among the picks
    is its coverage. The question is the user's words of the last turn before the answer, stop words included, in front
    of the image or behind it.

    Source: MMTok, arXiv 2508.18264.

    Parameters
    ----------
    alpha : float
        Weight of the coverage of the image; the coverage of the words has weight 1.
    word_temperature, patch_temperature : float
        Temperatures of the softmax of cosines with words, and between tokens.
    """

    name: ClassVar[str] = "mmtok"
    label: ClassVar[str] = "MMTok"

    _: KW_ONLY
    alpha: float = 0.5
    word_temperature: float = 0.02
    patch_temperature: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)
        check_above_zero("word_temperature", self.word_temperature)
        check_above_zero("patch_temperature", self.patch_temperature)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        mask, counts = tokens.mask, resolve_budget(self.budget, tokens.lengths)
        words = tokens.word_similarity.float().masked_fill(~mask[..., None], -torch.inf).mT
        real = words.amax(2) > -torch.inf
        # (B, T, N); rows of padding are 0, because a softmax of -inf only is NaN.
        words = (words.where(real[..., None], 0) / self.word_temperature).softmax(2) * real[..., None]
        x = unit_vectors(tokens.encoder_features, mask)
        patches = cosines(x, x).masked_fill_(~mask[:, None], -torch.inf).div_(self.patch_temperature).softmax(2)
        words /= real.sum(1)[:, None, None]
        patches *= self.alpha * mask[..., None] / tokens.lengths[:, None, None]
        table = torch.cat([words, patches], 1)  # (B, T + N, N)
        order, gains = cover(table, torch.ones_like(table[:, 0]), mask, int(counts.max()))
        return Selection.from_order(truncate(order, counts), gains, self.budget)
