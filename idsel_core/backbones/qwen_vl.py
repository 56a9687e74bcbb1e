"""Qwen2-VL and Qwen2.5-VL: images and videos of any size, patches merged into tokens, positions of three axes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import as_weights, padded_rows, pixel_key
from idsel_core.backbones._shared.tower_views import layer_at
from idsel_core.scores import attention_rows
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Unavailable, VisualTokens


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass of the tower gives of several images, or of several videos, one behind the other.

    Parameters
    ----------
    pixels : Tensor
        Patches as the processor gives them, (P, values).
    sizes : Tensor
        Frames, and rows and columns of patches, of each image, int64 (I, 3).
    video : bool
        Whether these are videos.
    order : Tensor
        Where each token is in the order of the tower, int64 (T,).
    entered : Tensor
        What enters the merger, (P, Dv), in the order of the tower.
    output : Any
        What the model's own function returned.
    seen : Mapping[int, CapturedQK]
        Attention layers that were watched.
    """

    pixels: Tensor
    sizes: Tensor
    video: bool
    order: Tensor
    entered: Tensor
    output: Any
    seen: Mapping[int, CapturedQK]

    def merged(self, patches: Tensor) -> Tensor:
        """Return the mean over the patches of each token, (P, ...) to (T, ...), both from the tower's order."""
        return patches.reshape(len(self.order), -1, *patches.shape[1:]).mean(1)[self.order]

    def received(self, layer: int) -> Tensor:
        """Return the attention that tokens receive within their frame, mean over queries, heads and patches, (T,)."""
        seen = self.seen[layer]
        return self.merged(torch.cat([attention_rows.received(*piece, seen.scale)[0] for piece in seen.pieces]))

    def keys(self, layer: int) -> Tensor:
        """Return the keys of a layer, mean over the patches of a token, (T, heads, d)."""
        return self.merged(torch.cat([key[0].transpose(0, 1) for _, key in self.seen[layer].pieces]))


