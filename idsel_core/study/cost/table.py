"""A table of the costs of several budgets, and configurations read from files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from idsel_core.loading.random_models import architecture_file, list_architectures
from idsel_core.methods import Method
from idsel_core.study.cost.analytic import (
    Attention,
    equal_flops_budget,
    flops_analytic,
    flops_analytic_step,
    flops_paper,
    full_budget,
    kv_cache_bytes,
)
from idsel_core.study.cost.counted import flops_counted
from idsel_core.study.cost.models import decoder_of, has_one_size, tower_of
from idsel_core.study.cost.shapes import Size, profile_of

if TYPE_CHECKING:
    import pandas as pd


def cost_table(
    config: PreTrainedConfig,
    budgets: Sequence[int | Sequence[int]],
    text_tokens: int,
    *,
    image_size: Size | None = None,
    attention: Attention = "full",
    method: Method | None = None,
    dtype: torch.dtype = torch.float16,
    counted: bool = False,
) -> pd.DataFrame:
    """Return a table of costs, one row a budget.

    Parameters
    ----------
    config, text_tokens, image_size, attention
        As for `flops_analytic`.
    budgets : sequence of int or of sequences of int
        Visual tokens, in all layers or in each.
    method : Method, optional
        What selects, nothing by default; it is counted where all layers read the same number of tokens, below all.
    dtype : torch.dtype
        Type of keys and values.
    counted : bool
        Whether to run the model without weights, for the column ``flops_counted``.

    Returns
    -------
    DataFrame
        ``budget`` (mean over layers), ``profile`` (tokens x layers), ``equal_budget`` (see `equal_flops_budget`),
        ``text_tokens``, ``flops_paper`` (multiply-adds), ``flops_analytic`` and its parts ``encode``, ``select`` and
        ``language_model``, ``flops_counted`` (without selection; null unless `counted`), ``flops_step`` (the first
        decoding step), ``cache_bytes``, and ``saved_paper``, ``saved_language_model`` and ``saved_analytic``, the
        shares saved against all visual tokens.

    Raises
    ------
    TypeError, ValueError
        As for `flops_analytic`.
    """
    layers, whole = decoder_of(config).layers, full_budget(config, image_size)
    full = flops_analytic(config, whole, text_tokens, image_size=image_size, attention=attention)
    paper = flops_paper(config, whole)
    rows = []
    for budget in budgets:
        profile = profile_of(budget, layers, whole)
        alone = min(profile) == max(profile) and 0 < profile[0] < whole
        acting = replace(method, budget=profile[0]) if method is not None and alone else None
        cost = flops_analytic(config, profile, text_tokens, image_size=image_size, attention=attention, method=acting)
        rows.append(
            {
                "budget": sum(profile) / layers,
                "profile": ",".join(f"{tokens}x{len(list(run))}" for tokens, run in itertools.groupby(profile)),
                "equal_budget": equal_flops_budget(config, text_tokens, profile, attention),
                "text_tokens": text_tokens,
                "flops_paper": flops_paper(config, profile),
                "flops_analytic": cost.total,
                "encode": cost.encode,
                "select": cost.select,
                "language_model": cost.language_model,
                "flops_counted": flops_counted(config, profile, text_tokens, image_size=image_size).total
                if counted
                else None,
                "flops_step": flops_analytic_step(config, profile, text_tokens).total,
                "cache_bytes": kv_cache_bytes(config, profile, text_tokens, dtype),
                "saved_paper": 1 - flops_paper(config, profile) / paper,
                "saved_language_model": 1 - cost.language_model / full.language_model,
                "saved_analytic": 1 - cost.total / full.total,
            }
        )
    # Only here, so that costs are counted where there is no pandas.
    import pandas as pd

    return pd.DataFrame(rows).astype({"flops_counted": "Int64"})


def read_config(path: Path) -> tuple[PreTrainedConfig, tuple[int, int] | None]:
    """Read the configuration of a model, without its weights, and the size of its images.

    Parameters
    ----------
    path : Path
        A model folder, a configuration file or a name of `list_architectures`.

    Returns
    -------
    tuple
        The configuration, and height and width in pixels: the processor's, or the tower's without a processor. None
        where images have no fixed size, and for clips.

    Raises
    ------
    FileNotFoundError
        If there is no configuration.
    ValueError
        If the model type is not counted.
    """
    if str(path) in list_architectures():
        path = architecture_file(path)
    if not (path / "config.json" if path.is_dir() else path).is_file():
        known = ", ".join(list_architectures())
        raise FileNotFoundError(
            f"no model in {path}: give a folder with a config.json, a configuration file, or one of {known}"
        )
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    read: Any = AutoConfig.from_pretrained
    load: Any = AutoImageProcessor.from_pretrained
    config = cast(PreTrainedConfig, read(path, **safe))
    decoder_of(config)
    if not has_one_size(config):
        return config, None
    if not any((path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        rows, columns = tower_of(config).pixels[-2:]
        return config, (rows, columns)
    from PIL import Image

    pixels = load(path, **safe)(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    return config, (int(pixels.shape[-2]), int(pixels.shape[-1]))
