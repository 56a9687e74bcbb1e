"""Encodings that are kept for later calls with the same images."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone, Encoded
from idsel_core.methods import Method
from idsel_core.pruning.pipeline import encode_images

_SAMPLES = 16
"""Numbers of each weight that are looked at."""


class KeptEncodings:
    """The encodings of the last calls, by the content of their images.

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
        weights = tuple((id(weight), weight._version) for weight in self.backbone.model.parameters())
        content = tuple((name, _content(value)) for name, value in sorted(images.items()))
        grid, depths = self.backbone.target_grid(method, **images), tuple(method.tower_depths)
        return weights, _sampled(self.backbone.model), grid, depths, content


@torch.no_grad()
def _sampled(model: Any) -> tuple[bytes, ...]:
    """Return some numbers of each weight, because a write to ``weight.data`` does not change the weight's version."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for weight in model.parameters():
        if weight.numel() and not weight.is_meta:
            step = -(-weight.numel() // _SAMPLES)
            by_device.setdefault(weight.device, []).append(weight.detach().reshape(-1)[::step].double())
    return tuple(torch.cat(parts).cpu().numpy().tobytes() for parts in by_device.values())


def _content(value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return repr(value)
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return str(value.device), str(value.dtype), tuple(value.shape), hashlib.sha256(data.data).hexdigest()