class Qwen2VL(Backbone):
    """``Qwen2VLForConditionalGeneration``, images and videos.

    A token is what the merger makes of some patches that lie side by side, and `Encoded.encoder_features` are these
    patches, before the merger's norm, joined. There is no [CLS]: a token's saliency is the mean attention that its
    patches receive from their frame in the last layer that attends to whole frames. Tokens keep their positions of
    three axes, and decoding goes on from the length of the full prompt.
    """

    image_inputs = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    pixel_inputs = ("pixel_values", "pixel_values_videos")
    position_axes = 3
    why_one_image_size = "images come as patches, of which the processor decides how many there are"

    @property
    def video_token_id(self) -> int:
        """Token id of the video placeholder."""
        return int(self.model.config.video_token_id)

    @property
    def merge(self) -> int:
        """Patches of a token along each side."""
        return int(self.core.visual.spatial_merge_size)

    @property
    def whole_layers(self) -> list[int]:
        """Layers of the tower that attend to whole frames."""
        return list(range(int(self.core.visual.config.depth)))

    def encode(
        self,
        pixel_values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower, once for images and once for videos, which come after all images.

        Parameters
        ----------
        pixel_values : Tensor, optional
            Patches of all images, as the processor gives them.
        grid : tuple[int, int], optional
            Must be None.
        tower_depths : Iterable[float]
            Further depths of the tower, 0 to 1, at which views are wanted; of layers that attend to whole frames, the
            one nearest to each is taken.
        image_inputs
            ``image_grid_thw``, ``pixel_values_videos``, ``video_grid_thw``.

        Raises
        ------
        Unavailable
            If a `grid` is asked for.
        ValueError
            If there are no pixels, or their grid is missing.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.why_one_image_size)
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
            raise ValueError("there are neither pixel_values nor pixel_values_videos")
        return self._joined(passes, layers)

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the merger, (I, N, patches * Dv) to (I, N, D)."""
        merger = self.core.visual.merger
        rows = as_weights(encoder_features, merger)
        projected: Tensor = merger(rows.reshape(-1, rows.shape[2] // self.merge**2))
        return projected.view(*rows.shape[:2], -1)

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return position ids of the full prompts, as ``generate``, or else ``forward``, gives them.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Of ``generate``: (4, B, L), for the mask and three axes. Else (3, B, L).
        """
        input_ids: Tensor = inputs["input_ids"]
        if generating:
            mask = inputs.get("attention_mask")
            inputs = {**inputs, "attention_mask": torch.ones_like(input_ids) if mask is None else mask}
            return super().full_positions(inputs)
        known = inspect.signature(self.core.compute_3d_position_ids).parameters
        own = {"inputs_embeds": None, "past_key_values": None, "cache": None}
        positions = self.core.compute_3d_position_ids(**{name: own.get(name, inputs.get(name)) for name in known})
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)
        return positions

    def shorten(
        self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection, positions: str | None = None
    ) -> dict[str, Any]:
        """Cut the tokens that were not selected out of a call of the model, see `Backbone.shorten`.

        The model's ``rope_deltas`` are set so that it goes on from the length of the full prompts.

        Raises
        ------
        ValueError
            As of `Backbone.shorten`, or if ``generate`` would have to go on from a token that was cut out.
        """
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if "position_ids" not in inputs:
            inputs["position_ids"] = self.full_positions(inputs)
        short = super().shorten(inputs, tokens, selection, positions)
        full, mask = inputs["position_ids"], short.get("attention_mask")
        real = torch.ones_like(short["input_ids"]) if mask is None else mask
        if full.ndim == 3:
            if len(full) > self.position_axes:
                text = (real.cumsum(1) - 1).masked_fill(real == 0, 0)
                axes = short["position_ids"][1:]
                moved = (axes[..., -1] != full[1:, :, -1]).any(0) & real[:, -1].bool()
                if bool(moved.any()):
                    raise ValueError(
                        f"prompt {int(moved.int().argmax())} ends in an image whose last token was not selected, so "
                        f"generate() has no position to go on from: let the prompt end in text"
                    )
                short["position_ids"] = torch.cat([text[None], axes])
            ends = full[-self.position_axes :].amax((0, 2)) + 1
            self.core.rope_deltas = (ends - real.sum(1))[:, None]
        return short

    def _encoded_positions(self, encoded: Encoded, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        kinds = (input_ids == self.image_token_id).long() + 2 * (input_ids == self.video_token_id).long()
        sides = encoded.grid.amax(1) + 1
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

    def _order(self, sizes: Tensor) -> Tensor:
        """Return where each token of images of these sizes, int64 (I, 3), is in the order of the tower."""
        return torch.arange(int(sizes.prod(1).sum()) // self.merge**2)

    def _run(self, kind: str, pixels: Tensor, sizes: Tensor, layers: list[int]) -> Pass:
        visual = self.core.visual
        modules = attention_modules(visual)
        entered: list[Tensor] = []
        with ExitStack() as stack:
            hook = visual.merger.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
            stack.callback(hook.remove)
            seen = {layer: stack.enter_context(capture_qk(modules[layer])) for layer in layers}
            output = getattr(self.core, f"get_{kind}_features")(pixels, sizes, return_dict=True)
        return Pass(pixels, sizes, kind == "video", self._order(sizes).to(entered[0].device), entered[0], output, seen)

    def _joined(self, passes: list[Pass], layers: Mapping[str, int]) -> Encoded:
        """Return the encodings of all passes, rows padded to one length."""
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

        views: dict[str, Callable[[], Tensor]] = {"image_key": lambda: torch.cat([_keys_of(part) for part in passes])}
        for suffix, layer in layers.items():
            views[f"received_attention{suffix}"] = view(Pass.received, layer)
            views[f"keys{suffix}"] = view(Pass.keys, layer)
        video = torch.cat([torch.full((len(part.sizes),), part.video, device=device) for part in passes])
        if bool(video.any()):
            numbers = padded(torch.cat(frames).to(device), -1).masked_fill(~video[:, None], -1)
            views["frames"] = lambda: numbers
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
    """``Qwen2_5_VLForConditionalGeneration``: as Qwen2-VL, with most layers of the tower within windows."""

    @property
    def whole_layers(self) -> list[int]:
        """Layers of the tower that attend to whole frames.

        Raises
        ------
        Unavailable
            If there is none.
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


def _keys_of(part: Pass) -> Tensor:
    images = torch.split(part.pixels, part.sizes.prod(1).tolist())
    return torch.cat([pixel_key(patches[None]) for patches in images])
