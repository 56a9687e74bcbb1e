"""Load a model with its processor and companion for a study."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import VisionTextDualEncoderModel

from idsel_core.backbones import Backbone, Companion, adapter_for
from idsel_core.loading.hub import load
from idsel_core.study.backbone_folders import check_evaluable
from idsel_core.study.devices import check_device
from idsel_core.study.paths import MODEL


def open_backbone(folder: Path = MODEL, device: str = "cpu") -> tuple[Backbone, Any]:
    """Load a LLaVA-like model with its processor, and the companion for relevance where the folder holds one.

    Parameters
    ----------
    folder : Path
        Laid out like a hub checkpoint; weights as safetensors. No code in it is ever run.
    device : str
        As torch names it.

    Returns
    -------
    tuple
        The backbone, and the processor.

    Raises
    ------
    FileNotFoundError
        If it holds no model.
    ValueError
        If its weights are missing, damaged or do not fit, its images have no fixed grid of tokens, or there is no such
        device.
    """
    check_device(device)
    check_evaluable(folder)
    companion, dual = folder / "companion", None
    try:
        model, processor = load(folder, dtype="auto", local_files_only=True)
        if companion.is_dir():
            read: Any = VisionTextDualEncoderModel.from_pretrained
            dual = read(companion, trust_remote_code=False, use_safetensors=True, local_files_only=True)
    except (ImportError, OSError, SafetensorError, RuntimeError, ValueError) as error:
        remedy = f"; `make env` makes the embedded backbone anew once {folder} is gone" if folder == MODEL else ""
        raise ValueError(f"the model in {folder} cannot be loaded: {error}{remedy}") from error
    relevance = None if dual is None else Companion(dual.to(device).eval())
    return adapter_for(model.to(device), relevance), processor


def weights_hash(model: torch.nn.Module | None) -> str:
    """Return a hash of a model's weights, whatever their dtype."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()) if model is not None else ():
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
