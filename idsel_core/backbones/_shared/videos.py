"""Base of families with images and videos whose tower reads each frame as an image."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.patches import Patches
from idsel_core.backbones._shared.tensors import pixel_key
from idsel_core.backbones._shared.tower_views import attention_views
from idsel_core.backbones.llava import Llava

if TYPE_CHECKING:
    from idsel_core.methods import Method


class LlavaWithVideos(Llava):
    """A LLaVA with videos too; all frames of a video are one row, and videos follow all images.

    Grid and [CLS] attention are counted within each frame. A token that pools several patches has the mean of their
    attention and keys.
    """

    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos")
    missing_views = {  # noqa: RUF012
        "cls_features": "this vision tower has no [CLS] token, or a video was given, which has one for each frame"
    }

    @property
    def video_token_id(self) -> int:
        """Token id of the video placeholder."""
        return int(self.model.config.video_token_id)

    def target_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return the grid to resize images to; refuse methods that act on pixels if there are videos."""
        if image_inputs.get("pixel_values_videos") is not None:
            return Backbone.target_grid(self, method, **image_inputs)
        return super().target_grid(method, **image_inputs)

    def encode(
        self,
        pixel_values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower, once for images and once for videos, see `Backbone.encode`.

        Parameters
        ----------
        grid : tuple[int, int], optional
            Grid to resize images to, if the family resizes images.
        image_inputs
            ``pixel_values_videos``, (V, frames, 3, height, width), and the other `image_inputs`.

        Raises
        ------
        Unavailable
            If `grid` is given and the family does not resize images.
        ValueError
            If there are no pixels, or the videos have another shape.
        """
        tower_depths = tuple(tower_depths)
        given = {name: value for name, value in image_inputs.items() if value is not None}
        pixels = given.pop("pixel_values_videos", None)
        images = videos = None
        if pixel_values is not None:
            images = super().encode(pixel_values, grid, tower_depths, **given)
        if pixels is not None:
            known = inspect.signature(self.core.get_video_features).parameters
            own = {name: value for name, value in given.items() if name in known}
            videos = self._encode_videos(pixels, tower_depths, own)
        if images is not None and videos is not None:
            return _concatenate(images, videos)
        found = videos if images is None else images
        if found is None:
            raise ValueError("pixel_values or pixel_values_videos must be given")
        return found

    @abstractmethod
    def _frame(self, patches: int) -> tuple[Patches, Tensor]:
        """Return the patches of the tokens of a frame, and their cells (T, 2), -1 off the grid.

        Parameters
        ----------
        patches : int
            Number of patches of a frame, [CLS] included if it enters the projector.
        """

    def _video_features(self, patches: Patches, entered: Tensor) -> Tensor:
        """Return the encoder features of the tokens of all frames, concatenated, from the input of the projector."""
        return entered

    def _encode_videos(self, pixels: Tensor, tower_depths: Iterable[float], options: dict[str, Any]) -> Encoded:
        if pixels.ndim != 5:
            raise ValueError(
                f"pixel_values_videos must be (videos, frames, 3, height, width), not {tuple(pixels.shape)}"
            )
        count, frames = pixels.shape[:2]
        output, entered, seen = self._read_tower(pixels, tower_depths, options, "video")
        features = output.pooler_output.reshape(count, -1, output.pooler_output.shape[-1])
        length, side = output.last_hidden_state.shape[1], self.model.config.vision_config.image_size // self._patch
        before = length - side**2 if self._crops_cls(options) else 0
        of_frame, cells = self._frame(length - before)
        patches = Patches.concatenate([of_frame], entered.device).repeat_frames(count * frames, length - before)
        tail = features.shape[1] - frames * len(cells)  # number of newlines at the end of a video

        def of_videos(values: Tensor, fill: float = 0) -> Tensor:
            """Return values of the tokens of all frames as one row a video, with `fill` at the newlines at its end."""
            rows = values.reshape(count, -1, *values.shape[1:])
            return nn.functional.pad(rows, (*[0] * 2 * (rows.ndim - 2), 0, tail), value=fill)

        def view(of: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return lambda: of_videos(patches.mean(of().flatten(0, 1)))

        # (V * frames * T,): frame of each token.
        numbers = torch.arange(frames, device=entered.device).repeat_interleave(len(cells)).repeat(count)
        frame_of = of_videos(numbers, frames - 1)
        views: dict[str, Callable[[], Tensor]] = {"image_key": lambda: pixel_key(pixels), "frames": lambda: frame_of}
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, before, length > side**2)
            views |= {f"{name}{suffix}": view(of) for name, of in of_layer.items()}
        mask = torch.ones_like(frame_of, dtype=torch.bool)
        return Encoded(
            encoder_features=of_videos(self._video_features(patches, entered.flatten(0, 1))),
            mask=mask,
            grid=of_videos(cells.to(entered.device).repeat(count * frames, 1), -1),
            placeholders=mask.sum(1),
            views=views,
            features=features,
            video=torch.ones(count, dtype=torch.bool, device=entered.device),
        )

    def _crops_cls(self, options: dict[str, Any]) -> bool:
        """Return whether the [CLS] of a frame is removed before the projector."""
        strategy = options.get("vision_feature_select_strategy", self.model.config.vision_feature_select_strategy)
        return bool(strategy == "default")


def _concatenate(images: Encoded, videos: Encoded) -> Encoded:
    """Concatenate images and videos to one encoding, with the views that both have, frames and crops."""
    width = max(images.mask.shape[1], videos.mask.shape[1])

    def widened(values: Tensor, fill: float) -> Tensor:
        missing = width - values.shape[1]
        return nn.functional.pad(values, (*[0] * 2 * (values.ndim - 2), 0, missing), value=fill)

    def both(first: Tensor, second: Tensor, fill: float = 0) -> Tensor:
        if first.ndim == 1:
            return torch.cat([first, second])
        return torch.cat([widened(first, fill), widened(second, fill)])

    def view(name: str) -> Callable[[], Tensor]:
        return lambda: both(images.views[name](), videos.views[name]())

    def nowhere(rows: Tensor) -> Tensor:
        return torch.full_like(rows, -1)

    views = {name: view(name) for name in images.views if name in videos.views}
    views["frames"] = lambda: both(nowhere(images.mask.long()), videos.views["frames"](), -1)
    if "crops" in images.views:
        views["crops"] = lambda: both(images.views["crops"](), nowhere(videos.grid), -1)
    features = None if images.features is None or videos.features is None else both(images.features, videos.features)
    return Encoded(
        encoder_features=both(images.encoder_features, videos.encoder_features),
        mask=both(images.mask, videos.mask),
        grid=both(images.grid, videos.grid, -1),
        placeholders=both(images.placeholders, videos.placeholders),
        views=views,
        features=features,
        video=torch.arange(len(images) + len(videos), device=images.mask.device) >= len(images),
    )
