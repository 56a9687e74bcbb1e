"""Idefics3 and SmolVLM: images as tiles and a thumbnail, with text of the prompt between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.pooled_patches import PooledPatches
from idsel_core.backbones._shared.prompts import runs
from idsel_core.backbones._shared.qk_capture import CapturedQK
from idsel_core.backbones._shared.tensors import padded_rows


class Idefics3(PooledPatches):
    """``Idefics3ForConditionalGeneration`` and ``SmolVLMForConditionalGeneration``, images and frames of videos.

    This class serves both families, which have the same structure.

    The tokens of an image are those of all its tiles, row by row, and of the thumbnail, which comes last. A budget is
    distributed over them by importance, or kept in each of them with ``budget_scope="tile"``. The markers and newlines
    of the prompt between the tiles are text: they stay even if a tile loses all its tokens.

    The model does not know which tiles belong to one image; the prompt says it. Every tile follows a marker and words
    that name the tile. The last tile of a prompt is a thumbnail, and every tile with the same words before it is one
    too. A thumbnail ends an image. So an image that was not cut, or a frame of a video, is an image of one tile. In a
    prompt without markers every run of placeholders is an image.

    A token is the projection of some patches that pixel shuffle concatenates, and `Encoded.encoder_features` are this
    concatenation.
    """

    image_inputs = ("pixel_values", "pixel_attention_mask")
    beside_images = (
        r"<row_\d+_col_\d+>",
        r"<global-img>",
        r"(?:Youareprovidedthefollowingseriesof[a-z-]+framesfroma[\d:]+\[H:MM:SS\]video\.)?Framefrom\d\d:\d\d:",
    )
    missing_views = {"crops": "the prompt does not say how the tiles of an image lie"}  # noqa: RUF012

    @property
    def language_model(self) -> Any:
        """The decoder that reads the embeddings."""
        return self.core.text_model

    def tower(self, kind: str = "image") -> Any:
        """Return the vision tower."""
        return self.core.vision_model

    @property
    def projector(self) -> Any:
        """The projector, which maps one row for each visual token into the language model."""
        return self.core.connector.modality_projection

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model, with the number and columns of tiles of each image.

        Raises
        ------
        ValueError
            If a run of placeholders is not a whole number of tiles, or `pixel_values` is not five-dimensional.
        """
        arguments, input_ids = super().image_arguments(inputs), inputs["input_ids"]
        rows, starts, ends = runs(self.placeholders(input_ids))
        counts = ends - starts
        if int(counts.sum()) != int(_shown(arguments["pixel_values"]).sum()) * self.tile_tokens:
            return arguments
        if bool((counts % self.tile_tokens).any()):
            raise ValueError(
                f"placeholders of a tile must stand in one run, {self.tile_tokens} for each tile; "
                f"found runs of {counts.tolist()}"
            )
        tiles, columns = [0], [0]
        for row, line in enumerate(input_ids.tolist()):
            own = (rows == row).nonzero()[:, 0]
            found = list(zip(starts[own].tolist(), ends[own].tolist(), strict=True))
            marks = _Markers(line, found)
            for (start, end), count in zip(found, (counts[own] // self.tile_tokens).tolist(), strict=True):
                tiles[-1] += count
                if marks.ends_image(start):
                    tiles, columns = [*tiles, 0], [*columns, 0]
                elif not columns[-1] and marks.ends_row(end):
                    columns[-1] = tiles[-1]
        arguments["tiles"] = tiles[:-1]
        if all(count == 1 or wide for count, wide in zip(tiles[:-1], columns, strict=False)):
            arguments["columns"] = columns[:-1]
        return arguments

    def encode(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower once on all tiles, see `Backbone.encode`.

        Parameters
        ----------
        pixel_values : Tensor
            Tiles of each prompt, (B, tiles, 3, height, width). Tiles of zeros are padding.
        image_inputs
            ``tiles``, the number of tiles of each image (by default one), ``columns``, the number of tiles side by side
            (0 for images of one tile), and ``pixel_attention_mask``, 1 at all pixels of each tile.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If `pixel_values` is not five-dimensional, all tiles are padding, the mask hides part of a tile, or there
            are more or fewer tiles than the images have.
        """
        shown = _shown(pixel_values)
        if not bool(shown.any()):
            raise ValueError("pixel_values are all zero, which is padding: there is no image")
        mask, columns = image_inputs.pop("pixel_attention_mask", None), image_inputs.pop("columns", None)
        if mask is not None and not bool(mask[shown].all()):
            hidden = (~mask[shown].bool().flatten(1).all(1)).nonzero()[:, 0].tolist()
            raise ValueError(f"pixel_attention_mask hides part of tiles {hidden}; tiles must be whole")
        encoded = super().encode(pixel_values[shown], grid, tower_depths, **image_inputs)
        if columns is None:
            return encoded
        lengths = encoded.placeholders
        # (I, N): tile of each token within its image, and (I, 1): tiles side by side.
        number, wide = encoded.views["tiles"](), torch.tensor(columns, device=lengths.device)[:, None]
        place = torch.stack([number // wide.clamp_min(1), number % wide.clamp_min(1)], 2)
        thumbnail = number == (lengths[:, None] // self.tile_tokens - 1)
        crops = padded_rows(place.masked_fill(thumbnail[..., None], -1)[encoded.mask], -1, lengths=lengths)
        return dataclasses.replace(encoded, views={**encoded.views, "crops": lambda: crops})

    def members(self) -> Tensor:
        """Return the patches of a tile that each token is made of, int64 (N, patches)."""
        numbers = torch.arange(self.side**2, dtype=torch.float64).view(1, -1, 1)
        shuffled: Tensor = self.core.connector.pixel_shuffle(numbers, self.model.config.scale_factor)
        return shuffled[0].long()

    def _read_tower(
        self, pixels: Tensor, tower_depths: Iterable[float], options: dict[str, Any], kind: str = "image"
    ) -> tuple[Any, Tensor, dict[str, CapturedQK]]:
        # The model takes tiles (prompts, tiles, ...).
        return super()._read_tower(pixels[None], tower_depths, options, kind)


class _Markers:
    """The text between the tiles of one prompt.

    Parameters
    ----------
    line : list[int]
        Token ids of the prompt.
    found : list[tuple[int, int]]
        First column and end column (exclusive) of each run of placeholders.
    """

    def __init__(self, line: list[int], found: list[tuple[int, int]]) -> None:
        self.line = line
        self.marker: int | None = None
        self.words: list[int] = []
        if found and found[-1][1] < len(line):
            (start, end), before = found[-1], found[-2][1] if len(found) > 1 else 0
            # A thumbnail stands between two markers; the words before it begin with the first of them.
            text = line[before:start]
            if line[end] in text:
                self.marker = line[end]
                self.words = text[len(text) - 1 - text[::-1].index(self.marker) :]

    def ends_image(self, start: int) -> bool:
        """Return whether the run that begins at column `start` is a thumbnail."""
        return self.line[max(0, start - len(self.words)) : start] == self.words

    def ends_row(self, end: int) -> bool:
        """Return whether the run that ends at column `end` is the last tile of its row."""
        return self.line[end] != self.marker


def _shown(pixel_values: Tensor) -> Tensor:
    """Return a mask of the tiles that are no padding, bool (B, tiles)."""
    if pixel_values.ndim != 5:
        raise ValueError(f"pixel_values must be (prompts, tiles, 3, height, width), not {tuple(pixel_values.shape)}")
    return pixel_values.flatten(2).any(2)
