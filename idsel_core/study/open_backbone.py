"""Load a model with its processor and companion for a study."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import VisionTextDualEncoderModel

from idsel_core.backbones import Backbone, Companion, adapter_for
from idsel_core.loading.hub import load
from idsel_core.quantisation import Quantisation
from idsel_core.study.backbone_folders import check_evaluable, is_hub_id
from idsel_core.study.devices import check_device, multiplies_halves
from idsel_core.study.paths import MODEL


def open_backbone(
    backbone: str | Path = MODEL,
    device: str = "cpu",
    *,
    dtype: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    quantisation: Quantisation | None = None,
    attention: str | None = None,
    revision: str = "main",
) -> tuple[Backbone, Any]:
    """Load a model with its processor, and the companion for relevance where its folder holds one.

    Parameters
    ----------
    backbone : str or Path
        Hub id, or a folder laid out like a hub checkpoint; weights as safetensors. No code in it is ever run.
    device : str
        As torch names it; where the model is, unless `device_map` says it.
    dtype, device_map, quantisation, attention, revision
        As for `idsel_core.load`; by default the dtype of the checkpoint.

    Returns
    -------
    tuple
        The backbone, and the processor.

    Raises
    ------
    FileNotFoundError
        If there is no such model.
    ImportError
        If a package is not installed that an option, or the processor, needs.
    ValueError
        If its weights are missing, damaged or do not fit, its family is not supported, or there is no such device.

    Warns
    -----
    UserWarning
        If the processor is much slower in the model's dtype than in float32.
    """
    check_device(device)
    if dtype != "auto" and not isinstance(getattr(torch, str(dtype), None), torch.dtype):
        raise ValueError(f"dtype must be auto or a type of torch such as bfloat16, float16 or float32, not {dtype!r}")
    check_evaluable(backbone, revision)
    hub = is_hub_id(backbone)
    if quantisation is not None and device_map is None:
        device_map = {"": device}
    try:
        model, processor = load(
            backbone,
            dtype=dtype,
            device_map=device_map,
            quantisation=quantisation,
            attention=attention,
            revision=revision,
            local_files_only=not hub,
        )
        relevance = open_companion(Path(backbone), device)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        embedded = not hub and Path(backbone) == MODEL
        remedy = f"; `make env` makes the embedded backbone anew once {backbone} is gone" if embedded else ""
        raise ValueError(f"the model in {backbone} cannot be loaded: {error}{remedy}") from error
    _pad_on_the_left(model, processor.tokenizer)
    if device_map is None:
        model = model.to(device)
    plain_halves = quantisation is None and model.dtype in (torch.bfloat16, torch.float16)
    if plain_halves and not multiplies_halves(model.device):
        warnings.warn(
            f"this processor, which has no AVX-512, multiplies {str(model.dtype).removeprefix('torch.')} several times "
            f'slower than float32: dtype="float32" makes {backbone} faster here',
            stacklevel=2,
        )
    return adapter_for(model, relevance, processor), processor


def open_companion(folder: Path, device: str | torch.device = "cpu") -> Companion | None:
    """Return the companion for relevance that lies in a model's folder, None where there is none.

    Parameters
    ----------
    folder : Path
        Of the model; the companion's own is ``companion`` in it, with weights as safetensors. No code in it is run.
    device : str or torch.device
        Where the companion runs.

    Raises
    ------
    OSError, SafetensorError, RuntimeError, ValueError
        If it is damaged.
    """
    if not (folder / "companion").is_dir():
        return None
    read: Any = VisionTextDualEncoderModel.from_pretrained
    dual = read(folder / "companion", trust_remote_code=False, use_safetensors=True, local_files_only=True)
    return Companion(dual.to(device).eval())


def _pad_on_the_left(model: Any, tokenizer: Any) -> None:
    """Let batches of prompts be padded on the left, where generating begins, with a token that there is."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def weights_hash(model: torch.nn.Module | None) -> str:
    """Return a hash of a model's weights, whatever their dtype."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()) if model is not None else ():
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
