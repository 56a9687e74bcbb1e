"""Memory of a model's weights, whole or quantised by bitsandbytes."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from idsel_core.loading.hub import quantised_layers
from idsel_core.loading.random_models import build_random
from idsel_core.quantisation import Quantisation

_BLOCK = 64
"""Entries of a matrix that share a scale in NF4, as transformers asks for them."""
_SCALE = torch.float32.itemsize


def weight_bytes(
    config: PreTrainedConfig, parameters: int, dtype: torch.dtype, quantisation: Quantisation | None = None
) -> int:
    """Return the bytes that the weights of a model take once it is loaded.

    What `load` quantises takes 8 or 4 bits an entry and its scales: one an output of LLM.int8(), one a block of 64
    entries of NF4, each of float32. Embeddings, norms, the tower, the projector and the LM head take `dtype`.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the model.
    parameters : int
        Number of its parameters.
    dtype : torch.dtype
        Of the weights that are not quantised.
    quantisation : {"int8", "int4"}, optional
        As for `load`.
    """
    layers = [] if quantisation is None else quantised_layers(build_random(config, dtype, "meta"))
    entries = sum(layer.weight.numel() for layer in layers)
    if quantisation == "int8":
        taken = entries + _SCALE * sum(layer.out_features for layer in layers)
    else:
        taken = entries // 2 + _SCALE * sum(-(layer.weight.numel() // -_BLOCK) for layer in layers)
    return (parameters - entries) * dtype.itemsize + taken
