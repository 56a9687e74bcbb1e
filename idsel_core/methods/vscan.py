"""VScan before the language model: tokens of all parts of the image and of the whole, with the others merged in."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods.attended import Attended
from idsel_core.methods.steps import (
    absorbed,
    check_count,
    check_flag,
    check_share,
    cosines,
    cut,
    picked,
    rank_within,
    ranked,
    take,
    unit,
)
from idsel_core.selection import Selection, resolve_budget
from idsel_core.tokens import VisualTokens


@dataclass(frozen=True)
class VScan(Attended):
    """Keep the most attended tokens of each window in a shallow layer, then those of the image in a deep one.

    Each other token is merged into the kept one that it is most like, by what the language model reads, and a kept
    token becomes the mean of all that it is made of. This is the authors' first stage; their second one drops more
    tokens within the language model.

    Source: VScan, arXiv 2505.22654.

    Parameters
    ----------
    local : float
        Share of the budget for the windows, rounded down. It goes round the windows one token at a time; where it does
        not go round once more, to those whose next token is attended to most.
    windows : int
        Windows on each side of the image.
    depth : float
        Depth of the shallow layer, as a share of the tower's layers: the 6th of CLIP ViT-L's 24.
    faithful : bool
        As the authors do, lose what does not go round all windows once more, so that fewer tokens are kept.
    """

    name: ClassVar[str] = "vscan"

    _: KW_ONLY
    local: float = 0.5
    windows: int = 4
    depth: float = 0.25
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("local", self.local)
        check_count("windows", self.windows)
        check_share("depth", self.depth)
        check_flag("faithful", self.faithful)

    @property
    def depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads beside the layer that feeds the projector."""
        return (self.depth,)

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image.

        Raises
        ------
        ValueError
            If `faithful` and the authors' code would fail, with fewer local tokens than windows.
        """
        return merged(self.scan(tokens), tokens)

    @torch.no_grad()
    def scan(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image without merging the others into them."""
        mask, deep, shallow = tokens.mask, self.row(tokens), self.row(tokens, self.depth)
        counts = resolve_budget(self.budget, tokens.lengths)
        local = (counts.double() * self.local).floor().long()
        rank = rank_within(self._window(tokens.grid), shallow, mask)
        if self.faithful:
            share = local // self.windows**2
            if bool((share == 0).any()):
                raise ValueError(
                    f"VScan's code needs a local token for each of {self.windows**2} windows; got {local.tolist()}"
                )
            near = mask & (rank < share[:, None]) & (tokens.grid[..., 0] >= 0)
            counts = (counts - local + near.sum(1)).minimum(tokens.lengths)
        else:
            near = picked(cut(ranked((-rank, shallow), mask), local), mask.shape[1])
        order = ranked((near, (-rank).where(near, 0), shallow.where(near, deep)), mask)
        return Selection.from_order(cut(order, counts), deep, self.budget)

    def _window(self, grid: Tensor) -> Tensor:
        """Return the window of each token (B, N); those off the grid have one of their own."""
        sides = grid.amax(1, keepdim=True) + 1
        row, column = (grid * self.windows // sides.clamp_min(1)).unbind(-1)
        return (row * self.windows + column).where(row >= 0, -1)


@torch.no_grad()
def merged(selection: Selection, tokens: VisualTokens) -> Selection:
    """Make each kept token the mean of itself and of the others that are more like it than like any other kept one."""
    places, mask = selection.indices, tokens.mask
    x = unit(tokens.features, mask)
    likeness = cosines(x, take(x, places)).masked_fill_((places < 0)[:, None], -torch.inf)
    features = tokens.features.float()
    sums, numbers = absorbed(features, mask & ~picked(places, mask.shape[1]), likeness)
    features = (take(features, places) + sums) / (numbers + 1)[..., None]
    return replace(selection, features=features.to(tokens.features.dtype))
