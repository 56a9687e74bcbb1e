"""Placeholders of images in prompts, and the removal of columns from prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.tensors import padded_rows
from idsel_core.visual_tokens import Slots

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection


PER_TOKEN: Mapping[str, int] = {
    "input_ids": 0,
    "attention_mask": 0,
    "position_ids": 0,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "labels": -100,
}
"""Arguments of a model with one column for each token, and their value in new padding."""


def real_columns(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return a mask of the columns that are no padding, bool (B, L), of prompts and their attention mask, if any."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return attention_mask.bool().to(input_ids.device)


def locate_images(
    input_ids: Tensor, image_token_id: int, placeholders: Tensor, attention_mask: Tensor | None = None
) -> Slots:
    """Find the placeholders of each image; images fill the placeholders in reading order.

    Parameters
    ----------
    input_ids : Tensor
        Prompts, int64 (B, L).
    image_token_id : int
        Token id of the placeholder.
    placeholders : Tensor
        Number of placeholders that each image fills, int64 (I,).
    attention_mask : Tensor, optional
        1 at tokens, 0 at padding, (B, L).

    Raises
    ------
    ValueError
        If the number of placeholders is not the number that the images fill, an image would extend over two prompts,
        or the attention mask hides a placeholder.
    """
    is_image, length = input_ids == image_token_id, input_ids.shape[1]
    places = is_image.flatten().nonzero()[:, 0]  # (P,): in the flattened batch, in reading order
    found, wanted = len(places), int(placeholders.sum())
    if found == 0:
        raise ValueError(
            f"{len(placeholders)} image(s) were given, but the prompts hold no image placeholder "
            f"(token id {image_token_id})"
        )
    if found != wanted:
        cut = "; was a prompt truncated? Leave out truncation and max_length where it is made, or raise max_length"
        raise ValueError(
            f"the prompts hold {found} image placeholders (token id {image_token_id}), but the {len(placeholders)} "
            f"image(s) fill {wanted}{cut if found < wanted else ''}"
        )
    if attention_mask is not None and int(is_image.logical_and(attention_mask).sum()) < found:
        raise ValueError("attention_mask hides image placeholders; it must be 1 at them")
    placeholders = placeholders.to(input_ids.device)
    flat = padded_rows(places, -1, lengths=placeholders)  # (I, P)
    rows = flat[:, 0] // length
    columns = (flat - rows[:, None] * length).clamp_min(-1)  # (I, P): -1 at padding
    if int(columns.max()) >= length:
        image = int((columns >= length).any(1).int().argmax())
        raise ValueError(
            f"image {image} would extend over two prompts; placeholders per prompt: {is_image.sum(1).tolist()}, "
            f"per image: {placeholders.tolist()}"
        )
    return Slots(rows, columns)


def runs(marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the row, first column and end column (exclusive) of each run of marks, in reading order.

    Parameters
    ----------
    marks : Tensor
        bool (B, L).

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        int64 (R,) each, for R runs.
    """
    edges = torch.nn.functional.pad(marks.long(), (1, 1)).diff(dim=1)  # (B, L + 1): 1 where a run begins, -1 at its end
    rows, starts = (edges > 0).nonzero().unbind(1)
    return rows, starts, (edges < 0).nonzero()[:, 1]


def text_after(slots: Slots, text: Tensor) -> Tensor:
    """Return a mask of the text after each image, bool (I, L).

    Parameters
    ----------
    slots : Slots
        Placeholders of I images.
    text : Tensor
        Mask of columns that are neither padding nor image, bool (B, L).
    """
    place = torch.arange(text.shape[1], device=text.device)
    return text[slots.rows] & (place > slots.columns.amax(1, keepdim=True))


def of_images(states: Tensor, rows: Tensor) -> Tensor:
    """Return the state of each image's prompt, (B, ...) to (I, ...), without a copy if B = 1.

    Parameters
    ----------
    states : Tensor
        (B, ...).
    rows : Tensor
        Row of each image's prompt, int64 (I,).
    """
    return states.expand(len(rows), *states.shape[1:]) if len(states) == 1 else states[rows.to(states.device)]


