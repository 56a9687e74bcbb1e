"""Where the images stand in a prompt, and how a prompt is shortened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
"""Arguments of a model that have one column a token, and what stands in new padding."""


@dataclass(frozen=True)
class Slots:
    """Where the placeholders of each image stand in a batch of prompts.

    Parameters
    ----------
    rows : Tensor
        Prompt of each image, int64 (I,).
    columns : Tensor
        Columns of its placeholders, int64 (I, P), -1 at padding.
    """

    rows: Tensor
    columns: Tensor


def locate_images(
    input_ids: Tensor, image_token_id: int, placeholders: Tensor, attention_mask: Tensor | None = None
) -> Slots:
    """Find the placeholders of each image; images fill them in reading order.

    Parameters
    ----------
    input_ids : Tensor
        Prompts, int64 (B, L).
    image_token_id : int
        The placeholder's token id.
    placeholders : Tensor
        Placeholders that each image fills, int64 (I,).
    attention_mask : Tensor, optional
        1 at tokens, 0 at padding, (B, L).

    Raises
    ------
    ValueError
        If the prompts hold other placeholders than the images fill, an image would be spread over two prompts, or the
        attention mask hides a placeholder.
    """
    is_image = input_ids == image_token_id
    found, wanted = int(is_image.sum()), int(placeholders.sum())
    if found == 0:
        raise ValueError(
            f"{len(placeholders)} image(s) were given, but the prompt holds no image placeholder "
            f"(token id {image_token_id})"
        )
    if found != wanted:
        raise ValueError(
            f"the prompts hold {found} image placeholders (token id {image_token_id}), but the {len(placeholders)} "
            f"image(s) fill {wanted}"
        )
    if attention_mask is not None and bool((is_image & (attention_mask == 0)).any()):
        raise ValueError("attention_mask hides image placeholders; it may be 0 at padding only")
    placeholders = placeholders.to(input_ids.device)
    offsets = torch.arange(int(placeholders.max()), device=input_ids.device)
    filled = offsets < placeholders[:, None]
    starts = placeholders.cumsum(0) - placeholders
    flat = is_image.flatten().nonzero()[:, 0][(starts[:, None] + offsets).clamp(max=found - 1)]
    rows, columns = flat // input_ids.shape[1], flat % input_ids.shape[1]
    if bool(((rows != rows[:, :1]) & filled).any()):
        image = int(((rows != rows[:, :1]) & filled).any(1).nonzero()[0])
        raise ValueError(
            f"image {image} would be spread over two prompts; placeholders per prompt: {is_image.sum(1).tolist()}, "
            f"per image: {placeholders.tolist()}"
        )
    return Slots(rows[:, 0], columns.masked_fill(~filled, -1))


def runs(marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return prompt, first column, and the column behind the last one, of each run of marks, in reading order.

    Parameters
    ----------
    marks : Tensor
        bool (B, L).

    Returns
    -------
    tuple[Tensor, Tensor, Tensor]
        int64 (R,) each.
    """
    edges = torch.nn.functional.pad(marks.long(), (1, 1)).diff(dim=1)
    rows, starts = (edges > 0).nonzero().unbind(1)
    return rows, starts, (edges < 0).nonzero()[:, 1]


def text_after(slots: Slots, text: Tensor) -> Tensor:
    """Mark the text that follows each image, which is what is asked of it, bool (I, L).

    Parameters
    ----------
    slots : Slots
        Of I images.
    text : Tensor
        Columns that are neither padding nor image, bool (B, L).
    """
    place = torch.arange(text.shape[1], device=text.device)
    return text[slots.rows] & (place > slots.columns.amax(1, keepdim=True))


def of_images(states: Tensor, rows: Tensor) -> Tensor:
    """Return the states (I, ...) of each image's prompt, of those (B, ...) of all; nothing is copied where B = 1.

    Parameters
    ----------
    states : Tensor
        (B, ...).
    rows : Tensor
        Long (I,); the images' prompts.
    """
    return states.expand(len(rows), *states.shape[1:]) if len(states) == 1 else states[rows.to(states.device)]


def of_prompts(marks: Tensor, rows: Tensor, prompts: int) -> Tensor:
    """Return the columns that are marked for any image of each prompt, bool (B, L).

    Parameters
    ----------
    marks : Tensor
        bool (I, L).
    rows : Tensor
        Long (I,); the images' prompts.
    prompts : int
        How many there are.
    """
    return marks.new_zeros(prompts, marks.shape[1], dtype=torch.int64).index_add_(0, rows, marks.long()) > 0


def kept_columns(slots: Slots, real: Tensor, lengths: Tensor, selection: Selection) -> Tensor:
    """Mark the columns that survive: all text, and one placeholder for each kept token.

    Where an image has fewer tokens than placeholders (it was made smaller), its tokens stand evenly spread over them.

    Parameters
    ----------
    slots : Slots
        Of I images.
    real : Tensor
        False at padding, bool (B, L).
    lengths : Tensor
        Tokens of each image before the selection, int64 (I,).
    selection : Selection
        Of I rows.

    Returns
    -------
    Tensor
        bool (B, L).
    """
    keep = real.clone()
    filled = slots.columns >= 0
    rows = slots.rows[:, None].expand_as(slots.columns)
    keep[rows[filled], slots.columns[filled]] = False
    picks = selection.indices.to(slots.columns.device)
    chosen = picks >= 0
    full, short = filled.sum(1, keepdim=True), lengths.to(picks.device)[:, None]
    places = (2 * picks.clamp(min=0) + 1) * full // (2 * short)
    rows = slots.rows[:, None].expand_as(picks)
    keep[rows[chosen], slots.columns.gather(1, places)[chosen]] = True
    return keep


def surviving_columns(keep: Tensor, real: Tensor) -> Tensor:
    """Return the columns that a shorter batch takes from a longer one, in their order, int64 (B, W).

    Rows that lose more columns than others take some of these as padding, on the side where the batch is padded (left
    if nowhere). The caller's own padding stays, so that keeping everything changes nothing.

    Parameters
    ----------
    keep, real : Tensor
        Columns that survive; columns that are no padding; bool (B, L).
    """
    width = int(keep.sum(1).max()) + keep.shape[1] - int(real.sum(1).max())
    # Padding sorts between what goes and what stays, so that it goes next.
    rank = keep.long() - (real & ~keep).long()
    left = bool(real[:, -1].all())
    order = rank.sort(dim=1, descending=not left, stable=True).indices
    return order[:, -width:] if left else order[:, :width]


def drop_columns(inputs: Mapping[str, Any], keep: Tensor, real: Tensor, pad_token_id: int = 0) -> dict[str, Any]:
    """Gather the surviving columns of everything that has one column a token; other arguments pass through.

    Which columns these are, and how rows are padded, tells `surviving_columns`.

    Parameters
    ----------
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward`` with ``input_ids`` (B, L).
    keep, real : Tensor
        Columns that survive; columns that are no padding; bool (B, L).
    pad_token_id : int
        What stands in new padding of ``input_ids``.

    Raises
    ------
    ValueError
        If an attention mask is not (B, L).
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
