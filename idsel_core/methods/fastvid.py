"""FastVID: attended tokens of each frame, and tokens at density peaks into which a segment of the video is merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_frames import FrameByFrame, Picks, Video, best_first, mean_of_nearest
from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_count, check_flag, check_share
from idsel_core.methods._shared.density import peaks_of
from idsel_core.methods._shared.published_counts import is_share
from idsel_core.methods._shared.quotas import in_proportion, share_out
from idsel_core.methods._shared.ragged import cosines
from idsel_core.visual_tokens import VisualTokens

NEIGHBOURS = 4
"""Nearest tokens that the density of a token is measured by, itself included."""


@dataclass(frozen=True)
class FastVID(Attended, FrameByFrame):
    """Keep the most attended tokens of each frame, and merge the others of a segment into tokens at density peaks.

    A video is cut between frames whose means have a cosine below `threshold`, and where it is lowest, so that there are
    `segments` at least. Each frame is due the same share of its tokens. The share `context` of that, rounded down, is
    collected over a segment and distributed equally over its anchor frames, every `every`-th one, counted from the
    last; the rest are the frame's most attended tokens.

    An anchor frame's context tokens are those of its other tokens that are dense and far from denser ones. The tokens
    of the segment that are not kept for their attention are merged into the most similar of them, in each anchor frame
    anew; if the frame has no more context tokens than its own, the frame's tokens alone. A context token counts among
    its own members, and becomes `own` times itself plus the rest times the mean of its members. Its weight is
    1 / (members + 1) if that is more than `own`.

    The number of tokens is exactly the budget: shares are rounded down, and the largest remainders get the rest. What
    anchor frames have no room for goes to attended tokens of the segment.

    Source: FastVID, arXiv 2503.11187, as for LLaVA-OneVision. There the means and the attention are those of SigLIP's
    pooling head; here they are the mean of a frame's features, as in the authors' code for Qwen2.5-VL, and the
    attention of the tower. The authors break ties of density at random; here ties go to the lowest index.

    Parameters
    ----------
    segments : int
        Least number of segments, as far as there are frames.
    threshold : float
        Cosine, from 0 to 1, below which two frames lie in different segments.
    context : float
        Share of the budget for context tokens.
    every : int
        Distance of anchor frames.
    own : float
        Least weight of a context token in its merged features.
    attention : {"received", "cls"}
        Mean attention received, as in the authors' code for Qwen2.5-VL, or that of the frame's [CLS] token.
    faithful : bool
        As the authors' code does, round all shares down and lose what is left over; a number of tokens counts as a
        share of the video's. Fewer frames than `segments`, more context tokens than an anchor frame has room for, on
        which the code fails, and a budget of which nothing is left are refused.
    """

    name: ClassVar[str] = "fastvid"
    label: ClassVar[str] = "FastVID"

    _: KW_ONLY
    attention: str = "received"
    segments: int = 8
    threshold: float = 0.9
    context: float = 0.4
    every: int = 4
    own: float = 0.6
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("segments", self.segments)
        check_share("threshold", self.threshold)
        check_share("context", self.context)
        check_count("every", self.every)
        check_share("own", self.own)
        check_flag("faithful", self.faithful)

    def attention_to(self, tokens: VisualTokens) -> Tensor:
        """Return the attention to each token, (B, N)."""
        return self.row(tokens)

    def pick(self, video: Video, count: int) -> Picks:
        """Select `count` tokens on the grid of a video; as the authors' code counts them if `faithful`.

        Raises
        ------
        ValueError
            If `faithful` and the authors' code fails on the video.
        """
        assert video.attention is not None
        segments = self._segments(video)
        own, salient, context = (
            self._published(video, count, segments) if self.faithful else self._counts(count, video.sizes, segments)
        )
        kept, others = [], []
        for frame, number in enumerate(salient):
            ranking = best_first(video.of_frame(frame), video.attention, len(video.features))
            kept.append(ranking[:number])
            others.append(ranking[number:].sort().values)
        targets, merged = [], []
        for begin, end in segments:
            for frame in range(begin, end):
                if not context[frame]:
                    continue
                peaks = peaks_of(video.features[others[frame]], NEIGHBOURS)[0]
                target = others[frame][peaks.sort(descending=True, stable=True).indices[: context[frame]]]
                members = torch.cat(others[begin:end]) if context[frame] > own[frame] else others[frame]
                targets.append(target)
                merged.append(self._merge(video.features, target, members))
        order = torch.cat([*kept, *targets])
        if not targets:
            return Picks(order, video.attention)
        return Picks(order, video.attention, torch.cat(targets), torch.cat(merged))

    def _segments(self, video: Video) -> list[tuple[int, int]]:
        """Return the first frame of each segment, and the one behind its last."""
        x = video.features
        means = [x[video.of_frame(f)].sum(0) / max(size, 1) for f, size in enumerate(video.sizes)]
        unit = torch.nn.functional.normalize(torch.stack(means), dim=1)
        alike = (unit[:-1] * unit[1:]).sum(1)  # (F - 1,)
        cuts = alike < self.threshold
        cuts[alike.sort(stable=True).indices[: self.segments - 1]] = True
        return list(pairwise([0, *(cuts.nonzero()[:, 0] + 1).tolist(), len(means)]))

    def _anchors(self, begin: int, end: int) -> list[int]:
        return [frame for frame in range(begin, end) if (end - 1 - frame) % self.every == 0]

    def _counts(
        self, count: int, sizes: list[int], segments: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int], list[int]]:
        """Return each frame's own number of context tokens, and its numbers of attended and of context tokens."""
        quotas = share_out(count, in_proportion(count, sizes), sizes)
        own = [math.floor(quota * self.context) for quota in quotas]
        salient = [quota - less for quota, less in zip(quotas, own, strict=True)]
        context = [0] * len(sizes)
        for begin, end in segments:
            anchors, collected = self._anchors(begin, end), sum(own[begin:end])
            room = [sizes[frame] - salient[frame] for frame in anchors]
            most = min(collected, sum(room))
            for frame, number in zip(anchors, share_out(most, in_proportion(most, [1] * len(room)), room), strict=True):
                context[frame] = number
            room = [sizes[frame] - salient[frame] - context[frame] for frame in range(begin, end)]
            more = share_out(collected - most, in_proportion(collected - most, [1] * len(room)), room)
            salient[begin:end] = [number + extra for number, extra in zip(salient[begin:end], more, strict=True)]
        return own, salient, context

    def _published(
        self, video: Video, count: int, segments: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[int], list[int]]:
        """Return what `_counts` does, as the authors' code counts."""
        sizes = video.sizes
        share = float(self.budget) if is_share(self.budget) else Fraction(count, max(sum(sizes), 1))
        quotas = [math.floor(size * share) for size in sizes]
        own = [math.floor(quota * self.context) for quota in quotas]
        salient = [quota - less for quota, less in zip(quotas, own, strict=True)]
        context = [0] * len(sizes)
        for begin, end in segments:
            anchors = self._anchors(begin, end)
            for frame in anchors:
                context[frame] = sum(own[begin:end]) // len(anchors)
        over = [c > size - s for c, size, s in zip(context, sizes, salient, strict=True)]
        if sum(salient) + sum(context) == 0:
            raise ValueError(f"FastVID's code keeps no token of {sum(sizes)} in {len(sizes)} frames at this budget")
        if len(sizes) < self.segments or any(over):
            raise ValueError(
                f"FastVID's code needs {self.segments} frames, and room for context tokens in each; got {context} "
                f"context tokens beside {salient} of {sizes}"
            )
        return own, salient, context

    def _merge(self, features: Tensor, targets: Tensor, members: Tensor) -> Tensor:
        """Return the features of targets (M,) after the members (T,) were merged into them, (M, D)."""
        unit = torch.nn.functional.normalize(features[members], dim=1)
        to = torch.nn.functional.normalize(features[targets], dim=1)
        mean, numbers = mean_of_nearest(features[members], cosines(unit[None], to[None])[0])
        weight = (1 / (numbers + 1)).clamp_min(self.own)
        return weight * features[targets] + (1 - weight) * mean
