"""InternVL: an image as tiles and a thumbnail, patches joined into tokens by pixel shuffle."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from idsel_core.backbones.attention import attention_views
from idsel_core.backbones.base import Backbone, Encoded, padded_rows, pixel_key
from idsel_core.backbones.llava import Llava
from idsel_core.methods import Method
from idsel_core.tokens import Unavailable


class InternVL(Llava):
    """``InternVLForConditionalGeneration``, images and the frames of videos.

    The model is not told which tiles are of one image: those whose placeholders stand in one run are, so a frame of a
    video is an image. The thumbnail comes last. A token is what the projector makes of some patches that pixel shuffle
    joined: its `Encoded.encoder_features` are these patches joined, and its attention and keys their means. The grid
    and the attention of [CLS] are of each tile by itself.
    """

    image_inputs = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
    joined_kinds = ("image",)
    why_as_they_are = "images are cut into tiles of one size"
    why_no_view = {  # noqa: RUF012
        "cls_features": "the projector reads joined patches, and [CLS] is one token",
        "crops": "the model is not told how the tiles of an image lie",
    }

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return len(self._members())

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model, with the tiles of each image.

        Raises
        ------
        ValueError
            If a run of placeholders is not of whole tiles.
        """
        marks = self.placeholders(inputs["input_ids"])
        marks = nn.functional.pad(marks, (1, 1)).flatten().long()
        edges = marks.diff()
        runs = (edges < 0).nonzero()[:, 0] - (edges > 0).nonzero()[:, 0]
        arguments = super().image_arguments(inputs)
        if int(runs.sum()) != len(arguments["pixel_values"]) * self.tile_tokens:
            return arguments
        if bool((runs % self.tile_tokens).any()):
            raise ValueError(
                f"placeholders of an image must stand in one run, {self.tile_tokens} for each tile; "
                f"found runs of {runs.tolist()}"
            )
        return {**arguments, "tiles": (runs // self.tile_tokens).tolist()}

    def wanted_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return None; refuse methods that act on pixels."""
        return Backbone.wanted_grid(self, method, **image_inputs)

    def encode(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int] | None = None,
        depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower once.

        Parameters
        ----------
        pixel_values : Tensor
            Tiles of all images, (tiles, 3, height, width).
        grid : tuple[int, int], optional
            Must be None.
        depths : Iterable[float]
            Further depths of the tower, 0 to 1, at which views are wanted.
        image_inputs
            ``tiles``, how many each image has (one by default), and ``vision_feature_layer``,
            ``vision_feature_select_strategy``: as of the model.

        Raises
        ------
        Unavailable
            If a `grid` is asked for.
        ValueError
            If there are more or fewer tiles than images have.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.why_as_they_are)
        tiles = image_inputs.pop("tiles", None) or [1] * len(pixel_values)
        if sum(tiles) != len(pixel_values):
            raise ValueError(f"images have {tiles} tiles, but there are pixels of {len(pixel_values)}")
        options = {name: value for name, value in image_inputs.items() if value is not None}
        output, entered, seen = self._read_tower(pixel_values, depths, options)
        members = self._members().to(entered.device)
        lengths = torch.tensor(tiles, device=members.device) * len(members)
        padded = functools.partial(padded_rows, lengths=lengths)

        def view(of: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: padded(of()[:, members].mean(2).flatten(0, 1))

        numbers = torch.cat([torch.arange(count) for count in tiles]).repeat_interleave(len(members))
        views: dict[str, Callable[[], Tensor]] = {
            "image_key": lambda: torch.cat([pixel_key(part[None]) for part in torch.split(pixel_values, tiles)]),
            "tiles": lambda: padded(numbers.to(members.device)),
        }
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, 1, True)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
        first, factor = members.amin(1), round(members.shape[1] ** 0.5)
        places = torch.stack([first // self._side // factor, first % self._side // factor], 1).repeat(sum(tiles), 1)
        return Encoded(
            encoder_features=padded(entered.flatten(0, 1)),
            mask=padded(torch.ones(len(places), dtype=torch.bool, device=members.device)),
            grid=padded(places, -1),
            placeholders=lengths,
            views=views,
            features=padded(output.pooler_output.flatten(0, 1)),
        )

    @property
    def _side(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size[0] // vision.patch_size[0])

    def _members(self) -> Tensor:
        """Return which patches of a tile each token is made of, int64 (N, patches)."""
        numbers = torch.arange(self._side**2, dtype=torch.float64).view(1, self._side, self._side, 1)
        shuffled: Tensor = self.core.pixel_shuffle(numbers, scale_factor=self.model.config.downsample_ratio)
        return shuffled.flatten(0, 2).long()
