"""Load a model and its processor from a hub id or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoModelForSpeechSeq2Seq,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from idsel_core.backbones import BACKBONES
from idsel_core.backbones._shared.known_processors import remember_processor
from idsel_core.families import SPEECH
from idsel_core.loading.processors import load_processor
from idsel_core.quantisation import Quantisation, check_packages

_KEPT_WHOLE = [
    rf".*\b{part}"
    for part in (
        *("lm_head", "proj_out"),
        *(r"\w+_tower", "vision_model", "visual", r"encoder\."),
        *("multi_modal_projector", "connector"),
    )
]
"""Regular expressions of modules that are not quantised: LM heads, towers and the encoder of sound, and projectors."""


def load(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "bfloat16",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    quantisation: Quantisation | QuantizationConfigMixin | None = None,
    attention: str | None = None,
    processor: bool = True,
    revision: str = "main",
    local_files_only: bool = False,
) -> tuple[Any, Any]:
    """Load a model and its processor with transformers, from safetensors only and without code of the checkpoint.

    The configuration is read first, so that an unsupported model is refused before its weights are read.

    Parameters
    ----------
    name : str or Path
        Hub id, or a folder with the files of a hub checkpoint.
    dtype : str or torch.dtype
        Dtype of the weights, for example "bfloat16"; "auto" takes that of the checkpoint.
    device_map : str or mapping, optional
        Device of each module: "auto" distributes the modules over all GPUs, "cuda:1" puts all on one GPU, and a mapping
        of module names gives each its device, where "cpu" and "disk" hold modules until they run. Needs accelerate. By
        default the model is on the CPU.
    max_memory : mapping, optional
        Largest memory for each device of an "auto" map, for example ``{0: "20GiB", 1: "20GiB", "cpu": "60GiB"}``.
    offload_folder : str or Path, optional
        Folder for the weights of modules on "disk".
    quantisation : {"int8", "int4"} or quantisation configuration, optional
        Quantisation of the language model by bitsandbytes, LLM.int8() or NF4; the tower, the projector and the LM head
        stay in `dtype`, so that tokens are selected from the same features. Or a quantisation configuration of
        transformers, which is passed on unchanged.
    attention : str, optional
        Attention implementation, for example "sdpa" or "flash_attention_2"; transformers' choice by default.
    processor : bool
        Whether to load the processor too. Without torchvision it prepares images with Pillow and refuses videos.
    revision : str
        Branch, tag or commit of a hub checkpoint.
    local_files_only : bool
        Whether to use only the local cache of the hub.

    Returns
    -------
    tuple
        The model, in evaluation mode, and the processor or None.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no such checkpoint on the hub.
    ImportError
        If accelerate, bitsandbytes or a package that the processor needs is not installed; the message says how to
        install it.
    ValueError
        If an option is unknown, the family is not supported or needs code of its own, there is no such device, or the
        weights are missing, pickles, damaged or of other shapes.
    """
    check_packages(quantisation, device_map)
    chosen = _dtype(dtype)
    source: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    config = read_family_config(name, **source)
    options: dict[str, Any] = {"dtype": chosen, "attn_implementation": attention}
    if quantisation is not None:
        options["quantization_config"] = _quantised(quantisation, chosen)
    if device_map is not None:
        _check_devices(device_map)
        options |= {"device_map": device_map, "max_memory": max_memory and dict(max_memory)}
        options |= {"offload_folder": offload_folder}
    elif max_memory is not None or offload_folder is not None:
        raise ValueError("max_memory and offload_folder need a device_map, for example 'auto'")
    _check_weights(name)
    given = {key: value for key, value in options.items() if value is not None}
    read = _processor(name, source) if processor else None
    model = _weights(name, config, source | given)
    if read is not None:
        remember_processor(model, read)
    return model, read


def quantised_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the layers of a model that "int8" and "int4" would quantise, those of the language model alone."""
    return [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and should_convert_module(name, _KEPT_WHOLE)
    ]


