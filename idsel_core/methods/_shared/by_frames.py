"""Base of methods that select tokens of a video frame by frame."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import frames_of_videos
from idsel_core.methods._shared.ragged import merge_into_nearest
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class Video:
    """The tokens of one video, without padding.

    Parameters
    ----------
    features : Tensor
        (N, D), float32 or better.
    table : Tensor
        Index of the token of each frame at each place of the grid, int64 (F, P), -1 where there is none.
    attention : Tensor, optional
        Attention to each token, (N,), if the method reads it.
    """

    features: Tensor
    table: Tensor
    attention: Tensor | None = None

    def of_frame(self, frame: int) -> Tensor:
        """Return the tokens of a frame by place, int64 (T,)."""
        row = self.table[frame]
        return row[row >= 0]

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each frame."""
        return (self.table >= 0).sum(1).tolist()


@dataclass(frozen=True, eq=False)
class Picks:
    """What is kept of one video.

    Parameters
    ----------
    order : Tensor
        Kept tokens in the order of the picks, int64 (K,).
    scores : Tensor
        (N,); the scores before the first pick.
    places, merged : Tensor, optional
        Kept tokens with new features, int64 (M,), and these features, (M, D).
    """

    order: Tensor
    scores: Tensor
    places: Tensor | None = None
    merged: Tensor | None = None


@dataclass(frozen=True)
class FrameByFrame(Method):
    """A method that selects tokens of a video, whose frames have one grid.

    Tokens off the grid, such as the newline at the end of a video, belong to no frame. They are kept, within the
    budget, if it is above their number. A budget of all tokens leaves them as they are.
    """

    @abstractmethod
    def pick(self, video: Video, count: int) -> Picks:
        """Select `count` tokens on the grid of a video.

        Parameters
        ----------
        video : Video
            It has at least `count` tokens on the grid.
        count : int
            May be 0.
        """

    def attention_to(self, tokens: VisualTokens) -> Tensor | None:
        """Return the attention to each token, (B, N), if the method reads it."""
        return None

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each video.

        Raises
        ------
        Unavailable
            If there is an image, alone or beside videos.
        """
        frames, attention = frames_of_videos(tokens, self.label), self.attention_to(tokens)
        scores = torch.full(tokens.mask.shape, -torch.inf, device=tokens.mask.device)
        features, merges, orders = tokens.features, False, []
        for row, count in enumerate(resolve_budget(self.budget, tokens.lengths).tolist()):
            real = tokens.mask[row].nonzero()[:, 0]  # (N,)
            table, apart = _table(frames[row, real], tokens.grid[row, real])
            off = len(apart) if count > len(apart) else max(count - (len(real) - len(apart)), 0)
            read = features[row, real].to(torch.promote_types(features.dtype, torch.float32))
            video = Video(read, table, None if attention is None else attention[row, real])
            picks = self.pick(video, count - off)
            orders.append(real[torch.cat([apart[:off], picks.order])])
            scores[row, real] = picks.scores.float()
            if picks.places is not None and picks.merged is not None and len(orders[-1]) < len(real):
                features = features if merges else features.clone()
                features[row, real[picks.places]] = picks.merged.to(features.dtype)
                merges = True
        order = torch.nn.utils.rnn.pad_sequence(orders, batch_first=True, padding_value=-1)
        selection = Selection.from_order(order, scores, self.budget)
        if not merges:
            return selection
        places = selection.indices.clamp_min(0)[..., None].expand(-1, -1, features.shape[2])
        return replace(selection, features=features.gather(1, places))


def _table(frames: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the table of a video, see `Video`, and the tokens that it leaves out, from frames (N,), grid (N, 2)."""
    token = torch.arange(len(frames), device=frames.device)
    placed = (grid[:, 0] >= 0) & (frames >= 0)
    cells = grid[:, 0] * (grid[:, 1].max() + 1) + grid[:, 1]  # (N,): row and column as one number
    width = int(cells[placed].max()) + 1 if bool(placed.any()) else 0
    table = token.new_full((int(frames.max()) + 1, width), -1)
    table[frames[placed], cells[placed]] = token[placed]
    return table, token[~torch.isin(token, table)]


def best_first(tokens: Tensor, scores: Tensor, count: int) -> Tensor:
    """Return the `count` of some tokens (T,) with the highest scores (N,), best first; the first of equals."""
    return tokens[scores[tokens].sort(descending=True, stable=True).indices[:count]]


def mean_of_nearest(values: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of the values (T, D) that are most similar to each target, (M, D), and their number, (M, 1).

    `likeness` is (T, M); among equal ones the first target wins. A target that none is nearest to has a mean of 0.
    """
    sums, numbers = merge_into_nearest(values[None], values.new_ones(1, len(values), dtype=torch.bool), likeness[None])
    return sums[0] / numbers[0, :, None].clamp_min(1), numbers[0, :, None]
