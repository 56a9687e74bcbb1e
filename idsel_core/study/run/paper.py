"""The tables of papers as grids in config/paper, and what each would cost before anything is downloaded."""

from __future__ import annotations

import csv
import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
import yaml
from transformers import PreTrainedConfig

from idsel_core.loading.random_models import CONFIGS, read_architecture
from idsel_core.study.cost import flops_analytic, flops_analytic_step, flops_prefill, full_budget, kv_cache_bytes
from idsel_core.study.cost.models import has_one_size
from idsel_core.study.cost.shapes import pair
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.knobs import build_method, knob_types
from idsel_core.study.paths import PROJECT, TIMES
from idsel_core.study.run.notebook_runner import load_parameters
from idsel_core.study.store.times import Times

TABLES: Final = PROJECT / "config/paper"
"""Folder of the tables, one grid a file, and of what is known of the tasks."""

_GRID: Final = {"backbone", "data", "split", "method", "budget", "questions", "device", "dtype", "batch"}
"""Keys of a grid that are no knobs of methods."""
_BYTES_AN_ANSWER: Final = 200
_BYTES_AN_IMAGE: Final = 150_000
"""Guesses: a stored row of an answer, and a downloaded image."""


@dataclass(frozen=True)
class Rates:
    """How fast a GPU is taken to be.

    Attributes
    ----------
    tflops : float
        TFLOP a second that prefill and vision tower reach.
    bandwidth : float
        GB a second at which a decoding step reads the weights.
    batch : int
        Prompts at a time.
    answer : int
        Tokens that an answer has, at most those that its task allows.
    overhead : float
        Seconds a question that neither explains: preprocessing, Python.
    measured : str
        On what `tflops` was measured; "" if it is an assumption.
    """

    tflops: float = 100.0
    bandwidth: float = 1000.0
    batch: int = 8
    answer: int = 8
    overhead: float = 0.03
    measured: str = ""


@dataclass(frozen=True)
class Share:
    """What one backbone costs on one data set, all settings together.

    Attributes
    ----------
    backbone, data : str
        As the grid names them.
    jobs, questions, answers : int
        Jobs of the sweep; questions of the data set; answers of all settings.
    hours : float
        GPU hours.
    """

    backbone: str
    data: str
    jobs: int
    questions: int
    answers: int
    hours: float


def list_tables(folder: Path = TABLES) -> dict[str, str]:
    """Return the name of each table and what it is, the first comment of its file."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text().split("\n", 1)[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def table_file(name: str, folder: Path = TABLES) -> Path:
    """Return the file of a table.

    Raises
    ------
    ValueError
        If there is none of this name; names those that there are.
    """
    known = list(list_tables(folder))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"no table {name!r}{hint} there are {', '.join(known) or 'none'}")
    return folder / f"{name}.yaml"


def read_grid(path: Path, limit: int = 0) -> dict[str, Any]:
    """Read a table's grid, each of its axes as a list, and check its methods.

    Parameters
    ----------
    path : Path
        Of `table_file`.
    limit : int
        Ask so many questions of each data set; 0 leaves what the grid says.

    Raises
    ------
    ValueError
        If a key is unknown, or a method or knob is not allowed.
    """
    grid = load_parameters(path)
    axes = {name: value if isinstance(value, list) else [value] for name, value in grid.items()}
    if limit:
        axes["questions"] = [limit]
    for setting in _settings(axes):
        if setting["method"] not in (FULL, BLIND):
            try:
                build_method(setting["method"], {"budget": setting["budget"], **setting["knobs"]})
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    known = _GRID.union(*(_knobs_of(method) for method in axes["method"]))
    unknown = sorted(set(axes) - known)
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return axes


def _knobs_of(method: str) -> set[str]:
    return set() if method in (FULL, BLIND) else set(knob_types(method))


def _settings(axes: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Return each method with its knobs and one budget, with the number of the job that asks it."""
    found, job = [], 0
    for method in axes["method"]:
        own = {name: values for name, values in axes.items() if name not in _GRID and name in _knobs_of(method)}
        for values in itertools.product(*own.values()):
            for budgets in axes["budget"] if method not in (FULL, BLIND) else [None]:
                for budget in budgets if isinstance(budgets, list) else [budgets]:
                    knobs = dict(zip(own, values, strict=True))
                    found.append({"method": method, "knobs": knobs, "budget": budget, "job": job})
                job += 1
    return found


def read_tasks(folder: Path = TABLES) -> dict[str, dict[str, int]]:
    """Return questions, images and most tokens of an answer for the tasks that are known."""
    with (folder / "tasks.csv").open(newline="") as file:
        return {row.pop("task"): {name: int(text) for name, text in row.items()} for row in csv.DictReader(file)}


