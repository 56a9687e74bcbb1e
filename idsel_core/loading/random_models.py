"""Configurations of published models, and models of their size with random weights, without a download."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedConfig

from idsel_core.hints import did_you_mean

CONFIGS = Path(__file__).parent / "configs"
"""Folder of the configurations, which is part of the package."""


def list_architectures() -> list[str]:
    """Return the names of all models that `build_random` can build."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def architecture_file(name: str | Path) -> Path:
    """Return the path of the configuration of a named model.

    Parameters
    ----------
    name : str or Path
        One of `list_architectures`.

    Raises
    ------
    ValueError
        If no model has this name; the message lists the known names.
    """
    known = list_architectures()
    if str(name) not in known:
        raise ValueError(f"no model is named {str(name)!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return CONFIGS / f"{name}.json"


def read_architecture(name: str | Path) -> PreTrainedConfig:
    """Return the configuration of a named model.

    Parameters
    ----------
    name : str or Path
        One of `list_architectures`.

    Raises
    ------
    ValueError
        As for `architecture_file`.
    """
    read: Any = AutoConfig.from_pretrained
    return cast(PreTrainedConfig, read(architecture_file(name), trust_remote_code=False, local_files_only=True))


def build_random(
    name: str | PreTrainedConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
    seed: int = 0,
    *,
    layers: int | None = None,
    attention: str | None = None,
) -> Any:
    """Build a model of published size with random weights, to measure costs, times and shapes.

    Weights are initialised by the class of the model; matrices that it sets to zero are drawn too. On a CPU all weights
    are read from one block of random numbers, again and again, because drawing billions of them takes a minute.

    Parameters
    ----------
    name : str or PreTrainedConfig
        One of `list_architectures`, or a configuration.
    dtype : torch.dtype
        Dtype of the weights. Rotary frequencies stay float32, as in a loaded model.
    device : str or torch.device
        Device of the model; "meta" gives a model without weights.
    seed : int
        Seed of the weights.
    layers : int, optional
        Number of layers of the language model, to build a shallower model of the same widths; all by default.
    attention : str, optional
        Attention implementation; transformers' choice by default.

    Returns
    -------
    PreTrainedModel
        In evaluation mode.

    Raises
    ------
    ValueError
        If no model has this name, `dtype` is not a floating-point dtype, or the model has fewer layers.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be a floating-point torch dtype, for example torch.bfloat16, not {dtype!r}")
    config = name if isinstance(name, PreTrainedConfig) else read_architecture(name)
    if layers is not None:
        config = _shallower(config, layers)
    create: Any = AutoModelForMultimodalLM.from_config
    with torch.device("meta"):
        model = create(config, dtype=dtype, attn_implementation=attention).eval()
    device = torch.device(device)
    if device.type == "meta":
        return model
    model = model.to_empty(device=device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        with _Noise() if device.type == "cpu" else nullcontext():
            model.init_weights()
            for weight in model.parameters():
                # Some classes initialise a projector with zeros, and then all images have the same tokens.
                ends = weight.flatten()[[0, -1]]
                if weight.ndim > 1 and not bool(ends.any()):
                    weight.normal_(0, config.get_text_config().initializer_range)
    return model


def _shallower(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    shallow: Any = type(config).from_dict(config.to_dict())
    text: Any = shallow.get_text_config()
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= text.num_hidden_layers:
        raise ValueError(f"layers must be an int from 1 to {text.num_hidden_layers}, not {layers!r}")
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return cast(PreTrainedConfig, shallow)


class _Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fill tensors from one block of random numbers, each from where the last one ended."""

    # A prime, so that no two rows of a matrix are equal.
    length = 2**24 + 43

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drawn: dict[Any, Tensor] = {}
        self.at = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return func(*args, **(kwargs or {}))
        normal = func is torch.ops.aten.normal_.default
        tensor, given = args[0], list(args[1:])
        shift, factor = given + [0.0, 1.0][len(given) :]
        factor -= 0 if normal else shift
        key = func, tensor.dtype
        if key not in self.drawn:
            fresh = torch.empty(self.length)
            # Repeated, so that a piece can begin anywhere.
            self.drawn[key] = (fresh.normal_() if normal else fresh.uniform_()).to(tensor.dtype).repeat(2)
        for piece in tensor.view(-1).split(self.length):
            torch.mul(self.drawn[key][self.at : self.at + len(piece)], factor, out=piece)
            if shift:
                piece.add_(shift)
            self.at = (self.at + len(piece)) % self.length
        return tensor
