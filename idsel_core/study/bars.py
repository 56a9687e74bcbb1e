"""Images with bars above and below, as models that pad to a square see them, and methods that may not keep the bars."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from idsel_core.methods import Method
from idsel_core.selection.result import Selection
from idsel_core.study.dataset import Split
from idsel_core.visual_tokens import VisualTokens

GREY = (124, 116, 104)
"""Colour of the bars: the mean pixel of ImageNet; LLaVA-1.5 pads images with that of its processor."""


def with_bars(split: Split, share: float) -> Split:
    """Return a split whose images are pressed flat, with a bar above and one below, so that their size is what it was.

    Parameters
    ----------
    split : Split
        Questions and images.
    share : float
        Share of an image's height that the two bars take together, above 0 and below 1.

    Raises
    ------
    ValueError
        If the share is none.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share!r}")
    images = split.images.copy()
    pictures = [functools.partial(_pressed, split, str(name), share) for name in images.index]
    images["image"] = pd.Series(pictures, index=images.index, dtype=object)
    if split.has_boxes:
        heights = {name: split.picture(str(name)).size[1] for name in images.index}
        boxes = [[_moved(box, heights[name], share) for box in several] for name, several in images["objects"].items()]
        images["objects"] = pd.Series(boxes, index=images.index, dtype=object)
    return replace(split, images=images, dataset=f"{split.dataset}, bars", version=f"{split.version} bars {share:g}")


def _pressed(split: Split, name: str, share: float) -> Image.Image:
    picture = split.picture(name)
    width, height = picture.size
    inner = round(height * (1 - share))
    whole = Image.new("RGB", (width, height), GREY)
    whole.paste(picture.resize((width, inner), Image.Resampling.BICUBIC), (0, (height - inner) // 2))
    return whole


def _moved(box: dict[str, int], height: int, share: float) -> dict[str, int]:
    inner = round(height * (1 - share))
    above = (height - inner) // 2
    return {**box, **{side: above + round(box[side] * inner / height) for side in ("top", "bottom")}}


def on_bars(grid: Tensor, share: float) -> Tensor:
    """Return which tokens have their middle on a bar, bool (B, N).

    Parameters
    ----------
    grid : Tensor
        Row and column of each token, int64 (B, N, 2), -1 off the grid.
    share : float
        As for `with_bars`.
    """
    rows = grid[..., 0]  # (B, N)
    middle = (rows + 0.5) / (rows.amax(1, keepdim=True) + 1)
    return (rows >= 0) & ((middle < share / 2) | (middle > 1 - share / 2))


@dataclass(frozen=True)
class WithoutBars(Method):
    """Let another method select among the tokens that lie on no bar.

    Parameters
    ----------
    inner : Method
        The method, which merges nothing and reads no place in the grid; its own budget plays no part.
    share : float
        As for `with_bars`.
    """

    name: ClassVar[str] = "without-bars"

    _: KW_ONLY
    inner: Method
    share: float

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            If the bars of the images lie at different places, or the method merges tokens.
        """
        bars = on_bars(tokens.grid, self.share)
        if bool((bars != bars[:1]).any()):
            raise ValueError("the bars of a batch must lie at the same places: choose images of one size")
        places = (~bars[0]).nonzero()[:, 0]  # (M,)
        found = replace(self.inner, budget=self.budget).select(_columns(tokens, places))
        if found.features is not None:
            raise ValueError(f"inner must be a method that merges no tokens, not {self.inner.name!r}")
        order = places[found.order.clamp_min(0)].masked_fill(found.order < 0, -1)
        scores = found.scores.new_full(tokens.mask.shape, -torch.inf).index_copy(1, places, found.scores)
        return Selection.from_order(order, scores, self.budget)


def _columns(tokens: VisualTokens, places: Tensor) -> VisualTokens:
    """Return some tokens of each row, int64 (M,); views that hold a row for each token are cut as well."""
    count = tokens.mask.shape[1]

    def part(source: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def cut(*arguments: Any) -> Tensor:
            view = source(*arguments)
            return view[:, places] if view.ndim > 1 and view.shape[1] == count else view

        return cut

    sources = {name: source if name == "projector" else part(source) for name, source in tokens.sources.items()}
    return replace(
        tokens,
        features=tokens.features[:, places],
        mask=tokens.mask[:, places],
        grid=tokens.grid[:, places],
        sources=sources,
        placeholders=None,
        _cache={},
    )
