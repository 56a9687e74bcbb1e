"""HoliTom: places of a video that stand still are merged over time, and the budget is kept of what is left."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_frames import FrameByFrame, Picks, Video, best_first, mean_of_nearest
from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_count, check_flag, check_share
from idsel_core.methods._shared.density import peaks_of
from idsel_core.methods._shared.published_counts import is_share
from idsel_core.methods._shared.quotas import in_proportion, share_out
from idsel_core.methods._shared.ragged import cosine_distance
from idsel_core.visual_tokens import VisualTokens

Group = tuple[Tensor, Tensor | None]
"""Tokens, int64 (T,), of which some are kept; means of places that stand still, (T, D), belong to their first token."""


@dataclass(frozen=True)
class HoliTom(Attended, FrameByFrame):
    """Merge places that stand still over windows of frames, and keep an equal share of them and of all other tokens.

    A place stands still between two frames if the cosine of its tokens is above `threshold`, and in a window if it does
    so between all of its frames. The video is cut into windows so that most tokens are saved if each place that stands
    still in its window becomes one token, their mean, at its place in the first frame; of equal cuts the one with
    shorter windows at the end. Of what is left, every window's means and every frame's other tokens, the same share is
    kept: rounded down, and the largest remainders get the rest. Of a frame these are the most attended tokens.

    Means are clustered: the centres are those that are dense and far from denser ones, every other mean joins the
    nearest centre, and a centre becomes `own` times itself plus the rest times the mean of those that joined it.

    If the budget is more than what is left, tokens of places that stand still are kept by themselves and leave their
    mean, those that differ most from the frame before first; the authors keep fewer tokens.

    Source: HoliTom, arXiv 2505.21334, the part before the language model. Its second part, which merges tokens inside
    the language model, is not included. The authors break ties of density at random; here ties go to the lowest index.

    Parameters
    ----------
    threshold : float
        Cosine, from 0 to 1, above which a place stands still.
    own : float
        Weight of a centre in its merged features.
    context : float
        Share of what a frame keeps that is merged from its less attended tokens in the same way; 0 as the authors set.
    neighbours : int
        Nearest means that the density of one is measured by, itself included, at most the number of centres.
    attention : {"received", "cls"}
        Mean attention received, as the authors use it, or that of the frame's [CLS] token.
    faithful : bool
        As the authors' code does, round the number of means half to even and that of a frame's tokens up; a number of
        tokens counts as a share of the video's. No token leaves its mean, so that fewer than the budget may be kept,
        or more.
    """

    name: ClassVar[str] = "holitom"
    label: ClassVar[str] = "HoliTom"

    _: KW_ONLY
    attention: str = "received"
    threshold: float = 0.8
    own: float = 0.6
    context: float = 0.0
    neighbours: int = 7
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("threshold", self.threshold)
        check_share("own", self.own)
        check_share("context", self.context)
        check_count("neighbours", self.neighbours)
        check_flag("faithful", self.faithful)

    def attention_to(self, tokens: VisualTokens) -> Tensor:
        """Return the attention to each token, (B, N)."""
        return self.row(tokens)

    def pick(self, video: Video, count: int) -> Picks:
        """Select `count` tokens on the grid of a video; as the authors' code counts them if `faithful`."""
        assert video.attention is not None
        table, x = video.table, video.features
        pairs = (table[:-1] >= 0) & (table[1:] >= 0)  # (F - 1, P)
        change = torch.full(pairs.shape, torch.inf, device=x.device)
        change[pairs] = cosine_distance(x[table[:-1][pairs]], x[table[1:][pairs]])
        still = change < 1 - self.threshold
        windows, saved = _windows(still)
        left = sum(video.sizes) - saved
        chains = [(begin, end, still[begin : end - 1].all(0)) for begin, end in windows if end - begin > 1]
        alone = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # tokens that leave their mean
        if count > left and not self.faithful:
            later = torch.zeros_like(table, dtype=torch.bool)  # (F, P): tokens that merging would save
            for begin, end, places in chains:
                later[begin + 1 : end] = places
            changed = change.new_zeros(len(x))
            changed[table[1:][later[1:]]] = change[later[1:]]
            alone[best_first(table[later].sort().values, changed, count - left)] = True
        # Places that are merged, by frame.
        gone = torch.zeros_like(table, dtype=torch.bool)
        groups: list[Group] = []
        for begin, end, places in chains:
            gone[begin:end] = places
            together = ~alone[table[begin:end, places]]  # (frames, S)
            means = (x[table[begin:end, places]] * together[..., None]).sum(0) / together.sum(0)[:, None]
            groups.append((table[begin, places], means))
        groups += [(row[(row >= 0) & ~out], None) for row, out in zip(table, gone, strict=True)]
        order, targets, merged = [alone.nonzero()[:, 0]], [], []
        for (tokens, values), number in zip(groups, self._counts(count, groups, sum(video.sizes), left), strict=True):
            attended = round(number * (1 - self.context)) if values is None else 0
            kept = best_first(tokens, video.attention, attended)
            rest = ~torch.isin(tokens, kept)
            centres, features = self._cluster((x[tokens] if values is None else values)[rest], number - attended)
            order += [kept, tokens[rest][centres]]
            targets.append(tokens[rest][centres])
            merged.append(features)
        if not sum(map(len, targets)):
            return Picks(torch.cat(order), video.attention)
        return Picks(torch.cat(order), video.attention, torch.cat(targets), torch.cat(merged))

    def _counts(self, count: int, groups: list[Group], full: int, left: int) -> list[int]:
        """Return how many of each group are kept, where merging has left `left` of `full` tokens."""
        sizes = [len(tokens) for tokens, _ in groups]
        if not self.faithful:
            most = min(count, left)
            return share_out(most, in_proportion(most, sizes), sizes)
        share = float(self.budget) if is_share(self.budget) else Fraction(count, max(full, 1))
        share = min(share / Fraction(left, full), 1) if left else 1
        dues = [size * share for size in sizes]
        return [math.ceil(due) if means is None else round(due) for due, (_, means) in zip(dues, groups, strict=True)]

    def _cluster(self, x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return the centres (M,) of some features (T, D), by index, and their features after the others joined."""
        if not number:
            return torch.empty(0, dtype=torch.long, device=x.device), x[:0]
        scores, distance = peaks_of(x, min(self.neighbours, number))
        centres = scores.sort(descending=True, stable=True).indices[:number].sort().values
        others = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill(0, centres, False)
        mean, numbers = mean_of_nearest(x[others], -distance[others][:, centres])
        joined = self.own * x[centres] + (1 - self.own) * mean
        return centres, torch.where(numbers > 0, joined, x[centres])


def _windows(still: Tensor) -> tuple[list[tuple[int, int]], int]:
    """Cut a video into windows so that most tokens are saved.

    Parameters
    ----------
    still : Tensor
        bool (F - 1, P); which places stand still between a frame and the next.

    Returns
    -------
    tuple[list[tuple[int, int]], int]
        The first frame of each window, and the one behind its last, and the number of tokens that are saved.
    """
    frames = len(still) + 1
    # lasting[b][n]: places that stand still for n + 1 steps from frame b.
    lasting = [still[begin:].long().cumprod(0).sum(1).tolist() for begin in range(frames)]
    most, cut = [0] * (frames + 1), [0] * (frames + 1)  # of the first frames
    for end in range(1, frames + 1):
        most[end], cut[end] = most[end - 1], end - 1
        for begin in range(end - 2, -1, -1):
            steps = end - 1 - begin
            if (saved := most[begin] + steps * lasting[begin][steps - 1]) > most[end]:
                most[end], cut[end] = saved, begin
    windows, end = [], frames
    while end:
        windows.append((cut[end], end))
        end = cut[end]
    return windows[::-1], most[frames]
