"""Load a model and a split of a data set, with their stored encodings, for a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from idsel_core.backbones import Backbone
from idsel_core.quantisation import Quantisation
from idsel_core.study.backbone_folders import backbone_name, check_reads, is_hub_id, weight_files
from idsel_core.study.dataset import Split, read_data, read_split
from idsel_core.study.encodings import encode_split, fingerprint, read_encoding, write_encoding
from idsel_core.study.evaluate import Study
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import CACHE, DATA, MODEL, project_path

_MOST_STORED = 2 * 2**30
"""Bytes of the encodings of a split that are kept in memory and on disk."""


def open_study(
    split: str = "",
    *,
    limit: int = 0,
    backbone: Path | str = MODEL,
    data: Path | str = DATA,
    cache: Path | str = CACHE,
    device: str = "cpu",
    dtype: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    quantisation: Quantisation | Literal[""] | None = None,
    attention: str | None = None,
    revision: str = "main",
    new_tokens: int | None = None,
    tower_depths: Sequence[float] | None = None,
) -> Study:
    """Load a model and a split of a data set.

    The embedded data set is encoded once and for all for a model with a fixed grid of tokens, and the encodings are
    stored; images of other data and models are encoded while their questions are asked.

    Parameters
    ----------
    split, limit, data
        As for `read_data`.
    backbone, device, dtype, device_map, quantisation, attention, revision
        As for `open_backbone`; "" stands for none.
    cache : Path or str
        Folder of stored encodings.
    new_tokens : int, optional
        Most tokens of an answer; as many as the data set says by default.
    tower_depths : sequence of float, optional
        As for `encode_split`; such encodings are large and are not stored.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        As for `read_data`, `check_reads` and `open_backbone`.
    """
    backbone = backbone if is_hub_id(backbone) else _found(backbone)
    data = data if str(data).startswith("lmms:") else _found(data)
    chosen = read_data(data, split, limit)
    check_reads(backbone, chosen, revision)
    opened, processor = open_backbone(
        backbone,
        device,
        dtype=dtype,
        device_map=device_map or None,
        quantisation=quantisation or None,
        attention=attention,
        revision=revision,
    )
    loaded = [text for text in (quantisation, attention) if text]
    study = Study(
        opened,
        processor,
        chosen,
        name=backbone_name(backbone),
        revision=(getattr(opened.model.config, "_commit_hash", None) or "") if is_hub_id(backbone) else "",
        settings="".join(f" {text}" for text in loaded),
        new_tokens=new_tokens,
        weights=weight_files(backbone),
    )
    plain = dtype == "auto" and not loaded and not device_map
    if not plain or not isinstance(backbone, Path) or not _is_stored(opened, chosen):
        return study
    if tower_depths is not None:
        return replace(study, encoded=encode_split(opened, processor, chosen, tower_depths=tower_depths))
    whole = read_split(split, Path(data))
    stored_as = split if study.name == "embedded" else f"{study.name}-{split}"
    made_from, path = fingerprint(whole, backbone), Path(cache) / f"{stored_as}.safetensors"
    encoded = read_encoding(path, made_from)
    if encoded is not None:
        rows = whole.images.index.get_indexer(chosen.images.index)
        encoded = encoded if limit == 0 else encoded.take(torch.from_numpy(rows))
    else:
        encoded = encode_split(opened, processor, chosen)
        if limit == 0:
            write_encoding(encoded, path, made_from)
    return replace(study, encoded=encoded)


def _found(path: str | Path) -> Path:
    """Return a path from the working folder, or else from the project's."""
    return Path(path) if Path(path).exists() else project_path(path)


def _is_stored(backbone: Backbone, split: Split) -> bool:
    """Tell whether encodings of a split are stored: of the embedded kind, on a fixed grid, if not too many."""
    config = backbone.model.config
    if config.model_type != "llava" or not split.has_boxes:
        return False
    values = len(split.images) * config.image_seq_length * config.vision_config.hidden_size
    return bool(values * 4 <= _MOST_STORED)
