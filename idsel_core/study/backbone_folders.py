"""Refuse, before anything is loaded, a model that the study cannot evaluate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from idsel_core.study.paths import MODEL, project_path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(backbone: str | Path) -> bool:
    """Tell whether a backbone is named by a hub id, such as ``llava-hf/llava-1.5-7b-hf``, and not by a folder."""
    if not isinstance(backbone, str) or not _HUB_ID.fullmatch(backbone):
        return False
    return not (Path(backbone).exists() or project_path(backbone).exists())


def backbone_name(backbone: str | Path) -> str:
    """Return what results call a backbone: ``embedded``, its hub id, or the name of its folder."""
    if is_hub_id(backbone):
        return str(backbone)
    folder = Path(backbone).resolve()
    return "embedded" if folder == MODEL.resolve() else folder.name


def job_name(name: str, model: str, *asked: str) -> str:
    """Return the name of a job or a figure: as it is of the embedded model, else with the model's behind it.

    Parameters
    ----------
    name : str
        Of the notebook's job.
    model : str
        As `backbone_name` calls it, and the settings that it was loaded with.
    *asked : str
        What else stands behind it, such as the data set and its split; then the embedded model's name does, too.
    """
    if model == "embedded" and not asked:
        return name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([name, model, *asked]))


def weight_files(backbone: str | Path) -> tuple[Path, ...]:
    """Return the files of a model's weights, none of a hub id."""
    if is_hub_id(backbone):
        return ()
    folder = Path(backbone) if Path(backbone).exists() else project_path(backbone)
    return tuple(sorted(folder.rglob("*.safetensors")))


def check_evaluable(backbone: str | Path, revision: str = "main") -> dict[str, Any]:
    """Return the configuration of a model that the study can evaluate, without its weights.

    Parameters
    ----------
    backbone : str or Path
        Hub id, or a folder laid out like a hub checkpoint.
    revision : str
        Branch, tag or commit of a hub checkpoint.

    Raises
    ------
    FileNotFoundError
        If there is no such folder or checkpoint, or it lacks its configuration or its weights.
    ValueError
        If its configuration cannot be read, or it is of a family that is not supported.
    """
    if is_hub_id(backbone):
        from idsel_core.loading.hub import read_family_config

        read: dict[str, Any] = read_family_config(backbone, revision=revision).to_dict()
        _check_reads_images(backbone, str(read.get("model_type")))
        return read
    folder = Path(backbone)
    if not (folder / "config.json").is_file():
        if folder == MODEL:
            raise FileNotFoundError(f"no model in {folder}: run `make env` to assemble the embedded backbone")
        if folder.is_dir():
            raise FileNotFoundError(f"no model in {folder}: the folder has no config.json")
        raise FileNotFoundError(
            f"there is no folder {folder}: a backbone is a hub id such as llava-hf/llava-1.5-7b-hf, or a folder laid "
            "out like a hub checkpoint"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        family = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"the config.json of {folder} cannot be read ({error})") from error
    from idsel_core.backbones import BACKBONES

    if family not in BACKBONES:
        raise ValueError(
            f"{folder} holds a model of type {family!r}, which is not supported; supported: "
            f"{', '.join(sorted(BACKBONES))}"
        )
    _check_reads_images(folder, str(family))
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors)")
    return config


def _check_reads_images(backbone: str | Path, family: str) -> None:
    if "audio" in family or family == "whisper":
        raise ValueError(
            f"{backbone} is a model of type {family!r}, which reads sound, and the questions of a data set show "
            "images; prune() runs it"
        )
