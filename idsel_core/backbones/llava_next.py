"""LLaVA-NeXT: an image of any resolution as a thumbnail and tiles, with a newline at the end of each row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from idsel_core.backbones.attention import attention_views
from idsel_core.backbones.base import Backbone, Encoded, padded_rows, pixel_key
from idsel_core.backbones.llava import Llava
from idsel_core.methods import Method
from idsel_core.tokens import Unavailable


class LlavaNext(Llava):
    """``LlavaNextForConditionalGeneration``, whose tower reads each tile by itself.

    The tokens of an image are those that the language model reads, in its order: the thumbnail, then the tiles put
    together row by row, without the padding of the image. A newline ends each of these rows. It is a token like any
    other: it counts in budgets, in the tile before it, and may go. It shows nothing: it lies off the grid, gets no
    attention of the tower, and its `Encoded.encoder_features` are zeros. The grid and the attention of [CLS] are of
    each tile by itself; ``cls_features`` are those of the thumbnail.
    """

    image_inputs = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    why_as_they_are = "images are cut into tiles of one size"

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
            Thumbnail and tiles, (I, tiles, 3, height, width), or all of them one behind the other.
        grid : tuple[int, int], optional
            Must be None.
        depths : Iterable[float]
            Further depths of the tower, 0 to 1, at which views are wanted.
        image_inputs
            ``image_sizes``, and ``vision_feature_layer``, ``vision_feature_select_strategy``: as of the model.

        Raises
        ------
        Unavailable
            If a `grid` is asked for.
        ValueError
            If ``image_sizes`` is missing.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.why_as_they_are)
        sizes = image_inputs.get("image_sizes")
        if sizes is None:
            raise ValueError("images of any resolution need image_sizes")
        options = {name: value for name, value in image_inputs.items() if value is not None}
        output, entered, seen = self._read_tower(pixel_values, depths, options)
        tiles = [
            image_size_to_num_patches(size, self.model.config.image_grid_pinpoints, self._tile)
            for size in torch.as_tensor(sizes).tolist()
        ]
        count = entered.shape[1]
        sources = self._sources(tiles, count, sizes, options.get("vision_feature_select_strategy"))
        source = torch.cat(sources).to(entered.device)
        lengths = torch.tensor([len(rows) for rows in sources], device=source.device)
        padded = functools.partial(padded_rows, lengths=lengths)
        newline = source < 0

        def packed(values: Tensor) -> Tensor:
            """Bring values (tiles, patches, ...) to the order of the language model, 0 at newlines."""
            rows = values.flatten(0, 1)[source.clamp_min(0)]
            return padded(rows.masked_fill(newline.view(-1, *[1] * (rows.ndim - 1)), 0))

        def view(of: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: packed(of())

        cropped = output.last_hidden_state.shape[1] - count
        has_cls = output.last_hidden_state.shape[1] > (self._tile // self._patch) ** 2
        split = torch.split(pixel_values, tiles) if pixel_values.ndim == 4 else pixel_values
        crops = padded(torch.cat([self._crops(*given) for given in zip(sources, sizes, strict=True)]).to(source), -1)
        views: dict[str, Callable[[], Tensor]] = {
            "image_key": lambda: torch.cat([pixel_key(image[None]) for image in split]),
            "crops": lambda: crops,
        }
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, cropped, has_cls)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
        if has_cls:
            chosen = self._chosen(options.get("vision_feature_layer"))
            thumbnails = torch.tensor([0, *tiles[:-1]], device=source.device).cumsum(0)
            views["cls_features"] = lambda: torch.cat(
                [output.hidden_states[state][thumbnails, 0] for state in chosen], -1
            )
        side = self._tile // self._patch
        places = torch.stack([source % count // side, source % count % side], 1).masked_fill(newline[:, None], -1)
        return Encoded(
            encoder_features=packed(entered),
            mask=padded(torch.ones_like(newline)),
            grid=padded(places, -1),
            placeholders=lengths,
            views=views,
            features=padded(torch.cat(list(output.pooler_output))),
        )

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D); zeros give a newline."""
        projected = super().project(encoder_features)
        newline = ~encoder_features.any(2, keepdim=True)
        return torch.where(newline.to(projected.device), self.core.image_newline.to(projected), projected)

    @property
    def _tile(self) -> int:
        return int(self.model.config.vision_config.image_size)

    def _sources(self, tiles: list[int], count: int, sizes: Tensor, strategy: str | None) -> list[Tensor]:
        """Return which of all tiles' patches each token of each image is, int64 (N,); -1 for newlines."""
        numbers = torch.arange(sum(tiles) * count, dtype=torch.float64).view(-1, count, 1)
        packed, _ = self.core.pack_image_features(
            torch.split(numbers, tiles),
            sizes,
            vision_feature_select_strategy=strategy or self.model.config.vision_feature_select_strategy,
            image_newline=torch.full((1,), -1.0, dtype=torch.float64),
        )
        return [rows[:, 0].long() for rows in packed]

    def _crops(self, source: Tensor, size: Tensor) -> Tensor:
        """Return row and column of each token's tile, (N, 2), -1 in the thumbnail; newlines are in the tile before."""
        shape_of: Callable[..., tuple[int, int]] = get_anyres_image_grid_shape
        columns = shape_of(size, self.model.config.image_grid_pinpoints, self._tile)[1]
        place = torch.arange(len(source))
        shown = source[place.masked_fill(source < 0, 0).cummax(0).values]
        tile = (shown - source[0]).div((self._tile // self._patch) ** 2, rounding_mode="floor") - 1
        return torch.stack([tile.div(columns, rounding_mode="floor"), tile % columns], 1).masked_fill(
            (tile < 0)[:, None], -1
        )
