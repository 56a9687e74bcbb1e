"""Logits with the columns of the prompts as they were given, so that they compare with the caller's labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone
from idsel_core.backbones._shared.prompts import surviving_columns
from idsel_core.pruning.pipeline import ShortCall


def with_full_logits(output: Any, backbone: Backbone, call: ShortCall, inputs: Mapping[str, Any]) -> Any:
    """Return the output of a shorter call with logits (B, L, V) of the prompts as they were given.

    The column of a token that was dropped has the logits of the last column before it that was kept: they are what
    predicts the next token. So a loss or metric of shifted logits and labels is that of the shorter call.

    Parameters
    ----------
    output : ModelOutput or tuple
        Of the model's ``forward``, with logits (B, W, V).
    backbone : Backbone
        Of the model.
    call : ShortCall
        The shorter call.
    inputs : Mapping[str, Any]
        The arguments as they were given, with ``input_ids`` (B, L).
    """
    at = 1 if inputs.get("labels") is not None else 0
    logits = output[at] if isinstance(output, tuple) else output.logits
    columns = _columns(backbone, call, inputs).to(logits.device)
    full = logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[2]))
    if isinstance(output, tuple):
        return (*output[:at], full, *output[at + 1 :])
    output.logits = full
    return output


def _columns(backbone: Backbone, call: ShortCall, inputs: Mapping[str, Any]) -> Tensor:
    """Return the column of the shorter prompts for each column of the given ones, int64 (B, L)."""
    input_ids = inputs["input_ids"]
    keep, real = backbone.kept(inputs, call.tokens, call.selection)
    order = surviving_columns(keep, real)  # (B, W)
    place = torch.arange(order.shape[1], device=order.device).expand(order.shape)
    found = torch.full_like(input_ids, -1).scatter(1, order, place)
    # Dropped columns that became padding hold nothing.
    return found.masked_fill(real & ~keep, -1).cummax(1).values.clamp_min(0)
