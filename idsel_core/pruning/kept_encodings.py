"""Encodings that are kept for later calls with the same images."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone, Encoded
from idsel_core.methods import Method
from idsel_core.pruning.pipeline import encode_images

_SAMPLES = 16
"""Numbers of each weight and buffer that are looked at."""


class KeptEncodings:
    """The encodings of the last calls, by the content of their images and the state of the model.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    calls : int
        How many calls' encodings are kept; 0 keeps none.

    Raises
    ------
    ValueError
        If `calls` is no number of calls.
    """

    def __init__(self, backbone: Backbone, calls: int) -> None:
        if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
            raise ValueError(f"keep_encodings must be a number of calls, or 0 to keep none, not {calls!r}")
        self.backbone, self.calls = backbone, calls
        self._kept: OrderedDict[Hashable, Encoded] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, method: Method, inputs: Mapping[str, Any]) -> tuple[Encoded, bool]:
        """Return the encoding of the images of a call, and whether it was kept; a call with gradients keeps none.

        Parameters
        ----------
        method, inputs
            As for `encode_images`, which says what is raised.
        """
        if not self.calls or torch.is_grad_enabled():
            return encode_images(self.backbone, method, inputs), False
        key = self._key(method, inputs)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return kept, True
        encoded = encode_images(self.backbone, method, inputs)
        with self._lock:
            self._kept[key] = encoded
            while len(self._kept) > self.calls:
                self._kept.popitem(last=False)
        return encoded, False

    def clear(self) -> None:
        """Keep nothing of what was."""
        with self._lock:
            self._kept.clear()

    def _key(self, method: Method, inputs: Mapping[str, Any]) -> Hashable:
        images = self.backbone.image_arguments(inputs)
        content = tuple((name, _content(value)) for name, value in sorted(images.items()))
        grid, depths = self.backbone.target_grid(method, **images), tuple(method.tower_depths)
        return _state(self.backbone.model), grid, depths, content


def _state(model: Any) -> Hashable:
    """Return what an encoding depends on beside images: weights, buffers, settings, modes, adapters and autocast."""
    held = [*model.parameters(), *model.buffers()]
    # Tensors that were made under inference_mode have no version.
    versions = tuple((id(each), None if each.is_inference() else each._version) for each in held)
    kinds = sorted({each.device.type for each in held} - {"meta"})
    cast = tuple((kind, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)) for kind in kinds)
    modules = list(model.modules())
    training, adapters = tuple(part.training for part in modules), tuple(map(_adapters, modules))
    return versions, _sampled(held), repr(model.config.to_dict()), cast, training, adapters


def _adapters(module: Any) -> Hashable:
    """Return which adapters of PEFT act in a layer, and how much; None where it has none."""
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    found = [getattr(module, name, None) for name in names]
    # Models of transformers have methods of these names.
    return None if found[0] is None or callable(found[0]) else tuple(map(repr, found))


@torch.no_grad()
def _sampled(held: Iterable[Tensor]) -> tuple[bytes, ...]:
    """Return some numbers of each tensor, because a write to ``tensor.data`` does not change its version."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for each in held:
        if each.numel() and not each.is_meta:
            values = torch.view_as_real(each.detach()) if each.is_complex() else each.detach()
            step = -(-values.numel() // _SAMPLES)
            by_device.setdefault(each.device, []).append(values.reshape(-1)[::step].double())
    return tuple(torch.cat(parts).cpu().numpy().tobytes() for parts in by_device.values())


def _content(value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return repr(value)
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return str(value.device), str(value.dtype), tuple(value.shape), hashlib.sha256(data.data).hexdigest()
