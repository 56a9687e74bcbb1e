"""LLaVA-NeXT: images of any resolution as a thumbnail and tiles, with a newline after each row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.patches import Patches, bilinear_corners
from idsel_core.backbones._shared.tensors import padded_rows, pixel_key
from idsel_core.backbones._shared.tower_views import attention_views
from idsel_core.backbones.llava import Llava
from idsel_core.visual_tokens import Unavailable

if TYPE_CHECKING:
    from idsel_core.methods import Method


class LlavaNext(Llava):
    """``LlavaNextForConditionalGeneration``, whose tower reads each tile separately.

    Tokens come in the order in which the language model reads them: the thumbnail, then the tiles put together row by
    row, without the padding of the image. A newline ends each of these rows. A newline is a token: it counts in
    budgets, belongs to the tile before it, and can be dropped. It shows nothing of the image: it lies off the grid, has
    tower attention 0, and its `Encoded.encoder_features` are zeros. Grid and [CLS] attention are counted within each
    tile; ``cls_features`` are those of the thumbnail.
    """

    no_resize_reason = "this model cuts images into tiles of one size"

    def target_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return None, and refuse methods that act on pixels."""
        return Backbone.target_grid(self, method, **image_inputs)

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
            Thumbnail and tiles of each image, (I, tiles, 3, height, width), or all tiles concatenated.
        image_inputs
            ``image_sizes``, and ``vision_feature_layer`` and ``vision_feature_select_strategy`` of the model.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If ``image_sizes`` is missing, or [CLS] would enter the projector.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.no_resize_reason)
        sizes = image_inputs.get("image_sizes")
        if sizes is None:
            raise ValueError("images of any resolution need image_sizes")
        options = {name: value for name, value in image_inputs.items() if value is not None}
        output, entered, seen = self._read_tower(pixel_values, tower_depths, options)
        if entered.shape[1] != self._side**2:
            raise ValueError(
                f"{self._side**2} patches of each tile must enter the projector, not {entered.shape[1]}: "
                f'with a [CLS] token in the tower, vision_feature_select_strategy must be "default"'
            )
        tiles = self._tiles(sizes, options)
        first = [sum(tiles[:image]) for image in range(len(tiles))]
        places = [self._places(*given, options) for given in zip(tiles, first, sizes, strict=True)]
        patches, cells, numbers = zip(*places, strict=True)
        source = Patches.concatenate(patches, entered.device)  # tokens of all images
        lengths = torch.tensor([len(rows) for rows in cells], device=entered.device)
        padded = functools.partial(padded_rows, lengths=lengths)
        placed, crops = (padded(torch.cat(rows).to(entered.device), -1) for rows in (cells, numbers))

        def view(of: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: padded(source.mean(of().flatten(0, 1)))

        length = output.last_hidden_state.shape[1]
        has_cls = length > self._side**2
        split = torch.split(pixel_values, tiles) if pixel_values.ndim == 4 else pixel_values
        views: dict[str, Callable[[], Tensor]] = {
            "image_key": lambda: torch.cat([pixel_key(image[None]) for image in split]),
            "crops": lambda: crops,
        }
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, length - self._side**2, has_cls)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
        if has_cls:
            chosen = self._chosen(options.get("vision_feature_layer"))
            views["cls_features"] = lambda: self._as_patches(
                torch.cat([output.hidden_states[state][first, 0] for state in chosen], -1)
            )
        return Encoded(
            encoder_features=padded(self._entering(source, entered.flatten(0, 1))),
            mask=padded(torch.ones(len(source.members), dtype=torch.bool, device=entered.device)),
            grid=placed,
            placeholders=lengths,
            views=views,
            features=padded(torch.cat(list(output.pooler_output))),
        )

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D); rows of zeros become newlines."""
        projected = super().project(encoder_features)
        newline = ~encoder_features.any(2, keepdim=True)
        return torch.where(newline.to(projected.device), self.core.image_newline.to(projected), projected)

    @property
    def _tile(self) -> int:
        return int(self.model.config.vision_config.image_size)

    @property
    def _side(self) -> int:
        return self._tile // self._patch

    def _entering(self, patches: Patches, entered: Tensor) -> Tensor:
        """Return the projector's input for each token from that of each patch."""
        return patches.mean(entered)

    def _as_patches(self, states: Tensor) -> Tensor:
        """Return hidden states of the tower, (I, Dv), in the form of encoder features."""
        return states

    def _tiles(self, sizes: Tensor, options: Mapping[str, Any]) -> list[int]:
        """Return the number of tiles of each image, thumbnail included."""
        pinpoints = self.model.config.image_grid_pinpoints
        return [image_size_to_num_patches(size, pinpoints, self._tile) for size in torch.as_tensor(sizes).tolist()]

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Return values of the tiles of one image, (tiles, patches, D), as the model packs them, (N, D)."""
        strategy = options.get("vision_feature_select_strategy", self.model.config.vision_feature_select_strategy)
        packed: tuple[list[Tensor], Tensor] = self.core.pack_image_features(
            [tiles], [size], vision_feature_select_strategy=strategy, image_newline=newline
        )
        return packed[0][0]

    def _places(
        self, tiles: int, first: int, size: Tensor, options: Mapping[str, Any]
    ) -> tuple[Patches, Tensor, Tensor]:
        """Return the patches of the tokens of one image, and their cells and crops, (N, 2) each, -1 without one.

        The tiles of the image are numbered from `first`. A newline belongs to the crop before it.
        """
        side = self._side
        columns = self._layout(size)[1]
        # (tiles, 1) and (1, patches); tile -1 is the thumbnail.
        tile, cell = torch.arange(-1, tiles - 1)[:, None], torch.arange(side**2)[None]
        # The model packs coordinates here instead of features. Where it interpolates, they lie between patches.
        row = tile.clamp_min(0) // columns * side + cell // side
        column = tile.clamp_min(0) % columns * side + cell % side
        # (tiles, patches, 3): whether the patch is of a tile, and its row and column over all tiles.
        known = torch.stack([(tile >= 0).expand_as(row), row, column], -1).double()
        cropped, row, column = self._pack(known, size, known.new_full((3,), -1), options).unbind(1)
        newline = cropped < 0
        rows, places, weights = bilinear_corners(row.clamp_min(0), column.clamp_min(0))
        # (N, 4): tile within the image (0 is the thumbnail), then index of the patch over all tiles.
        number = rows // side * columns + places // side + (cropped > 0)[:, None]
        members = (first + number) * side**2 + rows % side * side + places % side
        # (N, 2): nearest patch, the first of two at the same distance; rounded, so that distances are the same.
        nearest = (torch.stack([row, column], 1) - 0.5).round(decimals=9).ceil().long()
        crop = (nearest // side).masked_fill((cropped <= 0)[:, None], -1)
        # A newline takes the crop of the last token that is no newline.
        crop = crop[torch.arange(len(crop)).masked_fill(newline, 0).cummax(0).values]
        patches = Patches(members, weights.masked_fill(newline[:, None], 0))
        return patches, (nearest % side).masked_fill(newline[:, None], -1), crop

    def _layout(self, size: Tensor) -> tuple[int, int]:
        """Return the rows and columns of tiles of an image."""
        shape_of: Callable[..., tuple[int, int]] = get_anyres_image_grid_shape
        return shape_of(size, self.model.config.image_grid_pinpoints, self._tile)
