"""VidCom2: a budget for each frame of a video by how unlike the video it is, and the tokens unlike frame and video."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_above_zero, check_share, frames_of_videos
from idsel_core.methods._shared.quotas import share_out
from idsel_core.methods._shared.ragged import (
    argsort_by,
    gather_tokens,
    rank_in_group,
    sum_by_group,
    truncate,
    unit_vectors,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

WIDTHS = tuple(2.0**k for k in range(-3, 2))
"""Widths of the Gaussian kernels of a squared distance."""


@dataclass(frozen=True)
class VidCom2(Method):
    """Distribute the budget of a video over its frames, and keep the tokens least like the mean of frame and video.

    Half of the channels are read, those of smallest variance over the video's tokens, and tokens are scaled to unit
    length in them. The likeness of a token to a mean is the sum of five Gaussian kernels of their distance. A frame's
    share of its tokens is the budget's share times 1 + p - the mean of p, where p is the softmax over frames of minus
    the mean likeness of their tokens to the video's mean, divided by `temperature`. In a frame the tokens with the
    smallest sum of both likenesses are kept. Ties go to the lowest index.

    The number of tokens is exactly the budget: frames get their share rounded down, at least one token where there is
    one for each, and the largest remainders get the rest. The authors round every frame's share half to even.

    Source: VidCom2, arXiv 2505.14454.

    Parameters
    ----------
    temperature : float
        Temperature of the softmax over frames.
    channels : float
        Share of the channels that are read, above 0.
    """

    name: ClassVar[str] = "vidcom2"
    label: ClassVar[str] = "VidCom2"

    _: KW_ONLY
    temperature: float = 0.01
    channels: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_zero("temperature", self.temperature)
        check_share("channels", self.channels)
        check_above_zero("channels", self.channels)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each video.

        Raises
        ------
        Unavailable
            If there is an image, alone or beside videos.
        """
        mask, counts = tokens.mask, resolve_budget(self.budget, tokens.lengths)
        frame = frames_of_videos(tokens, self.label).clamp_min(0)
        frames, length = int(frame.max()) + 1, tokens.lengths[:, None]
        x = self._quiet(tokens.features.float(), mask)
        whole = x.sum(1, keepdim=True) / length[..., None]  # (B, 1, D')
        sums, sizes = sum_by_group(x, frame.masked_fill(~mask, -1), frames)  # (B, F, D'), (B, F)
        own = gather_tokens(sums / sizes.clamp_min(1)[..., None], frame)  # (B, N, D'): mean of each token's frame
        to_video, to_frame = _likeness(x, whole), _likeness(x, own)
        means = sum_by_group(to_video[..., None], frame.masked_fill(~mask, -1), frames)[0][..., 0] / sizes.clamp_min(1)
        p = (-means / self.temperature).masked_fill(sizes == 0, -torch.inf).softmax(1)
        scale = 1 + p - 1 / (sizes > 0).sum(1, keepdim=True)
        shares = (counts[:, None] / length * scale).clamp_max(1) * sizes
        least = sizes.clamp_max(1) * (counts >= (sizes > 0).sum(1))[:, None]
        rows = (counts, shares, sizes, least)
        quotas = [share_out(*row) for row in zip(*(values.tolist() for values in rows), strict=True)]
        scores = -(to_video + to_frame).masked_fill(~mask, torch.inf)
        keep = mask & (rank_in_group(frame, scores, mask) < torch.tensor(quotas, device=mask.device).gather(1, frame))
        return Selection.from_order(truncate(argsort_by((keep, scores), mask), counts), scores, self.budget)

    def _quiet(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the channels of smallest variance, (B, N, D'), scaled to unit length, 0 at padding."""
        x = features.masked_fill(~mask[..., None], 0)
        count = mask.sum(1)[:, None, None]
        mean = x.sum(1, keepdim=True) / count
        variance = ((x - mean).square() * mask[..., None]).sum(1) / count[:, 0]  # (B, D)
        kept = max(1, math.floor(x.shape[2] * self.channels))
        channels = variance.sort(dim=1, stable=True).indices[:, :kept].sort(dim=1).values
        return unit_vectors(x.gather(2, channels[:, None].expand(-1, x.shape[1], -1)), mask)


def _likeness(x: Tensor, mean: Tensor) -> Tensor:
    """Return the likeness (B, N) of tokens (B, N, D) to means (B, N or 1, D)."""
    distance = (x - mean).square().sum(2)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(0)
