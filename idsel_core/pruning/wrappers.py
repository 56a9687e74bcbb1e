"""The model inside the wrappers that people put round it."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside a PEFT, DataParallel, DistributedDataParallel or compiled model.

    Parameters
    ----------
    model : Any
        A model, wrapped or not. What is none of these is returned as it is.

    Raises
    ------
    ValueError
        If DataParallel copies the model to several devices, because no copy is pruned.
    """
    while isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel):
        base: Any = getattr(model, "get_base_model", None)  # PEFT
        devices = getattr(model, "device_ids", None) or ()
        if isinstance(model, nn.DataParallel) and len(devices) > 1:
            raise ValueError(
                f"DataParallel copies the model to {len(devices)} devices anew for each call, and prune() does not "
                f"reach the copies: use DistributedDataParallel, or device_ids of one device"
            )
        inner = model._modules.get("_orig_mod") or model._modules.get("module") if base is None else base()
        if not isinstance(inner, nn.Module) or inner is model:
            break
        model = inner
    return model
