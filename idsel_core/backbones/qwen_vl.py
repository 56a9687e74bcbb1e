"""Qwen2-VL and Qwen2.5-VL: images and videos of any size, merged patches, positions of three axes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.prompts import locate_images, real_columns
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import as_weights, padded_rows, pixel_key
from idsel_core.backbones._shared.tower_views import layer_at
from idsel_core.scores import attention_rows
from idsel_core.visual_tokens import Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection


@dataclass(frozen=True, eq=False)
class Pass:
    """The result of one tower pass over several images or several videos, which are concatenated.

    Parameters
    ----------
    pixels : Tensor
        Patches as the processor gives them, (P, values).
    sizes : Tensor
        Frames, rows and columns of patches of each image, int64 (I, 3).
    video : bool
        Whether these are videos.
    order : Tensor
        Index of each token in the order of the tower, int64 (T,).
    entered : Tensor
        Input of the merger, (P, Dv), in the order of the tower.
    output : Any
        Output of the model's own feature function.
    seen : Mapping[int, CapturedQK]
        Captured attention layers.
    """

    pixels: Tensor
    sizes: Tensor
    video: bool
    order: Tensor
    entered: Tensor
    output: Any
    seen: Mapping[int, CapturedQK]

    def merged(self, patches: Tensor) -> Tensor:
        """Return the mean over the patches of each token, (P, ...) in the order of the tower to (T, ...)."""
        return patches.reshape(len(self.order), -1, *patches.shape[1:]).mean(1)[self.order]

    def received(self, layer: int) -> Tensor:
        """Return the mean attention that each token receives within its frame, (T,)."""
        seen = self.seen[layer]
        return self.merged(torch.cat([attention_rows.received(*piece, seen.scale)[0] for piece in seen.pieces]))

    def keys(self, layer: int) -> Tensor:
        """Return the keys of a layer, mean over the patches of each token, (T, heads, d)."""
        return self.merged(torch.cat([key[0].transpose(0, 1) for _, key in self.seen[layer].pieces]))


class Qwen2VL(Backbone):
    """``Qwen2VLForConditionalGeneration``, images and videos.

    The merger makes a token of neighbouring patches, and `Encoded.encoder_features` are these patches, concatenated,
    before the norm of the merger. The tower has no [CLS]; saliency is the mean attention that the patches of a token
    receive within their frame in the last layer that attends to whole frames. Tokens keep their positions of three
    axes, and decoding continues at the positions of the full prompt.
    """

    image_inputs = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    pixel_inputs = ("pixel_values", "pixel_values_videos")
    position_axes = 3
    no_resize_reason = "the processor decides the number of patches; resize the image before it"

    @property
    def video_token_id(self) -> int:
        """Token id of the video placeholder."""
        return int(self.model.config.video_token_id)

    @property
    def merge(self) -> int:
        """Number of patches of a token along each side."""
        return int(self.core.visual.spatial_merge_size)

    @property
    def whole_layers(self) -> list[int]:
        """Tower layers that attend to whole frames."""
        return list(range(int(self.core.visual.config.depth)))

    def encode(
        self,
        pixel_values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower, once for images and once for videos, which follow all images; see `Backbone.encode`.

        Parameters
        ----------
        pixel_values : Tensor, optional
            Patches of all images, as the processor gives them.
        tower_depths : Iterable[float]
            Of the layers that attend to whole frames, the nearest to each depth is taken.
        image_inputs
            ``image_grid_thw``, ``pixel_values_videos``, ``video_grid_thw``.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If there are no pixels, or their grid is missing.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.no_resize_reason)
        whole, layers = self.whole_layers, {}
        for depth in tower_depths:
            wanted = layer_at(depth, int(self.core.visual.config.depth))
            layers[f"@{depth:g}"] = min(whole, key=lambda layer: abs(layer - wanted))
        layers[""] = whole[-1]
        given = (
            ("image", pixel_values, image_inputs.get("image_grid_thw")),
            ("video", image_inputs.get("pixel_values_videos"), image_inputs.get("video_grid_thw")),
        )
        passes = []
        for kind, pixels, sizes in given:
            if pixels is not None:
                if sizes is None:
                    raise ValueError(f"{kind} patches need {kind}_grid_thw")
                passes.append(self._run(kind, pixels, sizes, sorted(set(layers.values()))))
        if not passes:
            raise ValueError("pixel_values or pixel_values_videos must be given")
        return self._concatenate(passes, layers)

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the merger, (I, N, patches * Dv) to (I, N, D)."""
        merger = self.core.visual.merger
        rows = as_weights(encoder_features, merger)
        projected: Tensor = merger(rows.reshape(-1, rows.shape[2] // self.merge**2))
        return projected.view(*rows.shape[:2], -1)

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return the position ids that ``generate``, or ``forward``, gives to the full prompts.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Whether they are those of ``generate``, (4, B, L) for text and three axes, or of ``forward``, (3, B, L).
        """
        input_ids: Tensor = inputs["input_ids"]
        self._check_placeholders(inputs)
        if generating:
            real = real_columns(input_ids, inputs.get("attention_mask"))
            return super().full_positions({**inputs, "attention_mask": real.long()})
        known = inspect.signature(self.core.compute_3d_position_ids).parameters
        own = {"inputs_embeds": None, "past_key_values": None, "cache": None}
        positions = self.core.compute_3d_position_ids(**{name: own.get(name, inputs.get(name)) for name in known})
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        return positions

    def shorten(
        self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection, positions: str | None = None
    ) -> dict[str, Any]:
        """Remove the tokens that were not selected from a call of the model, see `Backbone.shorten`.

        The ``rope_deltas`` of the model are set so that decoding continues at the positions of the full prompts.

        Raises
        ------
        ValueError
            As for `Backbone.shorten`, or if ``generate`` would have to continue from a removed token.
        """
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "position_ids" not in inputs:
            inputs["position_ids"] = self.full_positions(inputs)
        short = super().shorten(inputs, tokens, selection, positions)
        full, real = inputs["position_ids"], real_columns(short["input_ids"], short.get("attention_mask"))
        if full.ndim == 3:
            if len(full) > self.position_axes:
                text = (real.cumsum(1) - 1).masked_fill(~real, 0)
                axes = short["position_ids"][1:]
                moved = (axes[..., -1] != full[1:, :, -1]).any(0) & real[:, -1]
                if bool(moved.any()):
                    raise ValueError(
                        f"prompt {int(moved.int().argmax())} ends in an image whose last token was not selected, so "
                        f"generate() has no position to continue from: let the prompt end in text"
                    )
                short["position_ids"] = torch.cat([text[None], axes])
            ends = full[-self.position_axes :].amax((0, 2)) + 1
            self.core.rope_deltas = (ends - real.sum(1))[:, None]
        return short

    def next_positions(self, short: Mapping[str, Any], generating: bool) -> Tensor:
        """Return the position, on any axis, of a token that would follow each column, see `Backbone.next_positions`."""
        positions = short.get("position_ids")
        if positions is None or positions.ndim == 2:
            return super().next_positions(short, generating)
        ends = super().next_positions({**short, "position_ids": positions[-self.position_axes :].amax(0)}, generating)
        real = real_columns(short["input_ids"], short.get("attention_mask"))
        # Behind an image whose last tokens were not selected, the full prompt goes on.
        return torch.cat([ends[:, :-1], real.sum(1, keepdim=True) + self.core.rope_deltas], 1)

    def encoded_positions(self, encoded: Encoded, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return positions (3, B, L) around these images and videos."""
        kinds = (input_ids == self.image_token_id).long() + 2 * (input_ids == self.video_token_id).long()
        sides = encoded.grid.amax(1) + 1  # (I, 2): rows and columns of tokens
        sizes = torch.cat([encoded.placeholders[:, None] // sides.prod(1, keepdim=True), sides * self.merge], 1)
        video = torch.zeros_like(encoded.placeholders, dtype=torch.bool) if encoded.video is None else encoded.video
        return self.full_positions(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "mm_token_type_ids": kinds,
                "image_grid_thw": sizes[~video],
                "video_grid_thw": sizes[video],
            }
        )

    def _check_placeholders(self, inputs: Mapping[str, Any]) -> None:
        """Raise ValueError unless prompts hold the placeholders of images and videos, which positions are made from."""
        for grids, token_id in (("image_grid_thw", self.image_token_id), ("video_grid_thw", self.video_token_id)):
            sizes = inputs.get(grids)
            if sizes is not None and len(sizes):
                counts = sizes.prod(1) // self.merge**2
                locate_images(inputs["input_ids"], token_id, counts, inputs.get("attention_mask"))

    def _order(self, sizes: Tensor) -> Tensor:
        """Return the index of each token in the order of the tower, (T,), for images of `sizes` (I, 3)."""
        return torch.arange(int(sizes.prod(1).sum()) // self.merge**2)

    def _run(self, kind: str, pixels: Tensor, sizes: Tensor, layers: list[int]) -> Pass:
        """Run the tower on all images, or all videos, and capture `layers`."""
        visual = self.core.visual
        modules = attention_modules(visual)
        entered: list[Tensor] = []
        with ExitStack() as stack:
            hook = visual.merger.register_forward_pre_hook(in_this_thread(lambda _, args: entered.append(args[0])))
            stack.callback(hook.remove)
            seen = {layer: stack.enter_context(capture_qk(modules[layer])) for layer in layers}
            output = getattr(self.core, f"get_{kind}_features")(pixels, sizes, return_dict=True)
        return Pass(pixels, sizes, kind == "video", self._order(sizes).to(entered[0].device), entered[0], output, seen)

    def _concatenate(self, passes: list[Pass], layers: Mapping[str, int]) -> Encoded:
        """Concatenate the encodings of all passes, padded to one length."""
        sizes = torch.cat([part.sizes for part in passes]).tolist()
        frames, places = [], []
        for count, rows, columns in sizes:
            rows, columns = rows // self.merge, columns // self.merge
            frames.append(torch.arange(count).repeat_interleave(rows * columns))
            places.append(torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2).repeat(count, 1))
        device = passes[0].entered.device
        counts = torch.tensor([len(place) for place in places], device=device)
        padded = functools.partial(padded_rows, lengths=counts)

        def view(of: Callable[[Pass, int], Tensor], layer: int) -> Callable[[], Tensor]:
            return lambda: padded(torch.cat([of(part, layer) for part in passes]))

        views: dict[str, Callable[[], Tensor]] = {
            "image_key": lambda: torch.cat([_pixel_keys(part) for part in passes])
        }
        for suffix, layer in layers.items():
            views[f"received_attention{suffix}"] = view(Pass.received, layer)
            views[f"keys{suffix}"] = view(Pass.keys, layer)
        video = torch.cat([torch.full((len(part.sizes),), part.video, device=device) for part in passes])
        if bool(video.any()):
            numbers = padded(torch.cat(frames).to(device), -1).masked_fill(~video[:, None], -1)
            views["frames"] = lambda: numbers
        # (P, Dv) to (T, patches * Dv) of each pass, in raster order.
        joined = [part.entered.reshape(len(part.order), -1)[part.order] for part in passes]
        return Encoded(
            encoder_features=padded(torch.cat(joined)),
            mask=padded(torch.ones(int(counts.sum()), dtype=torch.bool, device=device)),
            grid=padded(torch.cat(places).to(device), -1),
            placeholders=counts,
            views=views,
            features=padded(torch.cat([rows for part in passes for rows in part.output.pooler_output])),
            video=video if bool(video.any()) else None,
        )


class Qwen2_5VL(Qwen2VL):
    """``Qwen2_5_VLForConditionalGeneration``: as Qwen2-VL, with most tower layers attending within windows."""

    @property
    def whole_layers(self) -> list[int]:
        """Tower layers that attend to whole frames.

        Raises
        ------
        Unavailable
            If there is no such layer.
        """
        layers = sorted(self.core.visual.fullatt_block_indexes)
        if not layers:
            raise Unavailable("received_attention", "every layer of this vision tower attends within windows")
        return layers

    def _order(self, sizes: Tensor) -> Tensor:
        from transformers.vision_utils import get_vision_window_index

        visual = self.core.visual
        windows, _ = get_vision_window_index(sizes, self.merge, visual.window_size, visual.patch_size)
        return windows.argsort()


def _pixel_keys(part: Pass) -> Tensor:
    """Return the pixel key of each image of a pass, (I,)."""
    images = torch.split(part.pixels, part.sizes.prod(1).tolist())
    return torch.cat([pixel_key(patches[None]) for patches in images])
