"""The patches of a vision tower that each visual token is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches that T tokens are made of: each token is a weighted mean of up to M patches.

    Parameters
    ----------
    members : Tensor
        Indices of the patches, int64 (T, M).
    weights : Tensor
        Weights of the patches in the token, float32 (T, M), 0 where there is no patch. A token whose weights are all 0
        shows nothing of the image, such as a newline.
    """

    members: Tensor
    weights: Tensor

    @classmethod
    def concatenate(cls, parts: Iterable[Patches], device: torch.device) -> Patches:
        """Concatenate the tokens of several images; M becomes the most patches that one token has."""
        given = list(parts)
        members, weights = torch.cat([part.members for part in given]), torch.cat([part.weights for part in given])
        used = int((weights != 0).sum(1).max())
        # (T, M): patches with a weight first, in their order.
        order = (weights != 0).sort(dim=1, descending=True, stable=True).indices[:, :used]
        return cls(members.gather(1, order).to(device), weights.gather(1, order).to(device))

    def repeat_frames(self, times: int, patches: int) -> Patches:
        """Return the same tokens for each of `times` frames, whose `patches` patches follow one another."""
        starts = torch.arange(times, device=self.members.device)[:, None, None] * patches  # (times, 1, 1)
        return Patches((starts + self.members).flatten(0, 1), self.weights.repeat(times, 1))  # (times * T, M)

    def mean(self, values: Tensor) -> Tensor:
        """Return the weighted mean of the patches of each token, from values (P, ...) of patches to (T, ...)."""
        of_token = values[self.members]  # (T, M, ...)
        weights = self.weights.view(*self.weights.shape, *[1] * (of_token.ndim - 2))
        return (of_token * weights.to(values.dtype)).sum(1)

    def flatten_values(self, values: Tensor, members: int) -> Tensor:
        """Return the patches of each token and their weights in one row, for projectors that come before pooling.

        `unflatten_values` is the inverse.

        Parameters
        ----------
        values : Tensor
            Values of patches, (P, D).
        members : int
            Number of patches of each row, M or more; the missing ones are zeros of weight 0.

        Returns
        -------
        Tensor
            (T, members * (D + 1)): `members` patches of D values each, then their weights.
        """
        of_token = values[self.members].masked_fill((self.weights == 0)[..., None], 0)  # (T, M, D)
        missing = members - self.weights.shape[1]
        of_token = nn.functional.pad(of_token, (0, 0, 0, missing)).flatten(1)  # (T, members * D)
        return torch.cat([of_token, nn.functional.pad(self.weights, (0, missing)).to(values.dtype)], 1)


def unflatten_values(rows: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Return the patches and weights that `Patches.flatten_values` put in one row.

    Parameters
    ----------
    rows : Tensor
        (..., M * (D + 1)). The weights of merged tokens may have any sum.
    members : int
        Number of patches of each row, M.

    Returns
    -------
    tuple[Tensor, Tensor]
        Patches, (..., M, D), and weights, (..., M, 1), scaled to sum to 1, or all 0 where a row has no patch.
    """
    patches, weights = rows[..., :-members], rows[..., -members:]
    total = weights.sum(-1, keepdim=True)
    shares = weights / total.masked_fill(total == 0, 1)
    return patches.view(*patches.shape[:-1], members, -1), shares[..., None]


def bilinear_corners(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the four cells around each point of a grid, with the weights of bilinear interpolation.

    Parameters
    ----------
    row, column : Tensor
        Points on a grid of patches, float64 (T,); whole numbers are the cells themselves.

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        Rows and columns of the cells, int64 (T, 4), and their weights, float32 (T, 4). A cell of weight 0 repeats the
        first cell, so that it always exists.
    """
    # Rounded, so that a point on a cell has weight 0 beyond it.
    row, column = row.round(decimals=9), column.round(decimals=9)
    rows, columns = (torch.stack([place.floor(), place.floor() + 1], 1) for place in (row, column))  # (T, 2) each
    across, along = 1 - (row[:, None] - rows).abs(), 1 - (column[:, None] - columns).abs()
    weights = (across[:, :, None] * along[:, None]).flatten(1)  # (T, 4): top left, top right, bottom left, bottom right
    rows = rows.repeat_interleave(2, dim=1).where(weights > 0, rows[:, :1])
    columns = columns.repeat(1, 2).where(weights > 0, columns[:, :1])
    return rows.long(), columns.long(), weights.float()


def pooling_windows(rows: int, columns: int, stride: int) -> Patches:
    """Return tokens that are each the mean of a square of patches; patches beyond the last whole square are left out.

    Parameters
    ----------
    rows, columns : int
        Grid of patches.
    stride : int
        Side of the squares.
    """
    numbers = torch.arange(rows * columns, dtype=torch.float64).view(1, 1, rows, columns)
    members = nn.functional.unfold(numbers, stride, stride=stride)[0].T.long()  # (T, stride^2)
    return Patches(members, torch.full(members.shape, 1 / stride**2))
