"""EVS: the tokens of a video that differ from the previous frame."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag, frames_of_videos
from idsel_core.methods._shared.published_counts import share_rounded_down
from idsel_core.methods._shared.ragged import argsort_by, cosine_distance, gather_tokens, truncate
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

NEW = 255.0
"""Score of tokens without a token in the previous frame, above every distance."""

CHUNK = 2**18
"""Most numbers of the features that are read at a time."""


@dataclass(frozen=True)
class EVS(Method):
    """Keep the tokens of a video that differ most from the token at the same place in the previous frame.

    Tokens of the first frame, and others without such a token, come first, in raster order. The budget is for all
    frames together. Each frame is compared with the previous one only, so slow changes are missed.

    Source: Efficient Video Sampling, arXiv 2510.14624, as implemented in vLLM, which compares tokens by cosine distance
    where the paper compares pixels.

    Parameters
    ----------
    faithful : bool
        As the authors' code does, keep the whole first frame even if the budget is less, and round shares down. The
        authors' rate is the share that is dropped, so the budget is one minus their rate.
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
        """Select tokens of each video.

        Raises
        ------
        Unavailable
            If there is an image, alone or beside videos.
        """
        mask, frames = tokens.mask, frames_of_videos(tokens, self.label)
        counts = resolve_budget(self.budget, tokens.lengths)
        if self.faithful:
            counts = torch.maximum(share_rounded_down(self.budget, tokens.lengths), (frames == 0).sum(1))
        before = _before(frames, tokens.grid)
        width = max(1, CHUNK // (len(mask) * tokens.features.shape[2]))
        parts = zip(*(torch.split(x, width, dim=1) for x in (tokens.features, before)), strict=True)
        distances = [cosine_distance(x, gather_tokens(tokens.features, of)) for x, of in parts]
        scores = torch.cat(distances, 1).masked_fill(before < 0, NEW).masked_fill(~mask, -torch.inf)
        return Selection.from_order(truncate(argsort_by((scores,), mask), counts), scores, self.budget)


def _before(frames: Tensor, grid: Tensor) -> Tensor:
    """Return the index of the token at the same place in the previous frame, (B, N); -1 if there is none."""
    rows, columns = (grid.flatten(0, 1).amax(0) + 1).tolist()
    frame = rows * columns
    placed = (frames >= 0) & (grid[..., 0] >= 0)
    cell = frames * frame + grid[..., 0] * columns + grid[..., 1]  # (B, N): frame, row and column as one number
    nowhere = (int(frames.max()) + 1) * frame
    place = torch.arange(frames.shape[1], device=frames.device).expand(frames.shape)
    table = place.new_full((len(place), nowhere + 1), -1)  # token index of each cell; the last cell is a dump
    table.scatter_(1, cell.where(placed, nowhere), place)
    table[:, nowhere] = -1
    earlier = cell - frame
    return table.gather(1, earlier.where(placed & (earlier >= 0), nowhere))
