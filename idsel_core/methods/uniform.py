"""Control: evenly spaced tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from idsel_core.methods._shared.base import Method, take_best
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class UniformGrid(Method):
    """Keep evenly spaced cells of the grid.

    The budget is distributed over evenly spaced rows, so many that the spacing is about equal in both directions, and
    within a row over evenly spaced columns. Above half of the cells, the cells that are left out are evenly spaced.
    Tokens off the grid come last.
    """

    name: ClassVar[str] = "uniform"
    label: ClassVar[str] = "uniform grid"

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths).tolist()
        chosen = [_on_cells(grid, count) for grid, count in zip(tokens.grid.cpu(), counts, strict=True)]
        return take_best(torch.stack(chosen).to(tokens.mask.device), tokens, self.budget)


def _on_cells(grid: Tensor, count: int) -> Tensor:
    """Return 2 for tokens on chosen cells, 1 for other cells and 0 off the grid, (N,), given their cells (N, 2)."""
    rows, columns = (grid.amax(0) + 1).tolist()
    cells = rows * columns
    count = min(count, cells)
    most = 2 * count > cells
    chosen = 2 - _spread(rows, columns, cells - count) if most else 1 + _spread(rows, columns, count)
    # Tokens off the grid index the padded last row and column by -1.
    return functional.pad(chosen, (0, 1, 0, 1))[grid[:, 0], grid[:, 1]]


def _spread(rows: int, columns: int, count: int) -> Tensor:
    """Return a grid (rows, columns) with 1 on `count` evenly spaced cells, at most half of them, and 0 elsewhere."""
    cells = torch.zeros(rows, columns)
    if count:
        alike, enough = round(math.sqrt(count * rows / columns)), math.ceil(count / columns)
        bands = min(rows, count, max(alike, enough))
        for band in range(bands):
            share = (band + 1) * count // bands - band * count // bands
            for place in range(share):
                cells[(2 * band + 1) * rows // (2 * bands), (2 * place + 1) * columns // (2 * share)] = 1
    return cells
