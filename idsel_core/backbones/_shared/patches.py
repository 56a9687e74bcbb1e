"""Which patches of a vision tower the tokens of a model are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Patches:
    """The patches of T tokens, and how much each counts.

    Parameters
    ----------
    members : Tensor
        Numbers of the patches, int64 (T, M).
    weights : Tensor
        Their shares of the token, float32 (T, M). A token without any is none of the image.
    """

    members: Tensor
    weights: Tensor

    @classmethod
    def together(cls, parts: Iterable[Patches], device: torch.device) -> Patches:
        """Return those of several images, as few members to a token as are needed."""
        given = list(parts)
        members, weights = torch.cat([part.members for part in given]), torch.cat([part.weights for part in given])
        used = int((weights != 0).sum(1).max())
        order = (weights != 0).sort(dim=1, descending=True, stable=True).indices[:, :used]
        return cls(members.gather(1, order).to(device), weights.gather(1, order).to(device))

    def repeated(self, times: int, patches: int) -> Patches:
        """Return those of several frames alike, of which each has so many patches."""
        starts = torch.arange(times, device=self.members.device)[:, None, None] * patches
        return Patches((starts + self.members).flatten(0, 1), self.weights.repeat(times, 1))

    def mean(self, values: Tensor) -> Tensor:
        """Return what tokens have of values of the patches, (P, ...) to (T, ...)."""
        of_token = values[self.members]
        weights = self.weights.view(*self.weights.shape, *[1] * (of_token.ndim - 2))
        return (of_token * weights.to(values.dtype)).sum(1)

    def joined(self, values: Tensor, members: int) -> Tensor:
        """Return so many patches of each token, then their weights, (P, D) to (T, members * (D + 1)), 0 at none."""
        of_token = values[self.members].masked_fill((self.weights == 0)[..., None], 0)
        missing = members - self.weights.shape[1]
        of_token = nn.functional.pad(of_token, (0, 0, 0, missing)).flatten(1)
        return torch.cat([of_token, nn.functional.pad(self.weights, (0, missing)).to(values.dtype)], 1)


def separated(joined: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Return patches (..., M, D) and their weights (..., M, 1), which sum to 1, of what `Patches.joined` gave.

    Merged tokens may have any other sum before. Where there is no patch, weights are 0.

    Parameters
    ----------
    joined : Tensor
        (..., M * (D + 1)).
    members : int
        Patches of a token, M.
    """
    patches, weights = joined[..., :-members], joined[..., -members:]
    total = weights.sum(-1, keepdim=True)
    shares = weights / total.masked_fill(total == 0, 1)
    return patches.view(*patches.shape[:-1], members, -1), shares[..., None]


def corners(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the four cells between which places lie, as linear interpolation weighs them.

    Parameters
    ----------
    row, column : Tensor
        Places on a grid of patches, float64 (T,).

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        Rows and columns, int64 (T, 4), and weights, float32 (T, 4). A cell of no weight is the first one again.
    """
    # Rounded, so that what lies on a cell has no weight beyond it.
    row, column = row.round(decimals=9), column.round(decimals=9)
    rows, columns = (torch.stack([place.floor(), place.floor() + 1], 1) for place in (row, column))
    across, along = 1 - (row[:, None] - rows).abs(), 1 - (column[:, None] - columns).abs()
    weights = (across[:, :, None] * along[:, None]).flatten(1)
    rows = rows.repeat_interleave(2, dim=1).where(weights > 0, rows[:, :1])
    columns = columns.repeat(1, 2).where(weights > 0, columns[:, :1])
    return rows.long(), columns.long(), weights.float()


def windows(rows: int, columns: int, stride: int) -> Patches:
    """Return tokens that are each the mean of a square of patches on a grid; what fills no square is left out."""
    numbers = torch.arange(rows * columns, dtype=torch.float64).view(1, 1, rows, columns)
    members = nn.functional.unfold(numbers, stride, stride=stride)[0].T.long()
    return Patches(members, torch.full(members.shape, 1 / stride**2))
