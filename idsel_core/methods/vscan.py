"""VScan: local and global tokens with the others merged in, and a drop in the middle of the language model."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_above_zero, check_count, check_flag, check_share
from idsel_core.methods._shared.drop_plan import check_layer, resolve_layers
from idsel_core.methods._shared.in_llm import AttentionFrom, Choice, InLLM, LayerTokens, Positions, most_attended
from idsel_core.methods._shared.ragged import (
    argsort_by,
    cosines,
    gather_tokens,
    merge_into_nearest,
    rank_in_group,
    to_mask,
    truncate,
    unit_vectors,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Unavailable, VisualTokens


@dataclass(frozen=True)
class VScan(Attended, InLLM):
    """Keep the most attended tokens of each window in a shallow tower layer, and of the image in a deep one.

    Every other token is merged into the kept token of most similar projector output, and a kept token becomes the mean
    of all that it is made of. More tokens than the budget enter the language model. In its middle, the tokens that the
    last prompt token would attend to least in the next layer are dropped, and positions are numbered anew. For an
    average of 64 tokens, 96 enter and 32 are left.

    Source: VScan, arXiv 2505.22654.

    Parameters
    ----------
    local : float
        Share of the entering tokens for the windows, rounded down. Every window gets one token in turn; when there is
        not one for every window, those get it whose next token is attended to most.
    windows : int
        Number of windows along each side of the image.
    depth : float
        Depth of the shallow layer, as a share of the tower's layers; the default is layer 6 of 24 in CLIP ViT-L.
    layer : int or float, optional
        Drop layer of the language model, or its share of the depth; by default layer 16 of 32. With None no tokens are
        dropped there, and exactly the budget enters under either convention.
    left : float
        Share, above 0 and up to 1, of the entering tokens that the drop leaves. It and the budget determine how many
        enter: by default, at layer 16 of 32, 1.5 times an average budget or 3 times a final one, at most all.
    faithful : bool
        As the authors' code does, give every window the same number of tokens and lose the remainder, so that fewer
        tokens enter. The drop leaves as many as if none were lost.
    """

    name: ClassVar[str] = "vscan"
    label: ClassVar[str] = "VScan"
    positions: ClassVar[Positions] = "compact"
    attention_from: ClassVar[AttentionFrom] = "after"

    _: KW_ONLY
    local: float = 0.5
    windows: int = 4
    depth: float = 0.25
    layer: int | float | None = 16 / 32
    left: float = 1 / 3
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("local", self.local)
        check_count("windows", self.windows)
        check_share("depth", self.depth)
        if self.layer is not None:
            check_layer("layer", self.layer)
        check_share("left", self.left)
        check_above_zero("left", self.left)
        check_flag("faithful", self.faithful)

    @property
    def inside(self) -> bool:
        """Whether the method drops tokens inside the language model at all."""
        return self.layer is not None

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layer, if there is one."""
        return () if self.layer is None else resolve_layers((self.layer,), num_layers)

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep the most attended tokens."""
        return most_attended(tokens, counts)

    def entering(self, full: Tensor, depth: int | None) -> Tensor:
        """Return the number of tokens of each image that enter the language model, int64 (B,).

        Under the "average" convention it leaves room for at least one token after the drop.

        Parameters
        ----------
        full : Tensor
            Number of tokens of each image, int64 (B,).
        depth : int, optional
            Number of layers of the language model.

        Raises
        ------
        Unavailable
            If `depth` is None and the budget is an average over the layers.
        ValueError
            If there is no such drop layer.
        """
        budgets = resolve_budget(self.budget, full)
        if self.layer is None:
            return budgets
        most = full
        if self.budget_convention == "final":
            times = 1 / self.left
        elif depth is None:
            raise Unavailable("decoder_layers", "an average budget needs the number of layers of the language model")
        else:
            (before,) = self.drop_layers(depth)
            behind = depth - before
            times = depth / (before + behind * self.left)
            most = full.minimum((budgets * depth - behind) // before)
        return (budgets.double() * times + 0.5).floor().minimum(most.double()).long()

    def counts(self, full: Tensor, entering: Tensor, depth: int) -> Tensor:
        """Return the number of tokens of each image after the drop, int64 (B, 1)."""
        planned = self.entering(full, depth) if self.faithful else entering
        return super().counts(full, planned, depth).minimum(entering[:, None])

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads, other than the layer that feeds the projector."""
        return (self.depth,)

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            As for `entering`, or if `faithful` and there are fewer local tokens than windows, on which the authors'
            code fails.
        """
        return merge_others(self.scan(tokens), tokens)

    @torch.no_grad()
    def scan(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image without merging the others into them."""
        mask, deep, shallow = tokens.mask, self.row(tokens), self.row(tokens, self.depth)
        counts = self.entering(tokens.lengths, tokens.decoder_layers)
        local = (counts.double() * self.local).floor().long()
        rank = rank_in_group(self._window(tokens.grid), shallow, mask)
        if self.faithful:
            share = local // self.windows**2
            if bool((share == 0).any()):
                raise ValueError(
                    f"VScan's code needs a local token for each of {self.windows**2} windows; got {local.tolist()}"
                )
            near = mask & (rank < share[:, None]) & (tokens.grid[..., 0] >= 0)
            counts = (counts - local + near.sum(1)).minimum(tokens.lengths)
        else:
            near = to_mask(truncate(argsort_by((-rank, shallow), mask), local), mask.shape[1])
        order = argsort_by((near, (-rank).where(near, 0), shallow.where(near, deep)), mask)
        return Selection.from_order(truncate(order, counts), deep, self.budget)

    def _window(self, grid: Tensor) -> Tensor:
        """Return the window of each token, (B, N); tokens off the grid share the window -1."""
        sides = grid.amax(1, keepdim=True) + 1
        row, column = (grid * self.windows // sides.clamp_min(1)).unbind(-1)
        return (row * self.windows + column).where(row >= 0, -1)


@torch.no_grad()
def merge_others(selection: Selection, tokens: VisualTokens) -> Selection:
    """Replace each kept token by the mean of itself and of the tokens that are most similar to it."""
    places, mask = selection.indices, tokens.mask
    x = unit_vectors(tokens.features, mask)
    likeness = cosines(x, gather_tokens(x, places)).masked_fill_((places < 0)[:, None], -torch.inf)
    features = tokens.features.float()
    sums, numbers = merge_into_nearest(features, mask & ~to_mask(places, mask.shape[1]), likeness)
    features = (gather_tokens(features, places) + sums) / (numbers + 1)[..., None]
    return replace(selection, features=features.to(tokens.features.dtype))
