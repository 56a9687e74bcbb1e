"""Refuse, before anything is loaded, a model that the study cannot evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from idsel_core.study.paths import MODEL

EVALUABLE = ("llava",)
"""Model types whose images all have one grid of visual tokens and a prompt that the study can write."""


def check_evaluable(folder: str | Path) -> dict[str, Any]:
    """Return the configuration of a model folder that the study can evaluate.

    Parameters
    ----------
    folder : str or Path
        Laid out like a hub checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or it lacks its configuration or its weights.
    ValueError
        If its configuration cannot be read or is of another model type.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        if folder == MODEL:
            raise FileNotFoundError(f"no model in {folder}: run `make env` to assemble the embedded backbone")
        if folder.is_dir():
            raise FileNotFoundError(f"no model in {folder}: the folder has no config.json")
        raise FileNotFoundError(
            f"there is no folder {folder}: a backbone to evaluate is a folder laid out like a LLaVA checkpoint; the "
            "name of a hub checkpoint is not enough, download it first (hf download NAME --local-dir FOLDER)"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"the config.json of {folder} cannot be read ({error})") from error
    if family not in EVALUABLE:
        raise ValueError(
            f"{folder} holds a model of type {family!r}; so far only models of type {', '.join(EVALUABLE)} can be "
            "evaluated, whose images all have one fixed grid of visual tokens"
        )
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors)")
    return config
