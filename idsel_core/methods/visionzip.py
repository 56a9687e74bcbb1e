"""VisionZip: the most attended tokens, and all others merged into a few."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_flag, check_share
from idsel_core.methods._shared.ragged import (
    argsort_by,
    cosines,
    gather_tokens,
    merge_into_nearest,
    to_mask,
    truncate,
    unit_vectors,
    with_merged_features,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class VisionZip(Attended):
    """Keep the [CLS] token and the most attended tokens, and merge the others into evenly spaced tokens.

    Every other token is merged into the spaced token of most similar key, averaged over heads. The language model reads
    [CLS], then the attended tokens in raster order, then the merged tokens.

    [CLS] counts as one token of the budget, as in the paper: a budget of 64 is [CLS], 53 tokens and 10 merged tokens,
    and a budget of 1 is [CLS] only. [CLS] has no place in the image; it takes the place of the most attended token that
    is neither kept nor merged into, which ends the ``order`` of the selection. With the attention "received", for
    towers without [CLS], one more token is kept instead of [CLS].

    Source: VisionZip, arXiv 2412.04467.

    Parameters
    ----------
    dominant : float
        Share of the budget for [CLS] and the attended tokens, rounded half up; the rest are merged tokens.
    faithful : bool
        As the authors' code does, add the mean of the merged tokens to the spaced token instead of taking the mean of
        all, which makes merged tokens up to twice as long, and refuse budgets without a merged token, on which their
        code fails.
    """

    name: ClassVar[str] = "visionzip"
    label: ClassVar[str] = "VisionZip"

    _: KW_ONLY
    dominant: float = 54 / 64
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("dominant", self.dominant)
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            If `faithful` and the budget leaves no merged token.
        """
        mask, scores = tokens.mask, self.row(tokens)
        counts = resolve_budget(self.budget, tokens.lengths)
        dominant = (counts.double() * self.dominant + 0.5).floor().long()
        merged = counts - dominant
        if self.faithful and bool((merged == 0).any()):
            raise ValueError(
                f"VisionZip's code divides by the number of merged tokens; got {merged.tolist()} of {counts.tolist()}"
            )
        with_cls = (dominant > 0) & (self.attention == "cls")
        kept = to_mask(truncate(argsort_by((scores,), mask), dominant - with_cls.long()), mask.shape[1])
        rest = mask & ~kept
        # (B, N): rank among the other tokens; every step-th of them is a target, until there are enough.
        rank, step = rest.cumsum(1) - 1, (rest.sum(1) // merged.clamp_min(1)).clamp_min(1)[:, None]
        target = rest & (rank % step == 0) & (rank // step < merged[:, None])
        targets = truncate(argsort_by((target,), mask), merged.clamp_min(1))
        filled = torch.arange(targets.shape[1], device=mask.device) < merged[:, None]
        keys = unit_vectors(tokens.keys.float().mean(2), mask)
        likeness = cosines(keys, gather_tokens(keys, targets)).masked_fill(~filled[:, None], -torch.inf)
        states = tokens.encoder_features.float()
        sums, numbers = merge_into_nearest(states, rest & ~target, likeness)
        joined = gather_tokens(states, targets)
        if self.faithful:
            joined = joined + sums / numbers.clamp_min(1)[..., None]
        else:
            joined = (joined + sums) / (numbers + 1)[..., None]
        parts, read = [states, joined], [kept, filled]
        if self.attention == "cls":
            parts, read = [tokens.cls_features.float()[:, None], *parts], [with_cls[:, None], *read]
        reading = torch.cat(read, 1)
        states = gather_tokens(torch.cat(parts, 1), truncate(argsort_by((reading,), torch.ones_like(reading)), counts))
        order = truncate(argsort_by((2 * kept.byte() + target.byte(), scores.where(~target, 0)), mask), counts)
        return with_merged_features(Selection.from_order(order, scores, self.budget), tokens, states)
