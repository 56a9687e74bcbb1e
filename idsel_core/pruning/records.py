"""What `prune` reports of each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from idsel_core.selection.result import Selection


@dataclass(frozen=True)
class DropRecord:
    """What is left of one image from a layer of the language model on.

    Attributes
    ----------
    layer : int
        The first layer that reads what is left.
    after : int
        Tokens that are left, merged ones among them.
    indices, order : list[int]
        Those of them that are tokens of the image, in raster order and in the order in which they were picked.
    """

    layer: int
    after: int
    indices: list[int]
    order: list[int]


@dataclass(frozen=True)
class ImageRecord:
    """What happened to one image.

    Attributes
    ----------
    call : int
        Which call of the model inside the block, from 0.
    image : int
        Which image of that call, from 0.
    before, after : int
        Image tokens in the prompt, before, and after all that was dropped.
    requested : int or float
        The budget that was asked; a number of tokens above ``before`` left the image whole.
    indices, order : list[int]
        Tokens of the image that were kept to the end, in raster order and in the order in which they were picked.
    encode_ms, select_ms : float
        Wall time of the tower pass and of the selection with its scores, milliseconds, the call's time shared
        equally between its images. Of a kept encoding, `encode_ms` is the time to find it; the first `select_ms` of a
        method that reads text holds the time to read the chat template.
    layers : list[int]
        Tokens that each layer of the language model read.
    drops : list[DropRecord]
        What was dropped inside the language model.
    source : {"tower", "kept encoding", "cache"}
        What the call read the image from: a pass of the vision tower; an encoding that `prune` kept of an earlier call,
        from which was selected anew; the cache of an earlier call, for which the tokens had been selected.
    """

    call: int
    image: int
    before: int
    after: int
    requested: int | float
    indices: list[int]
    order: list[int]
    encode_ms: float
    select_ms: float
    layers: list[int]
    drops: list[DropRecord] = field(default_factory=list)
    source: Literal["tower", "kept encoding", "cache"] = "tower"

    @property
    def average(self) -> float:
        """Mean over the layers of the language model of the tokens that each read."""
        return sum(self.layers) / len(self.layers)


def kept_tokens(selection: Selection, image: int) -> tuple[list[int], list[int]]:
    """Return the kept tokens of an image in raster order and as they were picked."""
    count = int(selection.counts[image])
    return selection.indices[image, :count].tolist(), selection.order[image, :count].tolist()
