"""Arguments of a model of the harness: which are knobs of the method, and which are refused before anything loads."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

from idsel_core.methods import METHODS
from idsel_core.study.harness.registry import GENERIC, PREFIX

TEMPLATES: Final = Path(__file__).parent / "templates"


def read_template(name: str) -> str:
    """Return a chat template by its name in `TEMPLATES`, or from a file.

    Raises
    ------
    FileNotFoundError
        If there is neither; names those that there are.
    """
    for path in (TEMPLATES / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text()
    known = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
    raise FileNotFoundError(f"there is no chat template {name!r}; give a file, or one of: {known}")


def knobs_in(given: dict[str, Any], method: str, known: list[str], name: str) -> dict[str, Any]:
    """Take the knobs of a method out of arguments; refuse what is neither a knob nor an argument of the class.

    Parameters
    ----------
    given : dict
        Arguments by name; knobs are taken out of it.
    method : str
        Name of the method.
    known : list of str
        Arguments of the class.
    name : str
        The harness's name of the class.

    Returns
    -------
    dict[str, Any]
        The knobs.

    Raises
    ------
    ValueError
        Names the argument, and those that are allowed.
    """
    of_method = [field.name for field in fields(METHODS[method])] if method in METHODS else []
    given.pop("max_batch_size", None)
    knobs = {one: given.pop(one) for one in list(given) if one not in known and one in of_method}
    for one in given:
        if one not in known or one in ("args", "kwargs"):
            allowed = [each for each in (*of_method, *known) if each not in ("args", "kwargs")]
            raise ValueError(f"{PREFIX}{name} has no argument {one!r}; allowed are {', '.join(allowed)}")
    return knobs


def check_given(base: Any, given: dict[str, Any], name: str) -> None:
    """Refuse, before anything is loaded, what the class cannot do, or would do in silence.

    Parameters
    ----------
    base : type
        A class of ``lmms_eval.models``.
    given : dict
        Its arguments; where it takes trust_remote_code, that is set to False.
    name : str
        The harness's name of it.

    Raises
    ------
    ImportError, ValueError
        Says what cannot be had.
    """
    if "pretrained" not in given:
        raise ValueError(f"{PREFIX}{name} needs pretrained=, a hub id or a folder")
    if str(given.get("batch_size", 1)) != "1":
        raise ValueError(f"batch_size must be 1, not {given['batch_size']!r}: the journal goes by request")
    if given.get("trust_remote_code"):
        raise ValueError("trust_remote_code must be false: code of a checkpoint is never run")
    if "trust_remote_code" in inspect.signature(base.__init__).parameters:
        given["trust_remote_code"] = False
    if name == "video_llava" and str(given.get("device", "cuda")) == "cpu":
        raise ValueError(f"the harness's {name} runs on a GPU alone; {PREFIX}{GENERIC} runs on a CPU too")
    if name != GENERIC and "auto_map" in PreTrainedConfig.get_config_dict(given["pretrained"])[0]:
        raise ValueError(f"{given['pretrained']} names code of its own (auto_map), which is never run")
    if getattr(importlib.import_module(base.__module__), "process_vision_info", ...) is None:
        raise ImportError(f"{name} needs qwen_vl_utils and torchvision; {PREFIX}{GENERIC} does without them")
