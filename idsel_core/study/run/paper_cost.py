"""What the tables of papers would cost, before anything is downloaded: GPU hours, memory, downloads, disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch
from transformers import PreTrainedConfig
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from idsel_core.study.cost import (
    flops_analytic,
    flops_analytic_step,
    flops_prefill,
    full_budget,
    kv_cache_bytes,
    weight_bytes,
)
from idsel_core.study.cost.models import has_one_size
from idsel_core.study.cost.shapes import pair
from idsel_core.study.dataset import FULL
from idsel_core.study.devices import dtype_named
from idsel_core.study.paths import TIMES
from idsel_core.study.run.paper import published, task_size
from idsel_core.study.run.sweeps import Sweep
from idsel_core.study.store.times import Times

_TILES: Final = (1, 12)
"""Fewest and most tiles into which the processor of InternVL cuts an image."""
_BYTES_AN_ANSWER: Final = 200
_BYTES_A_JOB: Final = 60_000
_BYTES_AN_IMAGE: Final = 150_000
"""Guesses: a stored row of an answer, the executed notebook of a job, and a downloaded image."""


@dataclass(frozen=True)
class Rates:
    """How fast a GPU is taken to be.

    Attributes
    ----------
    tflops : float
        TFLOP a second that prefill and vision tower reach.
    bandwidth : float
        GB a second at which a decoding step reads the weights; quantised ones count as if they were whole.
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


def measured_rates(folder: Path = TIMES, **given: Any) -> Rates:
    """Return the rates of the GPU that a store of times was measured on, or assumptions where there is none.

    Parameters
    ----------
    folder : Path
        A store of times. Where it holds several GPUs, the rate is that of the one with the most prefills.
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
    counts = rows["device"].value_counts()
    device, count = str(counts.index[0]), int(counts.iloc[0])
    here = rows[rows["device"] == device]
    rate = (here["flops"] / here["median_ms"] / 1e9).astype(float).median()
    others = f"; also stored, not used: {', '.join(counts.index[1:])}" if len(counts) > 1 else ""
    found: dict[str, Any] = {"tflops": float(rate), "measured": f"{device} ({count} prefills{others})"}
    return Rates(**(found | asked))


def with_questions(sweep: Sweep, limit: int) -> Sweep:
    """Return a sweep whose jobs ask so many questions of each data set; as it is where the limit is 0."""
    return replace(
        sweep, jobs={name: {**job, "questions": limit or job["questions"]} for name, job in sweep.jobs.items()}
    )


def estimate(
    sweep: Sweep,
    rates: Rates,
    tasks: Mapping[str, Mapping[str, int]],
    *,
    image_size: tuple[int, int] = (480, 640),
    text_tokens: int = 64,
) -> list[Share]:
    """Estimate what a sweep costs, one entry a backbone and data set.

    The vision tower runs once an image, for all settings of a backbone and data set. Questions with equal picks that a
    sweep answers once are counted each.

    Parameters
    ----------
    sweep : Sweep
        Of `read_sweep`.
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
    found = []
    for (backbone, data), jobs in _by_data(sweep).items():
        config, parameters = published(backbone)
        read = parameters * _dtype_of(jobs[0]).itemsize
        task = task_size(data, tasks, jobs[0]["questions"])
        size = _size(config, image_size)
        counted = [tokens for job in jobs for tokens in _tokens(job, full_budget(config, size))]
        new = min(rates.answer, task["new_tokens"])
        seconds = sum(_answer_seconds(config, read, n, text_tokens, new, rates) for n in counted)
        tower = flops_analytic(config, 0, 0, image_size=size).encode
        encode = tower / rates.tflops / 1e12 + rates.overhead
        hours = (seconds * task["questions"] + encode * task["images"]) / 3600
        found.append(Share(backbone, data, len(jobs), task["questions"], task["questions"] * len(counted), hours))
    return found


def memory_bytes(
    sweep: Sweep, rates: Rates, image_size: tuple[int, int] = (480, 640), text_tokens: int = 64
) -> dict[str, int]:
    """Return for each backbone the least memory of a GPU: its weights, and the KV cache of a batch with all tokens.

    Of what a grid quantises, the weights are counted at their bits and with their scales; the cache stays in the dtype.
    """
    found = {}
    for backbone, job in _backbones(sweep).items():
        (config, parameters), dtype = published(backbone), _dtype_of(job)
        whole = full_budget(config, _size(config, image_size))
        cache = kv_cache_bytes(config, whole, text_tokens, dtype) * rates.batch
        found[backbone] = weight_bytes(config, parameters, dtype, job.get("quantisation") or None) + cache
    return found