def of_prompts(marks: Tensor, rows: Tensor, prompts: int) -> Tensor:
    """Return a mask of the columns that are marked for any image of each prompt, bool (B, L).

    Parameters
    ----------
    marks : Tensor
        bool (I, L).
    rows : Tensor
        Row of each image's prompt, int64 (I,).
    prompts : int
        Number of prompts, B.
    """
    return marks.new_zeros(prompts, marks.shape[1], dtype=torch.int64).index_add_(0, rows, marks.long()) > 0


def kept_columns(slots: Slots, real: Tensor, lengths: Tensor, selection: Selection) -> Tensor:
    """Return a mask of the columns that stay, bool (B, L): all text, and one placeholder for each kept token.

    If an image was made smaller and has fewer tokens than placeholders, its tokens are evenly spaced over them.

    Parameters
    ----------
    slots : Slots
        Placeholders of I images.
    real : Tensor
        bool (B, L); False at padding.
    lengths : Tensor
        Number of tokens of each image before the selection, int64 (I,).
    selection : Selection
        Kept tokens of I rows.

    Returns
    -------
    Tensor
        bool (B, L).
    """
    filled = slots.columns >= 0
    flat = slots.rows[:, None] * real.shape[1] + slots.columns  # (I, P): in the flattened batch; arbitrary at padding
    keep = real.flatten().index_fill(0, flat[filled], False)
    picks = selection.indices.to(flat.device)
    full, short = filled.sum(1, keepdim=True), lengths.to(picks.device)[:, None]
    places = (2 * picks.clamp(min=0) + 1) * full // (2 * short)  # (I, K): placeholder of each kept token
    return keep.index_fill_(0, flat.gather(1, places)[picks >= 0], True).view_as(real)


def surviving_columns(keep: Tensor, real: Tensor) -> Tensor:
    """Return the columns that the shortened batch keeps, in their order, int64 (B, W).

    A row that loses more columns than others keeps some of them as padding, on the side where the batch is padded
    (left if it is not padded). The padding of the caller stays, so that keeping everything changes nothing.

    Parameters
    ----------
    keep, real : Tensor
        Masks of the columns to keep, and of columns that are no padding, bool (B, L).
    """
    width = int(keep.sum(1).max()) + keep.shape[1] - int(real.sum(1).max())
    # 1: kept, 0: padding of the caller, -1: dropped. Dropped columns are left out first, then padding.
    rank = keep.long() - (real & ~keep).long()
    left = bool(real[:, -1].all())
    order = rank.sort(dim=1, descending=not left, stable=True).indices
    return order[:, -width:] if left else order[:, :width]


def drop_columns(inputs: Mapping[str, Any], keep: Tensor, real: Tensor, pad_token_id: int = 0) -> dict[str, Any]:
    """Drop columns from all arguments with one column for each token; other arguments pass through.

    See `surviving_columns` for the columns that stay and for padding.

    Parameters
    ----------
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward`` with ``input_ids`` (B, L).
    keep, real : Tensor
        Masks of the columns to keep, and of columns that are no padding, bool (B, L).
    pad_token_id : int
        Value of ``input_ids`` at new padding.

    Raises
    ------
    ValueError
        If the attention mask is not (B, L).
    """
    mask = inputs.get("attention_mask")
    if mask is not None and mask.shape != keep.shape:
        raise ValueError(f"attention_mask must be {tuple(keep.shape)}, like input_ids, not {tuple(mask.shape)}")
    order = surviving_columns(keep, real)
    padding = (real & ~keep).gather(1, order)
    if mask is None and bool(padding.any()):
        inputs = {**inputs, "attention_mask": real.long()}
    short = dict(inputs)
    for name, fill in {**PER_TOKEN, "input_ids": pad_token_id}.items():
        if short.get(name) is not None:
            values = short[name].expand(*short[name].shape[:-2], *keep.shape)
            columns = order.expand(*values.shape[:-2], *order.shape)
            short[name] = values.gather(-1, columns).masked_fill(padding, fill)
    return short
