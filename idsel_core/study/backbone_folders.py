"""Refuse, before anything is loaded, a model that the study cannot evaluate, or not on this data set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from idsel_core.families import INPUT_KINDS, SPEECH
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.sources.clips import misfit, resampled_length
from idsel_core.study.sources.split import PLURAL, Split

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(backbone: str | Path) -> bool:
    """Tell whether a backbone is named by a hub id, such as ``llava-hf/llava-1.5-7b-hf``, and not by a folder."""
    if not isinstance(backbone, str) or not _HUB_ID.fullmatch(backbone):
        return False
    return not (Path(backbone).exists() or project_path(backbone).exists())


def backbone_name(backbone: str | Path) -> str:
    """Return what results call a backbone: ``embedded``, its hub id, or the name of its folder.

    A folder ``assembled`` has the name of the folder that it lies in, as ``smollm2`` has.
    """
    if is_hub_id(backbone):
        return str(backbone)
    folder = Path(backbone).resolve()
    if folder == MODEL.resolve():
        return "embedded"
    return folder.parent.name if folder.name == "assembled" else folder.name


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
        If its configuration cannot be read, or it is of a family that is not supported or takes no questions.
    """
    if is_hub_id(backbone):
        from idsel_core.loading.hub import read_family_config

        read: dict[str, Any] = read_family_config(backbone, revision=revision).to_dict()
        _check_prompted(backbone, str(read.get("model_type")))
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
    if family not in INPUT_KINDS:
        raise ValueError(
            f"{folder} holds a model of type {family!r}, which is not supported; supported: "
            f"{', '.join(sorted(INPUT_KINDS))}"
        )
    _check_prompted(folder, str(family))
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors)")
    return config


def _check_prompted(backbone: str | Path, family: str) -> None:
    if family in SPEECH:
        raise ValueError(
            f"{backbone} is a model of type {family!r}, which writes down speech and takes no questions; "
            "notebooks/18_speech.ipynb measures it"
        )


def check_reads(backbone: str | Path, split: Split, revision: str = "main") -> None:
    """Refuse a data set that a model cannot be asked about, as its configuration and its processor's tell.

    Parameters
    ----------
    backbone, revision
        As for `check_evaluable`.
    split : Split
        Of the data set.

    Raises
    ------
    FileNotFoundError, ValueError
        As of `check_evaluable`; also if the questions are about images and the model takes audio clips, or the other
        way round, or a clip is too long or too short for it.
    """
    family = check_evaluable(backbone, revision)["model_type"]
    kind = INPUT_KINDS[family]
    if kind != split.kind:
        fitting = ", ".join(name for name, takes in INPUT_KINDS.items() if takes == split.kind and name not in SPEECH)
        raise ValueError(
            f"{backbone} is a model of type {family!r}, which takes {PLURAL[kind]}, and the questions of "
            f"{split.dataset} are about {PLURAL[split.kind]}: give a table with a column {kind!r}, or a model of type "
            f"{fitting}"
        )
    if kind == "image":
        return
    extractor = _feature_extractor(backbone, revision)
    for name, samples, rate in split.images[["samples", "rate"]].itertuples():
        why = misfit(resampled_length(samples, rate, extractor.sampling_rate), extractor)
        if why:
            raise ValueError(f"audio clip {name!r} of {split.dataset} {why}")


def _feature_extractor(backbone: str | Path, revision: str) -> Any:
    from transformers import AutoFeatureExtractor

    hub, read = is_hub_id(backbone), cast(Any, AutoFeatureExtractor.from_pretrained)
    try:
        return read(
            backbone, local_files_only=not hub, trust_remote_code=False, **({"revision": revision} if hub else {})
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{backbone} does not tell how it takes audio clips: {error}") from error