def describe(
    sweep: Sweep,
    shares: Sequence[Share],
    memory: Mapping[str, int],
    rates: Rates,
    tasks: Mapping[str, Mapping[str, int]],
) -> str:
    """Say what a sweep costs, in Markdown."""
    lines = ["| backbone | data | jobs | questions | answers | GPU hours |", "|---|---|---|---|---|---|"]
    for one in shares:
        lines.append(
            f"| {one.backbone} | {one.data} | {one.jobs} | {one.questions} | {one.answers} | {one.hours:.1f} |"
        )
    backbones = [published(backbone) for backbone in _backbones(sweep)]
    weights = sum(parameters * _own_dtype(config).itemsize for config, parameters in backbones)
    kind = next((f" in {job['quantisation']}" for job in sweep.jobs.values() if job.get("quantisation")), "")
    asked = {job["data"]: job["questions"] for job in sweep.jobs.values()}
    images = sum(task_size(data, tasks, questions)["images"] for data, questions in asked.items())
    answers, jobs, hours = (sum(getattr(one, field) for one in shares) for field in ("answers", "jobs", "hours"))
    rows = answers * _BYTES_AN_ANSWER + jobs * _BYTES_A_JOB
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
            f"{sweep.name}: {jobs} jobs of one GPU each, {answers:,} answers, about {hours:.1f} GPU hours.",
            f"Taken for granted: {rates.tflops:.3g} TFLOP/s ({basis}), {rates.bandwidth:g} GB/s, batches of "
            f"{rates.batch}, answers of {rates.answer} tokens, {rates.overhead:g} s a question beside these.",
            f"Memory of the GPU: at least {least / 2**30:.0f} GiB (weights{kind}, and the cache of a batch with all "
            "tokens).",
            f"Downloads: {weights / 2**30:.0f} GiB of weights, about {images * _BYTES_AN_IMAGE / 2**30:.1f} GiB of "
            f"images ({_BYTES_AN_IMAGE // 1000} kB an image assumed); the hub may ask for a login.",
            f"Disk: these, and about {math.ceil(rows / 2**20)} MiB of rows and executed notebooks.",
        ]
    )


def _size(config: PreTrainedConfig, image_size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the size that a processor brings an image to; None where a model brings all to one size."""
    vision: Any = config.vision_config
    if config.model_type == "internvl":
        columns, rows = get_optimal_tiled_canvas(image_size, tile := pair(vision.image_size), *_TILES)
        return rows * tile[0], columns * tile[1]
    if has_one_size(config):
        return None
    step = vision.patch_size * getattr(vision, "spatial_merge_size", 0)
    height, width = (max(1, round(side / step)) * step if step else side for side in image_size)
    return height, width


def _tokens(job: Mapping[str, Any], whole: int) -> list[int]:
    """Return how many visual tokens each setting of a job leaves, of an image that has `whole`."""
    if not job["budgets"]:
        return [whole if job["method"] == FULL else 0]
    budgets = (round(budget * whole) if isinstance(budget, float) else budget for budget in job["budgets"])
    return [min(whole, budget) for budget in budgets]


def _by_data(sweep: Sweep) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """Return the jobs of each backbone and data set."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for job in sweep.jobs.values():
        found.setdefault((job["backbone"], job["data"]), []).append(job)
    return found


def _backbones(sweep: Sweep) -> dict[str, Mapping[str, Any]]:
    """Return one job of each backbone; all of them load it alike."""
    return {job["backbone"]: job for job in sweep.jobs.values()}


def _own_dtype(config: PreTrainedConfig) -> torch.dtype:
    own: Any = config.dtype or torch.float16
    return own


def _dtype_of(job: Mapping[str, Any]) -> torch.dtype:
    """Return the type of the weights that a job asks for; the checkpoint's own where a grid leaves it open."""
    return _own_dtype(published(job["backbone"])[0]) if job["dtype"] == "auto" else dtype_named(job["dtype"])


def _answer_seconds(
    config: PreTrainedConfig, weights: int, tokens: int, text_tokens: int, new_tokens: int, rates: Rates
) -> float:
    """Return the seconds of one answer, of which each token but the first reads the weights, so many bytes."""
    prefill = flops_prefill(config, tokens, text_tokens).total / rates.tflops / 1e12
    step = max(
        flops_analytic_step(config, tokens, text_tokens).total / rates.tflops / 1e12,
        weights / rates.bandwidth / 1e9 / rates.batch,
    )
    return prefill + (new_tokens - 1) * step + rates.overhead
