"""TRIM: the tokens most similar to the question, and the mean of all others."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.published_counts import share_rounded_down
from idsel_core.methods._shared.ragged import (
    argsort_by,
    gather_tokens,
    sort_indices,
    to_mask,
    truncate,
    with_merged_features,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class TRIM(Method):
    """Keep the tokens most similar to the question in a shared image-text space, and the mean of all others.

    The mean is taken before the projector and read last. It takes the place of the best token that is not kept, which
    ends the ``order`` of the selection.

    Source: TRIM, arXiv 2409.10994. The number of tokens is the budget, not adaptive.

    Parameters
    ----------
    negated : bool
        Keep the least similar tokens, as the authors do: the similarity of CLIP's patches, which were not trained to
        match text, has the wrong sign. A companion tuned on patches does not need it.
    faithful : bool
        As the authors' code does, compare by inner products instead of cosines, round shares down, and keep the mean
        in addition to the budget.
    """

    name: ClassVar[str] = "trim"
    label: ClassVar[str] = "TRIM"

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
        mask, counts = tokens.mask, resolve_budget(self.budget, tokens.lengths)
        if self.faithful:
            counts = (share_rounded_down(self.budget, tokens.lengths) + 1).minimum(tokens.lengths)
        scores = (tokens.relevance_product if self.faithful else tokens.relevance).float()
        scores = (-scores if self.negated else scores).masked_fill(~mask, -torch.inf)
        order = truncate(argsort_by((scores,), mask), counts)
        kept = order.masked_fill(torch.arange(order.shape[1], device=order.device) == counts[:, None] - 1, -1)
        others = mask & ~to_mask(kept, mask.shape[1])
        states = tokens.encoder_features.float().masked_fill(~mask[..., None], 0)
        mean = (states * others[..., None]).sum(1) / others.sum(1)[:, None]
        states = gather_tokens(states, sort_indices(kept, mask.shape[1]))
        states[torch.arange(len(states), device=states.device), counts - 1] = mean
        return with_merged_features(Selection.from_order(order, scores, self.budget), tokens, states)
