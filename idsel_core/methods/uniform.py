"""Control: tokens spread evenly over the image."""

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
    """Keep cells spread evenly over the grid, whatever they show.

    The budget is shared out over evenly spaced grid rows, as many as make the spacing about alike in both directions,
    and within each over evenly spaced columns; above half of the cells it is those left out that are spread. Tokens off
    the grid come last.
    """

    name: ClassVar[str] = "uniform"
    label: ClassVar[str] = "uniform grid"

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image."""
        counts = resolve_budget(self.budget, tokens.lengths).tolist()
        chosen = [_on_cells(grid, count) for grid, count in zip(tokens.grid.cpu(), counts, strict=True)]
        return take_best(torch.stack(chosen).to(tokens.mask.device), tokens, self.budget)


def _on_cells(grid: Tensor, count: int) -> Tensor:
    """Return 2 at the tokens on the chosen cells, 1 on others and 0 off the grid, (N,), for a grid (N, 2)."""
    rows, columns = (grid.amax(0) + 1).tolist()
    cells = rows * columns
    count = min(count, cells)
    most = 2 * count > cells
    chosen = 2 - _spread(rows, columns, cells - count) if most else 1 + _spread(rows, columns, count)
    # Tokens off the grid are at -1, the last row and column.
    return functional.pad(chosen, (0, 1, 0, 1))[grid[:, 0], grid[:, 1]]


def _spread(rows: int, columns: int, count: int) -> Tensor:
    """Return 1 on `count` evenly spread cells of (rows, columns), which may be half of them, and 0 elsewhere."""
    cells = torch.zeros(rows, columns)
    if count:
        alike, enough = round(math.sqrt(count * rows / columns)), math.ceil(count / columns)
        bands = min(rows, count, max(alike, enough))
        for band in range(bands):
            share = (band + 1) * count // bands - band * count // bands
            for place in range(share):
                cells[(2 * band + 1) * rows // (2 * bands), (2 * place + 1) * columns // (2 * share)] = 1
    return cells
