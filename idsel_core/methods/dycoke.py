"""DyCoke: the tokens of a video that differ from the frame that their window compares them with."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_frames import FrameByFrame, Picks, Video, best_first
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.published_counts import is_share
from idsel_core.methods._shared.quotas import in_proportion, share_out
from idsel_core.methods._shared.ragged import cosine_distance

NEW = 255.0
"""Score of tokens that are compared with nothing, above every distance."""
BACK = (4, 1, 2, 1)
"""How many frames before it the frame lies that each frame of a window of four is compared with."""


@dataclass(frozen=True)
class DyCoke(FrameByFrame):
    """Keep the first frame of every four, and the tokens of the other three that differ most from a frame before them.

    A token is compared by cosine with the one at the same place: of the second frame with the first, of the third with
    the first, of the fourth with the third. The first frames of all windows are kept whole. The others get the same
    share of their tokens, rounded down, and the largest remainders get the rest.

    If the budget is less than the first frames, of which the authors always keep all, those of their tokens come first
    that differ most from the first frame of the window before, and the first frame of the video before all.

    Source: the temporal merging of DyCoke, arXiv 2411.15024. Its second stage, which changes the cache of the language
    model from one new token to the next, is not included.

    Parameters
    ----------
    faithful : bool
        As the authors' code does: the budget is what every compared frame keeps of its tokens, one minus the authors'
        rate, rounded down. The second frame of a pair keeps the places that changed most in the pair before it, and
        that of the first pair those that changed most in the last one. The third frame of a window is kept whole unless
        another window follows, and the last of an odd number of frames is lost. Fewer than five frames, on which the
        code fails, and frames of several sizes are refused.
    """

    name: ClassVar[str] = "dycoke"
    label: ClassVar[str] = "DyCoke"

    _: KW_ONLY
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("faithful", self.faithful)

    def pick(self, video: Video, count: int) -> Picks:
        """Select `count` tokens on the grid of a video; as the authors' code counts them if `faithful`.

        Raises
        ------
        ValueError
            If `faithful` and the authors' code fails on the video.
        """
        frames = torch.arange(len(video.table), device=video.table.device)
        earlier = frames - torch.tensor(BACK, device=frames.device)[frames % 4]
        before = video.table[earlier.clamp_min(0)].masked_fill((earlier < 0)[:, None], -1)  # (F, P)
        pairs = (video.table >= 0) & (before >= 0)
        scores = torch.full((len(video.features),), NEW, device=frames.device)
        scores[video.table[pairs]] = cosine_distance(video.features[video.table[pairs]], video.features[before[pairs]])
        if self.faithful:
            return Picks(self._published(video, scores), scores)
        firsts = video.table[::4]
        firsts = best_first(firsts[firsts >= 0], scores, count)
        sizes = [size if frame % 4 else 0 for frame, size in enumerate(video.sizes)]
        rest = count - len(firsts)
        quotas = share_out(rest, in_proportion(rest, sizes), sizes)
        others = [best_first(video.of_frame(f), scores, quota) for f, quota in enumerate(quotas) if quota]
        return Picks(torch.cat([firsts, *others]), scores)

    def _published(self, video: Video, scores: Tensor) -> Tensor:
        """Return the tokens that the authors' code keeps, int64 (K,)."""
        sizes, table = video.sizes, video.table
        if len(sizes) < 5 or bool((table < 0).any()):
            raise ValueError(f"DyCoke's code needs five frames of one size; got frames of {sizes} tokens")
        whole = table.shape[1]
        keep = math.floor(float(self.budget) * whole) if is_share(self.budget) else min(int(self.budget), whole)
        pairs, windows = len(sizes) // 2, range(0, len(sizes) - 4, 4)
        kept = []
        for frame in range(2 * pairs):
            judge, quota = frame, whole
            if frame % 2:
                judge, quota = (frame - 2) % (2 * pairs), keep
            elif frame - 2 in windows:
                quota = keep
            changed = scores[table[judge]].sort(descending=True, stable=True).indices[:quota]  # places
            kept.append(table[frame][changed])
        return torch.cat(kept)
