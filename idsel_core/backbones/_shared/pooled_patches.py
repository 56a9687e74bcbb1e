"""Base of families whose visual tokens are each made of several patches of a tile."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.tensors import padded_rows, pixel_key
from idsel_core.backbones._shared.tower_views import attention_views
from idsel_core.backbones.llava import Llava
from idsel_core.visual_tokens import Unavailable

if TYPE_CHECKING:
    from idsel_core.methods import Method


class PooledPatches(Llava):
    """A plain tower that reads each tile separately, and a projector that makes a token of neighbouring patches.

    `Encoded.encoder_features` are the projector's input for each token. Attention and keys of a token are the means
    over its patches. Grid and attention are counted within each tile.
    """

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    no_resize_reason = "this model cuts images into tiles of one size"
    has_cls: ClassVar[bool] = False
    """Whether the tower has a [CLS] token before the patches."""

    @abstractmethod
    def members(self) -> Tensor:
        """Return the patches of a tile that each token is made of, int64 (N, patches)."""

    @property
    def tile_tokens(self) -> int:
        """Number of tokens of a tile."""
        return len(self.members())

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
            Tiles of all images, (tiles, 3, height, width).
        image_inputs
            ``tiles``, the number of tiles of each image (by default one), and the other `image_inputs`.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If `pixel_values` has more or fewer tiles than the images.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.no_resize_reason)
        tiles = image_inputs.pop("tiles", None) or [1] * len(pixel_values)
        if sum(tiles) != len(pixel_values):
            raise ValueError(f"the images have {tiles} tiles, but pixel_values has {len(pixel_values)}")
        options = {name: value for name, value in image_inputs.items() if value is not None}
        output, entered, seen = self._read_tower(pixel_values, tower_depths, options)
        members = self.members().to(entered.device)
        lengths = torch.tensor(tiles, device=members.device) * len(members)
        padded = functools.partial(padded_rows, lengths=lengths)

        def view(of: Callable[[], Tensor]) -> Callable[[], Tensor]:
            # (tiles, patches, ...) to (tiles, N, members, ...), then the mean of each token, as one row an image.
            return lambda: padded(of()[:, members].mean(2).flatten(0, 1))

        # (sum of tokens,): tile of each token within its image.
        numbers = torch.cat([torch.arange(count) for count in tiles]).repeat_interleave(len(members))
        views: dict[str, Callable[[], Tensor]] = {
            "image_key": lambda: torch.cat([pixel_key(part[None]) for part in torch.split(pixel_values, tiles)]),
            "tiles": lambda: padded(numbers.to(members.device)),
        }
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, int(self.has_cls), self.has_cls)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
        # The cell of a token is that of its first patch, on a grid that is coarser by `factor`.
        first, factor = members.amin(1), round(members.shape[1] ** 0.5)
        places = torch.stack([first // self.side // factor, first % self.side // factor], 1).repeat(sum(tiles), 1)
        return Encoded(
            encoder_features=padded(entered.flatten(0, 1)),
            mask=padded(torch.ones(len(places), dtype=torch.bool, device=members.device)),
            grid=padded(places, -1),
            placeholders=lengths,
            views=views,
            features=padded(torch.cat(list(output.pooler_output))),
        )

    @property
    def side(self) -> int:
        """Number of patches along each side of a tile."""
        vision = self.model.config.vision_config
        size, patch = (
            given if isinstance(given, int) else given[0] for given in (vision.image_size, vision.patch_size)
        )
        return int(size // patch)
