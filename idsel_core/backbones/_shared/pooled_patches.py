"""Families whose visual tokens are each made of several patches of a tile."""

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
    """A plain tower that reads each tile of an image by itself, and a projector of patches that lie side by side.

    `Encoded.encoder_features` are what the projector reads of a token, its attention and keys the means of those of its
    patches. The grid and the attention are of each tile by itself.
    """

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    why_one_image_size = "images are cut into tiles of one size"
    has_cls: ClassVar[bool] = False
    """Whether a [CLS] token comes before the patches."""

    @abstractmethod
    def members(self) -> Tensor:
        """Return which patches of a tile each token is made of, int64 (N, patches)."""

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile."""
        return len(self.members())

    def target_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return None; refuse methods that act on pixels."""
        return Backbone.target_grid(self, method, **image_inputs)

    def encode(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower once.

        Parameters
        ----------
        pixel_values : Tensor
            Tiles of all images, (tiles, 3, height, width).
        grid : tuple[int, int], optional
            Must be None.
        tower_depths : Iterable[float]
            Further depths of the tower, 0 to 1, at which views are wanted.
        image_inputs
            ``tiles``, how many each image has (one by default), and others of `image_inputs`.

        Raises
        ------
        Unavailable
            If a `grid` is asked for.
        ValueError
            If there are more or fewer tiles than images have.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.why_one_image_size)
        tiles = image_inputs.pop("tiles", None) or [1] * len(pixel_values)
        if sum(tiles) != len(pixel_values):
            raise ValueError(f"images have {tiles} tiles, but there are pixels of {len(pixel_values)}")
        options = {name: value for name, value in image_inputs.items() if value is not None}
        output, entered, seen = self._read_tower(pixel_values, tower_depths, options)
        members = self.members().to(entered.device)
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
            of_layer = attention_views(layer, int(self.has_cls), self.has_cls)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
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
        """Patches along each side of a tile."""
        vision = self.model.config.vision_config
        size, patch = (
            given if isinstance(given, int) else given[0] for given in (vision.image_size, vision.patch_size)
        )
        return int(size // patch)
