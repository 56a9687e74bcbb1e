"""EVS: the tokens of a video that differ from the frame before."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.ragged import argsort_by, gather_tokens, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

NEW = 255.0
"""Score of tokens that have none before them, above every distance."""

CHUNK = 2**18
"""Numbers of the features that are looked at together."""


@dataclass(frozen=True)
class EVS(Method):
    """Keep the tokens of a video that are least like the token at the same place in the frame before.

    Tokens of the first frame, and others that have no such token, come before all others, by their place; the budget is
    one for all frames together. Frames are compared with the one before alone, so slow changes go unnoticed.

    Source: Efficient Video Sampling, arXiv 2510.14624, as implemented in vLLM, which compares tokens by cosine distance
    where the paper compares pixels.

    Parameters
    ----------
    faithful : bool
        Keep the whole first frame, as the authors do, also where the budget is less, and round shares down.
    """

    name: ClassVar[str] = "evs"
    label: ClassVar[str] = "EVS"

    _: KW_ONLY
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each video.

        Raises
        ------
        Unavailable
            If the images are no frames of a video.
        """
        mask, frames = tokens.mask, tokens.frames.where(tokens.mask, -1)
        counts = resolve_budget(self.budget, tokens.lengths)
        if self.faithful:
            if isinstance(self.budget, float):
                counts = (tokens.lengths.double() * self.budget).floor().long()
            counts = torch.maximum(counts, (frames == 0).sum(1))
        before = _before(frames, tokens.grid)
        width = max(1, CHUNK // (len(mask) * tokens.features.shape[2]))
        parts = zip(*(torch.split(x, width, dim=1) for x in (tokens.features, mask, before)), strict=True)
        distances = [
            _distance(unit_vectors(x, real), unit_vectors(gather_tokens(tokens.features, of), of >= 0))
            for x, real, of in parts
        ]
        scores = torch.cat(distances, 1).masked_fill(before < 0, NEW).masked_fill(~mask, -torch.inf)
        return Selection.from_order(truncate(argsort_by((scores,), mask), counts), scores, self.budget)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - cos (B, N) of unit vectors or zeros (B, N, D), without loss of digits where it is next to nothing."""
    zeros = 2 - x.any(2).byte() - y.any(2).byte()
    return ((x - y).square_().sum(2) + zeros) / 2


def _before(frames: Tensor, grid: Tensor) -> Tensor:
    """Return the token at the same place one frame earlier, (B, N); -1 where there is none."""
    rows, columns = (grid.flatten(0, 1).amax(0) + 1).tolist()
    frame = rows * columns
    placed = (frames >= 0) & (grid[..., 0] >= 0)
    cell = frames * frame + grid[..., 0] * columns + grid[..., 1]
    nowhere = (int(frames.max()) + 1) * frame
    place = torch.arange(frames.shape[1], device=frames.device).expand(frames.shape)
    table = place.new_full((len(place), nowhere + 1), -1)
    table.scatter_(1, cell.where(placed, nowhere), place)
    table[:, nowhere] = -1
    earlier = cell - frame
    return table.gather(1, earlier.where(placed & (earlier >= 0), nowhere))