def published_models() -> list[dict[str, str]]:
    """Return the name, checkpoint and number of parameters of the models whose configuration comes with the package."""
    with (CONFIGS / "published.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def published(backbone: str) -> tuple[PreTrainedConfig, int]:
    """Return the configuration and the number of parameters of a published checkpoint, without a download.

    Raises
    ------
    ValueError
        If its configuration does not come with the package.
    """
    rows = {row["checkpoint"]: row for row in published_models()}
    if backbone not in rows:
        raise ValueError(f"the sizes of {backbone} are not known here; known are {', '.join(rows)}")
    return read_architecture(rows[backbone]["name"]), int(rows[backbone]["parameters"])


def measured_rates(folder: Path = TIMES, **given: Any) -> Rates:
    """Return the rates of the GPU that a store of times was measured on, or assumptions where there is none.

    Parameters
    ----------
    folder : Path
        A store of times.
    **given
        Fields of `Rates` that are set by hand; they win.
    """
    times = Times(folder)
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "tflops" in asked or not times.jobs():
        return Rates(**asked)
    rows = pd.concat([times.frame(job) for job in times.jobs()], ignore_index=True)
    rows = rows[(rows["phase"] == "prefill") & (rows["device"] != "cpu") & rows["flops"].notna()]
    if rows.empty:
        return Rates(**asked)
    rate = (rows["flops"] / rows["median_ms"] / 1e9).astype(float).median()
    found: dict[str, Any] = {"tflops": float(rate), "measured": f"{rows['device'].iloc[0]} ({len(rows)} prefills)"}
    return Rates(**(found | asked))


def estimate(
    axes: Mapping[str, list[Any]],
    rates: Rates,
    tasks: Mapping[str, Mapping[str, int]],
    *,
    image_size: tuple[int, int] = (480, 640),
    text_tokens: int = 64,
) -> list[Share]:
    """Estimate what a grid costs, one entry a backbone and data set.

    The vision tower runs once an image, for all settings of a backbone and data set. Questions with equal picks that a
    sweep answers once are counted each.

    Parameters
    ----------
    axes : Mapping
        Of `read_grid`.
    rates : Rates
        How fast the GPU is.
    tasks : Mapping
        Of `read_tasks`.
    image_size : tuple[int, int]
        Height and width that images are taken to have, where a model does not bring all to one size.
    text_tokens : int
        Text tokens that prompts are taken to have.

    Raises
    ------
    ValueError
        If a backbone or data set is not known.
    """
    settings, found = _settings(axes), []
    jobs = len({setting["job"] for setting in settings})
    for backbone, data in itertools.product(axes["backbone"], axes["data"]):
        config, parameters = published(backbone)
        task = _task(data, tasks, _one(axes, "questions", 0))
        whole = full_budget(config, _size(config, image_size))
        counted = [_tokens(setting, whole) for setting in settings]
        new = min(rates.answer, task["new_tokens"])
        seconds = sum(_answer_seconds(config, parameters, n, text_tokens, new, rates) for n in counted)
        tower = flops_analytic(config, 0, 0, image_size=_size(config, image_size)).encode
        encode = tower / rates.tflops / 1e12 + rates.overhead
        hours = (seconds * task["questions"] + encode * task["images"]) / 3600
        found.append(Share(backbone, data, jobs, task["questions"], task["questions"] * len(settings), hours))
    return found


def memory_bytes(
    axes: Mapping[str, list[Any]], rates: Rates, image_size: tuple[int, int] = (480, 640), text_tokens: int = 64
) -> dict[str, int]:
    """Return for each backbone the least memory of a GPU: its weights, and the KV cache of a batch with all tokens."""
    dtype = getattr(torch, _one(axes, "dtype", "float16"))
    found = {}
    for backbone in axes["backbone"]:
        config, parameters = published(backbone)
        whole = full_budget(config, _size(config, image_size))
        cache = kv_cache_bytes(config, whole, text_tokens, dtype) * rates.batch
        found[backbone] = parameters * dtype.itemsize + cache
    return found


def describe(
    name: str, axes: Mapping[str, list[Any]], shares: Sequence[Share], memory: Mapping[str, int], rates: Rates
) -> str:
    """Say what a table costs, in Markdown."""
    lines = ["| backbone | data | jobs | questions | answers | GPU hours |", "|---|---|---|---|---|---|"]
    for one in shares:
        lines.append(
            f"| {one.backbone} | {one.data} | {one.jobs} | {one.questions} | {one.answers} | {one.hours:.1f} |"
        )
    dtype = getattr(torch, _one(axes, "dtype", "float16"))
    weights = sum(published(backbone)[1] * dtype.itemsize for backbone in axes["backbone"])
    tasks = read_tasks()
    images = sum(_task(data, tasks, _one(axes, "questions", 0))["images"] for data in axes["data"])
    answers, jobs, hours = (sum(getattr(one, field) for one in shares) for field in ("answers", "jobs", "hours"))
    rows = answers * _BYTES_AN_ANSWER + jobs * 60_000
    least = max(memory.values())
    basis = (
        f"as measured on {rates.measured}"
        if rates.measured
        else "an assumption: give --tflops, or measure with `idsel paper efficiency`"
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{name}: {jobs} jobs of one GPU each, {answers:,} answers, about {hours:.1f} GPU hours.",
            f"Taken for granted: {rates.tflops:.3g} TFLOP/s ({basis}), {rates.bandwidth:g} GB/s, batches of "
            f"{rates.batch}, answers of {rates.answer} tokens, {rates.overhead:g} s a question beside these.",
            f"Memory of the GPU: at least {least / 2**30:.0f} GiB (weights, and the cache of a batch with all tokens).",
            f"Downloads: {weights / 2**30:.0f} GiB of weights, about {images * _BYTES_AN_IMAGE / 2**30:.1f} GiB of "
            f"images ({_BYTES_AN_IMAGE // 1000} kB an image assumed); the hub may ask for a login.",
            f"Disk: these, and about {math.ceil(rows / 2**20)} MiB of rows and executed notebooks.",
        ]
    )


