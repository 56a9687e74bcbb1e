"""Images with fewer tokens than the budget, which are left whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from idsel_core.methods import Method
from idsel_core.selection.budget import is_above
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


def select_from_larger(method: Method, tokens: VisualTokens) -> Selection:
    """Let a method select from the images that have at least as many tokens as its budget, and leave the others whole.

    A whole image keeps its features: nothing is merged, and its scores are not computed.

    Parameters
    ----------
    method : Method
        Of any kind. A budget that is a share is never above the tokens of an image.
    tokens : VisualTokens
        I images.

    Returns
    -------
    Selection
        I rows. A whole image's picks are in raster order, and its scores equal.

    Raises
    ------
    TypeError
        If the method's ``select`` does not return a selection of so many rows.
    """
    larger = (~is_above(method.budget, tokens.full_lengths)).to(tokens.mask.device).nonzero()[:, 0]
    if len(larger) == len(tokens):
        return _selected(method, tokens)
    place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand(tokens.mask.shape)
    whole = Selection.from_order(place.masked_fill(~tokens.mask, -1), tokens.mask.float().log(), method.budget)
    return whole if len(larger) == 0 else _with_rows(whole, larger, _selected(method, _rows(tokens, larger)), tokens)


def _selected(method: Method, tokens: VisualTokens) -> Selection:
    selection = method.select(tokens)
    if not isinstance(selection, Selection) or len(selection) != len(tokens):
        found = f"{len(selection)} rows" if isinstance(selection, Selection) else type(selection).__name__
        raise TypeError(
            f"select() of method {method.name!r} must return a Selection with {len(tokens)} rows, one an image, not "
            f"{found}; see take_best() and Selection.from_order()"
        )
    return selection


def _rows(tokens: VisualTokens, rows: Tensor) -> VisualTokens:
    """Return some images; rows is int64 (R,)."""

    def source(name: str, of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return of if name == "projector" else lambda *arguments: of(*arguments)[rows]

    return dataclasses.replace(
        tokens,
        features=tokens.features[rows],
        mask=tokens.mask[rows],
        grid=tokens.grid[rows],
        sources={name: source(name, of) for name, of in tokens.sources.items()},
        placeholders=tokens.full_lengths.to(rows.device)[rows],
        video=None if tokens.video is None else tokens.video.to(rows.device)[rows],
        _cache={},
    )


def _with_rows(whole: Selection, rows: Tensor, chosen: Selection, tokens: VisualTokens) -> Selection:
    """Return a selection of whole images, in which those at `rows` are as they were chosen."""
    order, scores = whole.order.clone(), whole.scores.clone()
    order[rows] = -1
    order[rows, : chosen.order.shape[1]] = chosen.order
    scores[rows] = chosen.scores
    joined = Selection.from_order(order[:, : int((order >= 0).sum(1).max())], scores, whole.requested)
    if chosen.features is None:
        return joined
    indices = joined.indices.to(tokens.features.device).clamp_min(0)[..., None]
    features = tokens.features.gather(1, indices.expand(-1, -1, tokens.features.shape[2]))
    features = features.to(torch.promote_types(features.dtype, chosen.features.dtype))
    features[rows, : chosen.features.shape[1]] = chosen.features.to(features.dtype)
    return dataclasses.replace(joined, features=features)