def read_family_config(name: str | Path, *, revision: str = "main", local_files_only: bool = False) -> PreTrainedConfig:
    """Read the configuration of a checkpoint of a supported family, without its weights.

    Parameters
    ----------
    name, revision, local_files_only
        As for `load`.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `load`.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"no model in {name}: the folder has no config.json")
    if not Path(name).exists() and _is_path(name):
        raise FileNotFoundError(f"no model in {name}: there is no such folder")
    source: dict[str, Any] = {"revision": revision, "local_files_only": local_files_only}
    try:
        raw, _ = PreTrainedConfig.get_config_dict(name, **source)
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise ValueError(f"the config.json of {name} cannot be read ({_first_line(error)})") from error
        raise FileNotFoundError(
            f"no model {str(name)!r}: there is no such folder, and the hub gave no checkpoint of this name. Without a "
            f"network, give a folder or a checkpoint in the cache. ({_first_line(error)})"
        ) from error
    family, known = raw.get("model_type"), ", ".join(sorted(BACKBONES))
    if family not in BACKBONES:
        if "auto_map" in raw:
            raise ValueError(
                f"{name} needs code of its own (model type {family!r}, auto_map in its config.json), which is never "
                f"run; take the checkpoint for transformers, often named ...-hf. Supported: {known}"
            )
        raise ValueError(f"model type {family!r} of {name} is not supported; supported: {known}")
    read: Any = AutoConfig.from_pretrained
    try:
        config: PreTrainedConfig = read(name, trust_remote_code=False, **source)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        # For example because the language model needs code of its own.
        raise ValueError(
            f"transformers cannot read the configuration of {name} ({_first_line(error)[:200]})"
        ) from error
    return config


def _weights(name: str | Path, config: PreTrainedConfig, options: Mapping[str, Any]) -> PreTrainedModel:
    safe: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
    speech = config.model_type in SPEECH
    read: Any = (AutoModelForSpeechSeq2Seq if speech else AutoModelForMultimodalLM).from_pretrained
    try:
        model, report = read(name, config=config, output_loading_info=True, **safe, **options)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"the weights of {name} cannot be read ({_first_line(error)})") from error
    if report["missing_keys"]:
        raise ValueError(f"the weights of {name} lack {', '.join(sorted(report['missing_keys'])[:3])}")
    whole: PreTrainedModel = model.eval()
    return whole


def _processor(name: str | Path, source: Mapping[str, Any]) -> Any:
    try:
        return load_processor(name, source)
    except ImportError as error:
        raise ImportError(
            f"the processor of {name} needs a package that is not installed ({_first_line(error)}); "
            "processor=False loads the model without it"
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"the processor of {name} cannot be read ({_first_line(error)})") from error


def _check_weights(name: str | Path) -> None:
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in folder.glob(ending))
    if pickles:
        raise ValueError(
            f"{name} holds its weights as pickles ({pickles[0]}), which can run code when they are read: convert them "
            f"to safetensors"
        )
    raise ValueError(f"{name} holds no weights (*.safetensors)")


def _dtype(name: str | torch.dtype) -> str | torch.dtype:
    found = name if isinstance(name, torch.dtype) or name == "auto" else getattr(torch, str(name), None)
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ValueError(
        f"dtype must be auto or a floating-point torch dtype, for example bfloat16 or float16, not {name!r}"
    )


def _quantised(quantisation: str | QuantizationConfigMixin, dtype: str | torch.dtype) -> QuantizationConfigMixin:
    if isinstance(quantisation, QuantizationConfigMixin):
        return quantisation
    settings: Any = BitsAndBytesConfig
    if quantisation == "int8":
        return settings(load_in_8bit=True, llm_int8_skip_modules=_KEPT_WHOLE)
    return settings(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else dtype,
        llm_int8_skip_modules=_KEPT_WHOLE,
    )


def _check_devices(device_map: str | Mapping[str, Any]) -> None:
    asked = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    gpus = torch.cuda.device_count()
    for device in asked:
        numbered = isinstance(device, int) or str(device).startswith("cuda")
        number = device if isinstance(device, int) else int(str(device).partition(":")[2] or 0)
        if numbered and number >= gpus:
            raise ValueError(f"device_map names {device!r}, but torch sees {gpus} GPUs on this machine")


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
