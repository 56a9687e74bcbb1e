"""HiPrune: anchors of a shallow tower layer with their neighbours, and the most attended tokens of a deep layer."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag, check_share
from idsel_core.methods._shared.ragged import argsort_by, to_mask, truncate
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class HiPrune(Method):
    """Keep anchors of a shallow tower layer, their neighbours, and the most attended tokens of a deep layer.

    Attention is the mean that a token receives from all tokens. Small budgets have no anchors: an anchor and its
    neighbours are 5 tokens and get a tenth of the budget, so the first anchor comes above 25 tokens.

    Source: HiPrune, arXiv 2508.00553.

    Parameters
    ----------
    anchors : float
        Share of the budget for anchors and their neighbours: a fifth of it, rounded half to even, are anchors.
    depth : float
        Depth of the shallow layer, as a share of the tower's layers; the default is layer 9 of 24 in CLIP ViT-L.
    faithful : bool
        As the authors' code does, find neighbours by index: the left neighbour in the first column is the end of the
        row above, and neighbours outside the image are its first and last token. Refuse budgets below the number of
        anchors and neighbours, on which their code fails; by default the least attended of them are left out.
    """

    name: ClassVar[str] = "hiprune"
    label: ClassVar[str] = "HiPrune"

    _: KW_ONLY
    anchors: float = 0.1
    depth: float = 0.375
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("anchors", self.anchors)
        check_share("depth", self.depth)
        check_flag("faithful", self.faithful)

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads, other than the layer that feeds the projector."""
        return (self.depth,)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            If `faithful` and there are more anchors and neighbours than the budget.
        """
        mask, counts = tokens.mask, resolve_budget(self.budget, tokens.lengths)
        shallow = tokens.at_depth("received_attention", self.depth).float()
        deep = tokens.received_attention.float().masked_fill(~mask, -torch.inf)
        wanted = (counts.double() * self.anchors / 5).round().long()
        anchors = to_mask(truncate(argsort_by((shallow,), mask), wanted), mask.shape[1])
        near = _by_index(anchors, tokens) if self.faithful else _on_grid(anchors, tokens.grid)
        tier = 2 * anchors.byte() + (near & ~anchors).byte()
        if self.faithful and bool(((taken := (tier > 0).sum(1)) > counts).any()):
            raise ValueError(
                f"HiPrune's code fails if anchors and their neighbours are more than the budget; "
                f"got {taken.tolist()} of {counts.tolist()} tokens"
            )
        order = argsort_by((tier, deep.where(~anchors, shallow)), mask)
        return Selection.from_order(truncate(order, counts), deep, self.budget)


def _on_grid(anchors: Tensor, grid: Tensor) -> Tensor:
    """Return a mask of the tokens above, below, left or right of an anchor, bool (B, N)."""
    # (B, rows + 2, columns + 2): the grid with a margin; tokens off the grid fall into its corner, next to no cell.
    rows, columns = (grid.flatten(0, 1).amax(0) + 3).tolist()
    image = torch.arange(len(grid), device=grid.device)[:, None]
    row, column = (grid + 1).unbind(-1)
    cells = anchors.new_zeros(len(grid), rows, columns)
    cells[image, row, column] = anchors
    near = torch.zeros_like(cells)
    near[:, 1:-1, 1:-1] = cells[:, :-2, 1:-1] | cells[:, 2:, 1:-1] | cells[:, 1:-1, :-2] | cells[:, 1:-1, 2:]
    return near[image, row, column]


def _by_index(anchors: Tensor, tokens: VisualTokens) -> Tensor:
    """Return a mask of the tokens one index or one row width before or after an anchor, bool (B, N)."""
    width = tokens.grid[..., 1].amax(1, keepdim=True) + 1
    place = torch.arange(anchors.shape[1], device=anchors.device)
    near = [place + step for step in (-1, 1)] + [place + step for step in (-width, width)]
    last = tokens.lengths[:, None] - 1
    marked = torch.zeros_like(anchors, dtype=torch.long)
    for places in near:
        marked.scatter_add_(1, places.clamp_min(0).minimum(last), anchors.long())
    return marked > 0