def limited(path: Path, axes: Mapping[str, list[Any]], limit: int, folder: Path = Path(".cache/paper")) -> Path:
    """Write a grid with fewer questions under a name of its own, so that its rows stay apart, and return its path."""
    if not limit:
        return path
    grid = load_parameters(path) | {"questions": limit}
    target = folder / f"{path.stem}-{limit}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# {limit} questions of each data set of {path}\n" + yaml.safe_dump(grid, sort_keys=False))
    return target


def _one(axes: Mapping[str, list[Any]], name: str, default: Any) -> Any:
    return axes.get(name, [default])[0]


def _task(data: str, tasks: Mapping[str, Mapping[str, int]], limit: int) -> dict[str, int]:
    name = data.removeprefix("lmms:")
    if name not in tasks:
        raise ValueError(
            f"the size of {data} is not known; add it to config/paper/tasks.csv, which has {', '.join(tasks)}"
        )
    task = dict(tasks[name])
    if limit:
        task["questions"] = min(limit, task["questions"])
        task["images"] = min(limit, task["images"])
    return task


def _size(config: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size that a processor brings an image to; None where a model brings all to one size."""
    vision: Any = config.vision_config
    if config.model_type == "internvl":
        return _tiled(image_size, pair(vision.image_size))
    if has_one_size(config):
        return None
    step = vision.patch_size * getattr(vision, "spatial_merge_size", 0)
    height, width = (max(1, round(side / step)) * step if step else side for side in image_size)
    return height, width


def _tiled(image_size: tuple[int, int], tile: tuple[int, int], most: int = 12) -> tuple[int, int]:
    """Return the size of the grid of tiles whose sides are nearest to an image's, as InternVL chooses it."""
    height, width = image_size
    grids = sorted(
        ((rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)),
        key=lambda grid: grid[0] * grid[1],
    )
    best = min(grids, key=lambda grid: abs(grid[0] / grid[1] - height / width))
    for rows, columns in grids:
        large = height * width > 0.5 * tile[0] * tile[1] * rows * columns
        if rows * best[1] == best[0] * columns and large:
            best = (rows, columns)
    return best[0] * tile[0], best[1] * tile[1]


def _tokens(setting: Mapping[str, Any], whole: int) -> int:
    if setting["method"] in (FULL, BLIND):
        return whole if setting["method"] == FULL else 0
    budget = setting["budget"]
    return min(whole, round(budget * whole) if isinstance(budget, float) else budget)


def _answer_seconds(
    config: PreTrainedConfig, parameters: int, tokens: int, text_tokens: int, new_tokens: int, rates: Rates
) -> float:
    prefill = flops_prefill(config, tokens, text_tokens).total / rates.tflops / 1e12
    step = max(
        flops_analytic_step(config, tokens, text_tokens).total / rates.tflops / 1e12,
        2 * parameters / rates.bandwidth / 1e9 / rates.batch,
    )
    return prefill + (new_tokens - 1) * step + rates.overhead
