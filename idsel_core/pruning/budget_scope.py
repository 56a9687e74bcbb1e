"""Selection from each tile of an image by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from idsel_core.methods import Method, drops_inside
from idsel_core.pruning.small_images import select_from_larger
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

Scope = Literal["image", "tile"]
SCOPES = ("image", "tile")

_PER_IMAGE = ("cls_features", "image_key")


def check_scope(scope: str, method: Method) -> None:
    """Raise ValueError unless a method can have a budget of this scope."""
    if scope not in SCOPES:
        raise ValueError(f"budget_scope must be one of {', '.join(SCOPES)}, not {scope!r}")
    if scope == "tile" and drops_inside(method):
        raise ValueError(
            f'{method.name} drops tokens inside the language model, where budget_scope="tile" has no meaning'
        )


def select_by_tile(method: Method, tokens: VisualTokens) -> Selection:
    """Let a method choose from each tile of an image as if it were an image of its own, with the whole budget.

    Parameters
    ----------
    method : Method
        What it reads of the whole image, such as the question's attention, is what it was.
    tokens : VisualTokens
        I images. Those without ``crops`` or ``tiles`` are one tile.

    Returns
    -------
    Selection
        I rows; the picks of one tile come behind those of the tile before it.
    """
    if "tiles" in tokens.sources:
        tile = tokens.sources["tiles"]()
    elif "crops" in tokens.sources:
        row, column = tokens.crops.unbind(-1)
        tile = torch.where(row < 0, 0, row * (int(column.max()) + 1) + column + 1)
    else:
        return select_from_larger(method, tokens)
    tile = tile.masked_fill(~tokens.mask, -1)
    member = tile[:, None] == torch.arange(int(tile.max()) + 1, device=tile.device)[:, None]
    images, numbers = member.any(2).nonzero().unbind(1)
    member = member[images, numbers]
    lengths = member.sum(1)
    places = member.sort(dim=1, descending=True, stable=True).indices[:, : int(lengths.max())]
    mask = torch.arange(places.shape[1], device=places.device) < lengths[:, None]
    selection = select_from_larger(method, _apart(tokens, images, numbers, places, mask))
    return _joined(selection, tokens, images, places, mask)


def _apart(tokens: VisualTokens, images: Tensor, numbers: Tensor, places: Tensor, mask: Tensor) -> VisualTokens:
    """Return tiles (T,), which are of `images` and have these `numbers` there, as rows; `places` (T, M) are theirs."""

    def taken(values: Tensor, fill: float = 0) -> Tensor:
        chosen = values[images[:, None], places]
        return chosen.masked_fill(~mask.view(*mask.shape, *[1] * (chosen.ndim - 2)), fill)

    def source(name: str, of: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if name == "projector":
            return of
        if name == "image_key":
            return lambda: of()[images] + numbers
        if name in _PER_IMAGE:
            return lambda: of()[images]
        return lambda *arguments: taken(of(*arguments))

    sources = {name: source(name, of) for name, of in tokens.sources.items() if name not in ("crops", "tiles")}
    return dataclasses.replace(
        tokens,
        features=taken(tokens.features),
        mask=mask,
        grid=taken(tokens.grid, -1),
        sources=sources,
        reasons={**tokens.reasons, "crops": "each tile is chosen from by itself"},
        placeholders=mask.sum(1),
        video=None,
        slots=None,
        _cache={},
    )


def _joined(selection: Selection, tokens: VisualTokens, images: Tensor, places: Tensor, mask: Tensor) -> Selection:
    """Return what was selected from tiles as a selection from their images."""

    def numbered(picks: Tensor) -> Tensor:
        return places.gather(1, picks.clamp_min(0)).masked_fill(picks < 0, -1)

    order, kept = numbered(selection.order), numbered(selection.indices)
    rows = [order[images == image] for image in range(len(tokens))]
    picks = torch.nn.utils.rnn.pad_sequence([row[row >= 0] for row in rows], batch_first=True, padding_value=-1)
    scores = torch.full(tokens.mask.shape, -torch.inf, device=places.device)
    scores[images[:, None].expand_as(places)[mask], places[mask]] = selection.scores[mask]
    joined = Selection.from_order(picks, scores, selection.requested)
    if selection.features is None:
        return joined
    # Which of all kept tokens each token of an image is.
    flat = selection.features.flatten(0, 1)
    which = places.new_zeros(tokens.mask.shape)
    chosen = kept >= 0
    at = torch.arange(len(flat), device=flat.device).view(kept.shape)
    which[images[:, None].expand_as(kept)[chosen], kept[chosen]] = at[chosen]
    return dataclasses.replace(joined, features=flat[which.gather(1, joined.indices.clamp_min(0))])
