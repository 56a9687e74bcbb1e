"""HiRED: a budget for each crop from the attention of the thumbnail, and the attention of [CLS] in each crop."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_flag, check_share
from idsel_core.methods._shared.published_counts import share_rounded_down
from idsel_core.methods._shared.quotas import in_proportion, share_out
from idsel_core.methods._shared.ragged import argsort_by, rank_in_group, to_mask, truncate
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class HiRED(Attended):
    """Distribute the budget over the crops of an image, and keep the most attended tokens of each crop.

    The thumbnail gets a fixed share. The rest is distributed over the crops by the number of the thumbnail's most
    attended tokens, in the first tower layer, that lie in each. For an image without crops the method is FasterVLM.

    Source: HiRED, arXiv 2408.10945.

    Parameters
    ----------
    thumbnail : float
        Share of the budget for the thumbnail. One minus this share is the share of the thumbnail's tokens that count
        as most attended.
    depth : float
        Depth of the tower layer whose attention distributes the budget; 0 is the first layer.
    faithful : bool
        As the authors' code does, assign the thumbnail's tokens to crops by runs in reading order instead of by place,
        and round a share and every part of the budget down, so that fewer tokens are kept, but at least one.
    """

    name: ClassVar[str] = "hired"
    label: ClassVar[str] = "HiRED"

    _: KW_ONLY
    thumbnail: float = 0.5
    depth: float = 0.0
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("thumbnail", self.thumbnail)
        check_share("depth", self.depth)
        check_flag("faithful", self.faithful)

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads, other than the layer that feeds the projector."""
        return (self.depth,)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        mask, scores = tokens.mask, self.row(tokens)
        counts = resolve_budget(self.budget, tokens.lengths)
        if self.faithful:
            counts = share_rounded_down(self.budget, tokens.lengths).clamp_min(1)
        if "crops" not in tokens.sources:
            return Selection.from_order(truncate(argsort_by((scores,), mask), counts), scores, self.budget)
        crops = torch.where(mask[..., None], tokens.crops, -1)
        layout = crops.amax(1).clamp_min(0) + 1
        # (B, N): number of the crop in reading order, from 1; 0 is the thumbnail.
        part = torch.where(crops[..., 0] < 0, 0, crops[..., 0] * layout[:, 1:] + crops[..., 1] + 1)
        parts = max(int(part.max()), 1) + 1
        marks, sizes = self._marks(tokens, part, layout, parts), _tally(part, mask, parts)
        quotas = [self._quotas(*row) for row in zip(counts.tolist(), sizes.tolist(), marks.tolist(), strict=True)]
        quota = torch.tensor(quotas, device=mask.device)
        keep = mask & (rank_in_group(part, scores, mask) < quota.gather(1, part))
        return Selection.from_order(truncate(argsort_by((keep, scores), mask), keep.sum(1)), scores, self.budget)

    def _marks(self, tokens: VisualTokens, part: Tensor, layout: Tensor, parts: int) -> Tensor:
        """Return the number of the thumbnail's most attended tokens in each crop, (B, parts); 0 for the thumbnail."""
        base = tokens.mask & (part == 0)
        size = base.sum(1, keepdim=True)
        wanted = (size.double() * (1 - self.thumbnail)).floor().long()[:, 0]
        marked = to_mask(truncate(argsort_by((self.row(tokens, self.depth),), base), wanted), part.shape[1])
        rows, columns = layout[:, :1], layout[:, 1:]
        if self.faithful:
            cell = (base.cumsum(1) - 1) * rows * columns // size.clamp_min(1)
        else:
            high, wide = (tokens.grid[..., i].where(base, 0).amax(1, keepdim=True) + 1 for i in (0, 1))
            cell = tokens.grid[..., 0] * rows // high * columns + tokens.grid[..., 1] * columns // wide
        return _tally(cell.clamp_min(0) + 1, marked, parts)

    def _quotas(self, count: int, sizes: list[int], marks: list[int]) -> list[int]:
        """Distribute `count` tokens over the thumbnail and the crops, which have `sizes` tokens."""
        if not any(sizes[1:]):
            return [count] + [0] * (len(sizes) - 1)
        base = min(math.floor(count * self.thumbnail), sizes[0])
        if not any(marks):
            marks = [0] + [1 if size else 0 for size in sizes[1:]]
        dues = [Fraction(base), *in_proportion(count - base, marks[1:])]
        quotas = [min(math.floor(due), size) for due, size in zip(dues, sizes, strict=True)]
        return quotas if self.faithful and any(quotas) else share_out(count, dues, sizes)


def _tally(part: Tensor, counted: Tensor, parts: int) -> Tensor:
    """Return the number of `counted` tokens (B, N) in each part, (B, parts)."""
    return part.new_zeros(len(part), parts).scatter_add(1, part.where(counted, 0), counted.long())
