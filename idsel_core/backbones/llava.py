"""LLaVA-1.5 and models like it: a plain ViT tower, a projector, one token for each patch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import as_weights, pixel_key
from idsel_core.backbones._shared.tower_views import attention_views, layer_at

if TYPE_CHECKING:
    from idsel_core.methods import Method


class Llava(Backbone):
    """``LlavaForConditionalGeneration`` with a CLIP, SigLIP, DINOv2 or similar vision tower."""

    image_inputs: ClassVar[tuple[str, ...]] = (
        "pixel_values",
        "image_sizes",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )

    def tower(self, kind: str = "image") -> Any:
        """Return the vision tower of images or of videos."""
        return self.core.vision_tower

    @property
    def projector(self) -> Any:
        """The projector, which maps one row for each visual token into the language model."""
        return self.core.multi_modal_projector

    def image_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches of images of this size."""
        return pixel_values.shape[-2] // self._patch, pixel_values.shape[-1] // self._patch

    def target_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return the grid of patches to resize images to for a method."""
        return method.target_grid(*self.image_grid(image_inputs["pixel_values"]))

    def encode(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower once, see `Backbone.encode`.

        Parameters
        ----------
        pixel_values : Tensor
            (I, 3, height, width).
        grid : tuple[int, int], optional
            Rows and columns of patches; the images are resized (bicubic, antialiased) and the positions of the tower
            interpolated.
        image_inputs
            ``vision_feature_layer`` and ``vision_feature_select_strategy`` of the model.

        Raises
        ------
        ValueError
            If `pixel_values` is not four-dimensional, or ``image_sizes`` is given (towers of ragged image sizes).
        """
        if pixel_values.ndim != 4:
            raise ValueError(f"pixel_values must be (images, 3, height, width), not {tuple(pixel_values.shape)}")
        if image_inputs.get("image_sizes") is not None:
            raise ValueError("image_sizes belongs to towers of ragged image sizes (Pixtral), which are not supported")
        full = self.image_grid(pixel_values)
        rows, columns = grid or full
        key = functools.partial(pixel_key, pixel_values)
        options = {name: value for name, value in image_inputs.items() if value is not None}
        if (rows, columns) != full:
            size = [rows * self._patch, columns * self._patch]
            pixel_values = nn.functional.interpolate(pixel_values, size=size, mode="bicubic", antialias=True)
            if "interpolate_pos_encoding" in inspect.signature(self.tower().forward).parameters:
                options["interpolate_pos_encoding"] = True
        output, entered, seen = self._read_tower(pixel_values, tower_depths, options)
        features = torch.stack(list(output.pooler_output))
        images, count = features.shape[:2]
        length = output.last_hidden_state.shape[1]
        # Tower tokens before the grid ([CLS], registers), and tower tokens that are removed before the projector.
        before_grid, cropped = length - rows * columns, length - count
        views: dict[str, Callable[[], Tensor]] = {"image_key": key}
        for suffix, layer in seen.items():
            of_layer = attention_views(layer, cropped, bool(before_grid))
            views |= {f"{name}{suffix}": view for name, view in of_layer.items()}
        if before_grid:
            chosen = self._chosen(options.get("vision_feature_layer"))
            views["cls_features"] = lambda: torch.cat([output.hidden_states[state][:, 0] for state in chosen], -1)
        # (N,) to (N, 2): row and column of each token; tokens before the grid, such as [CLS], get -1.
        place = torch.arange(cropped - before_grid, rows * columns, device=features.device)[:, None]
        place = torch.cat([place.div(columns, rounding_mode="floor"), place % columns], 1).masked_fill(place < 0, -1)
        return Encoded(
            encoder_features=entered,
            mask=torch.ones(images, count, dtype=torch.bool, device=features.device),
            grid=place.expand(images, -1, -1),
            placeholders=torch.full((images,), full[0] * full[1] + before_grid - cropped, device=features.device),
            views=views,
            features=features,
        )

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D)."""
        projected: Tensor = self.projector(as_weights(encoder_features, self.projector))
        return projected

    def _read_tower(
        self, pixels: Tensor, tower_depths: Iterable[float], options: dict[str, Any], kind: str = "image"
    ) -> tuple[Any, Tensor, dict[str, CapturedQK]]:
        """Return the model's own features, the projector's input, and captured layers by the suffix of views."""
        modules = attention_modules(self.tower(kind))
        feeding = self._feeding_layer(options.get("vision_feature_layer"))
        layers = {f"@{depth:g}": layer_at(depth, len(modules)) for depth in tower_depths}
        if feeding >= 0:
            layers[""] = feeding
        entered: list[Tensor] = []
        with ExitStack() as stack:
            hook = self.projector.register_forward_pre_hook(in_this_thread(lambda _, args: entered.append(args[0])))
            stack.callback(hook.remove)
            seen = {layer: stack.enter_context(capture_qk(modules[layer])) for layer in sorted(set(layers.values()))}
            output = getattr(self.core, f"get_{kind}_features")(pixels, return_dict=True, **options)
        return output, entered[0], {suffix: seen[layer] for suffix, layer in layers.items()}

    @property
    def _patch(self) -> int:
        return int(self.model.config.vision_config.patch_size)

    def _chosen(self, choice: int | list[int] | None) -> list[int]:
        """Return the hidden states of the tower that enter the projector."""
        # Families without this setting read the last hidden state.
        chosen = getattr(self.model.config, "vision_feature_layer", -1) if choice is None else choice
        return [chosen] if isinstance(chosen, int) else list(chosen)

    def _feeding_layer(self, choice: int | list[int] | None) -> int:
        """Return the deepest tower layer whose output enters the projector, -1 for the embeddings."""
        states = self.model.config.vision_config.num_hidden_layers + 1
        return max(state % states for state in self._chosen(choice)) - 1
