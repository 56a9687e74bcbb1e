"""Time encoding, selection, prefill and decoding apart, on the device at hand and in the current process.

Print a table from the command line, for noise images and prompts of random words:

    python -m idsel_core.latency --budgets 576 64 16 --method idselection --runs 10

Published models are timed by their names, with random weights and without a download:

    python -m idsel_core.latency --model llava-1.5-7b --device cuda --budgets 576 64
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from idsel_core.architectures import build_random, list_architectures
from idsel_core.backbones import Backbone, Encoded, adapter_for
from idsel_core.backbones.layers import dropping, following
from idsel_core.backbones.sequence import cache_in, with_cache
from idsel_core.cost import METHODS, flops_analytic, flops_analytic_step, full_budget, read_config
from idsel_core.cost.models import tower_of
from idsel_core.cost.shapes import SIZE_HELP, Size, pair, size_given
from idsel_core.devices import check_device
from idsel_core.evaluation import load_model, title
from idsel_core.methods import Method, UniformGrid, drops_inside, get_method
from idsel_core.paths import MODEL
from idsel_core.pruning import prune

_Passes = dict[Any, tuple[Encoded, float, int | None]]
_PHASES = ("encode", "select", "prefill", "decode")
FULL, IDEAL, WHOLE = "full", "ideal", "end to end"


@dataclass(frozen=True)
class Timing:
    """Wall time of one phase of answering a batch of prompts, on the device and in the process that measured it.

    Attributes
    ----------
    method : str
        What selected: a method's name; "full" where nothing was dropped, "ideal" for a prompt cut by hand.
    budget : float, optional
        What the method was asked for; None if nothing.
    convention : str, optional
        What a budget means for a method that drops tokens inside the language model.
    phase : str
        "encode": pixels to projector output. "select": scores, selection and the cut of the prompts, and all choices
        inside the language model. "prefill": the shortened prompts to the first token. "decode": one further token,
        mean over those of a run. "end to end": all of ``generate``.
    median_ms, low_ms, high_ms : float
        Median and quartiles over runs, milliseconds for the whole batch.
    runs, warmup : int
        Runs that were measured, and those before them that were not.
    batch, images : int
        Prompts, and images in them.
    tokens_before, kept_tokens : int
        The most visual tokens of an image, before and after all that was dropped.
    average_tokens : float
        The most visual tokens of an image that layers of the language model read, mean over them.
    prompt_tokens : int
        Columns of the shortened prompts.
    new_tokens : int
        Tokens decoded in a run, beside the first one.
    flops : int, optional
        Analytic FLOPs of the phase, see `idsel_core.cost`; None where they are not known.
    cache_bytes : int, optional
        Keys and values that the prefill left.
    peak_bytes : int, optional
        The most memory that tensors took on the device during the phase, the model's own among them; None on a CPU,
        where torch does not say it.
    over_ideal, over_full : float, optional
        Median over runs of the time as a multiple of the ideal's, and of the full prompt's, in the same turn; of "end
        to end" alone.
    attention : str
        Attention implementation of the phase's model: the vision tower for "encode", else the language model.
    device, dtype : str
        Where and in what the model ran.
    threads : int
        CPU threads of torch.
    torch, transformers : str
        Their versions.
    """

    method: str
    budget: float | None
    convention: str | None
    phase: str
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int
    batch: int
    images: int
    tokens_before: int
    kept_tokens: int
    average_tokens: float
    prompt_tokens: int
    new_tokens: int
    flops: int | None
    cache_bytes: int | None
    peak_bytes: int | None
    over_ideal: float | None
    over_full: float | None
    attention: str
    device: str
    dtype: str
    threads: int
    torch: str = torch.__version__
    transformers: str = transformers.__version__


@dataclass(frozen=True)
class _Lap:
    """What one run through all phases took and left."""

    milliseconds: list[float]
    peaks: list[int | None]
    columns: int
    images: int
    before: int
    layers: list[int]
    cache_bytes: int | None = None
    flops: Mapping[str, int] = field(default_factory=dict)


def time_phases(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None = None,
    *,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
) -> list[Timing]:
    """Time the phases of one method; arguments and result as of `time_methods`."""
    return time_methods(backbone, inputs, [method], runs=runs, warmup=warmup, new_tokens=new_tokens)


@torch.no_grad()
def time_methods(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    methods: Sequence[Method | None],
    *,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[Timing]:
    """Time encoding, selection, prefill and decoding apart, as `prune` does them around ``generate``.

    All methods take turns, so that whatever else the machine does meets all of them alike. Each turn goes through all
    phases once; methods share the pass of the tower that they would run alike. Work that was queued on a device is
    waited for at the end of each.

    Parameters
    ----------
    backbone : Backbone
        As `load_model` returns it, or `adapter_for`.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` with ``input_ids`` and ``pixel_values``, or what stands for them, on the model's
        device.
    methods : sequence of Method or None
        What selects; where it is None all tokens are kept and no "select" is returned.
    runs, warmup : int
        Turns to measure, and before them turns to leave out.
    new_tokens : int
        Tokens to decode in a turn, after the first one, which the prefill gives.
    progress : Callable
        Called after each turn with the turns that are done and all of them.

    Returns
    -------
    list[Timing]
        One for each method and phase; ``pandas.DataFrame`` makes a table of it.

    Raises
    ------
    ValueError
        If a number is too small, `inputs` lack the prompt or the image, or a method cannot be had on this backbone.
    """
    _check(backbone, inputs, runs, warmup, new_tokens)
    laps: list[list[_Lap]] = [[] for _ in methods]
    for turn in range(warmup + runs):
        passes: _Passes = {}
        for number, method in enumerate(methods):
            laps[number].append(_lap(backbone, inputs, method, new_tokens, passes))
        progress(turn + 1, warmup + runs)
    timings = []
    for method, taken in zip(methods, laps, strict=True):
        whole = _timing(backbone, inputs, method, runs, warmup, new_tokens, taken[-1])
        flops = _flops(backbone, inputs, method, taken[-1].layers, new_tokens)
        for place, phase in enumerate(_PHASES):
            if method is None and phase == "select":
                continue
            vision = phase == "encode"
            timings.append(
                replace(
                    whole,
                    phase=phase,
                    flops=flops.get(phase),
                    **_quartiles([lap.milliseconds[place] for lap in taken[warmup:]]),
                    peak_bytes=_largest(lap.peaks[place] for lap in taken[warmup:]),
                    attention=_attention(backbone, vision),
                )
            )
    return timings


@torch.no_grad()
def time_ideal(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method,
    *,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
) -> list[Timing]:
    """Time ``generate`` whole, under `prune`, against a prompt that was cut by hand and against the full one.

    The three take turns. By hand means: the same tower pass, then the rows of the tokens that `method` had chosen
    beforehand, in a prompt that was shortened beforehand; nothing selects, and no hook runs.

    Parameters
    ----------
    backbone, inputs, runs, warmup, new_tokens
        As for `time_methods`.
    method : Method
        What selects before the language model.

    Returns
    -------
    list[Timing]
        "end to end" of the method, of "ideal" and of "full", all with the method's budget.

    Raises
    ------
    ValueError
        As of `time_methods`, or if there is no prompt to cut by hand: the method drops tokens inside the language
        model or makes the image smaller, positions have several axes, or the model gives no features by themselves.
    """
    _check(backbone, inputs, runs, warmup, new_tokens)
    if drops_inside(method):
        raise ValueError(f"{method.name} drops tokens inside the language model: no shorter prompt is like it")
    if backbone.position_axes > 1:
        raise ValueError("a prompt cannot be cut by hand where positions have several axes")
    model: Any = backbone.model
    if not hasattr(backbone.core, "get_image_features"):
        raise ValueError(f"a prompt cannot be cut by hand: {type(model).__name__} has no get_image_features")
    images = backbone.image_arguments(inputs)
    if backbone.wanted_grid(method, **images) is not None and method.name == "downsample":
        raise ValueError(f"{method.name} makes the image smaller: no shorter prompt is like it")
    tokens = backbone.visual_tokens(
        backbone.encode(depths=method.depths, **images), inputs["input_ids"], inputs.get("attention_mask")
    )
    selection = method.select(tokens)
    short = backbone.shorten(inputs, tokens, selection)
    del short["mm_encoder_outputs"]
    lengths = tokens.lengths.tolist()
    rows, given = selection.rows(), {name: images[name] for name in images if name != "tiles"}
    options: dict[str, Any] = {"max_new_tokens": new_tokens + 1, "min_new_tokens": new_tokens + 1, "do_sample": False}
    wrap: Any = BaseModelOutputWithPooling

    def ideal() -> None:
        output = backbone.core.get_image_features(**given, return_dict=True).pooler_output
        features = torch.split(torch.cat([part.flatten(0, -2) for part in output]), lengths)
        kept = [part[picks] for part, picks in zip(features, rows, strict=True)]
        with backbone.reading():
            model.generate(**short, mm_encoder_outputs={"image": wrap(pooler_output=kept)}, **options)

    def pruned() -> None:
        with prune(model, method):
            model.generate(**inputs, **options)

    contestants: dict[str, Callable[[], object]] = {
        method.name: pruned,
        IDEAL: ideal,
        FULL: lambda: model.generate(**inputs, **options),
    }
    taken: dict[str, list[tuple[float, int | None]]] = {name: [] for name in contestants}
    for _ in range(warmup + runs):
        for name, run in contestants.items():
            start = _begin(model.device)
            run()
            taken[name].append((1e3 * (_now(model.device) - start), _peak(model.device)))
    timings = []
    clock = {name: np.array([ms for ms, _ in measured[warmup:]]) for name, measured in taken.items()}
    for name, measured in taken.items():
        acting = None if name == FULL else method
        prompt = (inputs if acting is None else short)["input_ids"]
        count = max(lengths) if acting is None else int(selection.counts.max())
        layers = [count] * backbone.decoder_layers
        lap = _Lap([], [], prompt.shape[1], len(tokens), max(lengths), layers)
        flops = _flops(backbone, inputs, None if name == IDEAL else acting, layers, new_tokens)
        timings.append(
            replace(
                _timing(backbone, inputs, method, runs, warmup, new_tokens, lap),
                method=name,
                phase=WHOLE,
                **_quartiles(clock[name].tolist()),
                flops=flops.get(WHOLE),
                peak_bytes=_largest(peak for _, peak in measured[warmup:]),
                over_ideal=float(np.median(clock[name] / clock[IDEAL])),
                over_full=float(np.median(clock[name] / clock[FULL])),
            )
        )
    return timings


@torch.no_grad()
def runnable(
    backbone: Backbone, inputs: Mapping[str, Any], methods: Iterable[Method]
) -> tuple[list[Method], dict[str, str]]:
    """Try each method once, and tell those that can run here from those that cannot, and why.

    Parameters
    ----------
    backbone, inputs
        As for `time_methods`.
    methods : iterable of Method
        Methods, each with its budget.
    """
    usable: list[Method] = []
    refused: dict[str, str] = {}
    passes: _Passes = {}
    for method in methods:
        try:
            _lap(backbone, inputs, method, 1, passes)
            usable.append(method)
        except ValueError as error:
            refused[f"{title(method)} at {method.budget:g}"] = str(error)
    return usable, refused


def _check(backbone: Backbone, inputs: Mapping[str, Any], runs: int, warmup: int, new_tokens: int) -> None:
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0), ("new_tokens", new_tokens, 1)):
        _check_int(name, value, least)
    missing = ["input_ids"] if inputs.get("input_ids") is None else []
    if all(inputs.get(name) is None for name in backbone.pixel_inputs):
        missing.append(backbone.pixel_inputs[0])
    if missing:
        raise ValueError(f"inputs lack {' and '.join(missing)}")


def _timing(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None,
    runs: int,
    warmup: int,
    new_tokens: int,
    lap: _Lap,
) -> Timing:
    """Return all that timings of a method share."""
    model = backbone.model
    return Timing(
        method=FULL if method is None else method.name,
        budget=None if method is None else float(method.budget),
        convention=method.budget_convention if drops_inside(method) else None,
        phase="",
        median_ms=0,
        low_ms=0,
        high_ms=0,
        runs=runs,
        warmup=warmup,
        batch=len(inputs["input_ids"]),
        images=lap.images,
        tokens_before=lap.before,
        kept_tokens=lap.layers[-1],
        average_tokens=sum(lap.layers) / len(lap.layers),
        prompt_tokens=lap.columns,
        new_tokens=new_tokens,
        flops=None,
        cache_bytes=lap.cache_bytes,
        peak_bytes=None,
        over_ideal=None,
        over_full=None,
        attention=_attention(backbone, vision=False),
        device=_device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _attention(backbone: Backbone, vision: bool) -> str:
    config = backbone.model.config
    tower = getattr(config, "vision_config", None) or config.audio_config
    return str((tower if vision else config.get_text_config())._attn_implementation)


def _quartiles(milliseconds: Sequence[float]) -> dict[str, Any]:
    low, median, high = np.percentile(milliseconds, [25, 50, 75]).tolist()
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def _largest(peaks: Iterable[int | None]) -> int | None:
    known = [peak for peak in peaks if peak is not None]
    return max(known) if known else None


def _encode(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method, passes: _Passes
) -> tuple[Encoded, float, int | None]:
    """Return what a method reads of the tower as if nothing of it had been read before, with milliseconds and peak.

    Methods that need the same pass of the tower find it in `passes`.
    """
    images = backbone.image_arguments(inputs)
    grid, device = backbone.wanted_grid(method, **images), backbone.model.device
    key = (grid, frozenset(method.depths))
    if key not in passes:
        start = _begin(device)
        encoded = backbone.encode(grid=grid, depths=method.depths, **images)
        passes[key] = (encoded, 1e3 * (_now(device) - start), _peak(device))
    encoded, milliseconds, peak = passes[key]
    views: Mapping[str, Any] = encoded.views
    return replace(encoded, views={name: view.__wrapped__ for name, view in views.items()}), milliseconds, peak


def _lap(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None,
    new_tokens: int,
    passes: _Passes,
) -> _Lap:
    """Go through all phases once, apart from the tower if its pass is at hand."""
    model = backbone.model
    acting = UniformGrid(1.0) if method is None else method
    encoded, encode_ms, encode_peak = _encode(backbone, inputs, acting, passes)
    marks, peaks = [_begin(model.device)], [encode_peak]

    def lap() -> None:
        peaks.append(_peak(model.device))
        marks.append(_begin(model.device))

    tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs.get("attention_mask"))
    selection = acting.select(tokens)
    short = backbone.shorten(inputs, tokens, selection)
    lap()
    mask = short.get("attention_mask")
    mask = torch.ones_like(short["input_ids"]) if mask is None else mask
    short["attention_mask"] = mask
    if short.get("position_ids") is None:
        short["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with backbone.reading(), dropping(backbone, acting, tokens, selection, short) as passage:
        output = model(**short, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    lap()
    cache, places = cache_in(output), short["position_ids"]
    cache_bytes = sum(held.nbytes for layer in cache.layers for held in (layer.keys, layer.values))
    given = with_cache(model, cache)
    with following(backbone, cache):
        for _ in range(new_tokens):
            mask, places = torch.cat([mask, torch.ones_like(token)], 1), places[..., -1:] + 1
            output = model(input_ids=token, attention_mask=mask, position_ids=places, use_cache=True, **given)
            token = output.logits[:, -1:].argmax(-1)
    lap()
    milliseconds = [encode_ms, *(1e3 * (after - before) for before, after in itertools.pairwise(marks))]
    inside = sum(drop.milliseconds for drop in passage.drops)
    milliseconds[1] += inside
    milliseconds[2] -= inside
    milliseconds[3] /= new_tokens
    return _Lap(
        milliseconds,
        peaks,
        columns=short["input_ids"].shape[1],
        images=len(tokens),
        before=int((tokens.lengths if tokens.placeholders is None else tokens.placeholders).max()),
        layers=passage.layers.amax(0).tolist(),
        cache_bytes=cache_bytes,
    )


def _flops(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method | None, layers: list[int], new_tokens: int
) -> dict[str, int]:
    """Return the FLOPs of a batch by phase, as far as they are known.

    There are none where prompts or images differ, or where a prompt has another number of images than one.
    """
    config, ids, mask = backbone.model.config, inputs["input_ids"], inputs.get("attention_mask")
    visual = backbone.placeholders(ids).sum(1)
    if bool((visual != visual[0]).any()) or (mask is not None and not bool(mask.all())):
        return {}
    batch, text = len(ids), ids.shape[1] - int(visual[0])
    try:
        if int(visual[0]) != full_budget(config, _image_size(backbone, inputs, None)):
            return {}
        size = _image_size(backbone, inputs, method)
        counted = method if method is not None and type(method) in METHODS else None
        cost = flops_analytic(config, layers, text, image_size=size, method=counted)
        steps = [flops_analytic_step(config, layers, text + step).total for step in range(new_tokens)]
    except ValueError:
        return {}
    known = {"encode": cost.encode, "prefill": cost.language_model, "decode": sum(steps) // new_tokens}
    if method is None or counted is not None:
        known |= {"select": cost.select, WHOLE: cost.total + sum(steps)}
    return {phase: batch * flops for phase, flops in known.items()}


def _image_size(backbone: Backbone, inputs: Mapping[str, Any], method: Method | None) -> Size:
    """Return height and width of the first image, pixels, as a method wants it, or mel frames of the first clip.

    Raises
    ------
    ValueError
        If there is none, but a video.
    """
    if inputs.get("feature_attention_mask") is not None:
        return int(inputs["feature_attention_mask"][0].sum())
    pixels = backbone.image_arguments(inputs).get("pixel_values")
    if pixels is None:
        raise ValueError("inputs hold no image")
    patch = pair(backbone.model.config.vision_config.patch_size)
    if inputs.get("image_sizes") is not None:
        rows, columns = inputs["image_sizes"][0].tolist()
        return rows, columns
    grid = None if method is None else backbone.wanted_grid(method, **backbone.image_arguments(inputs))
    if inputs.get("image_grid_thw") is not None:
        grid = inputs["image_grid_thw"][0, 1:].tolist()
    if grid is None:
        rows, columns = pixels.shape[-2:]
        tiles = pixels.shape[:-3].numel() // len(inputs["input_ids"])
        # The last of several tiles is a thumbnail.
        return rows, columns * max(1, tiles - 1)
    return grid[0] * patch[0], grid[1] * patch[1]


def _begin(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return _now(device)


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def example_inputs(
    config: PreTrainedConfig, text_tokens: int, image_size: Size | None = None, batch: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Return prompts of random words, each around one image, or clip, of noise.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a model that `idsel_core.cost` knows.
    text_tokens : int
        Words of a prompt, 2 or more: one before the image, the others behind it. Tiles have no words between them.
    image_size : int or tuple[int, int], optional
        Height and width, pixels, or mel frames; by default the tower's own, where images have one size, or the longest
        clip.
    batch : int
        Prompts.
    seed : int
        Of words and noise.

    Raises
    ------
    TypeError, ValueError
        If the model is not counted, has no images of this size, or a number is too small.
    """
    _check_int("text_tokens", text_tokens, 2)
    _check_int("batch", batch, 1)
    model: Any = config
    tower, sound = tower_of(config, image_size), getattr(model, "audio_token_id", None)
    image = int(model.image_token_id if sound is None else sound)
    generator = torch.Generator().manual_seed(seed)
    marks = {image, int(getattr(model, "video_token_id", None) or image)}
    words = torch.randint(model.get_text_config().vocab_size - len(marks), (batch, text_tokens), generator=generator)
    for mark in sorted(marks):
        words += (words >= mark).long()
    ids = torch.cat([words[:, :1], torch.full((batch, tower.visual), image), words[:, 1:]], 1)
    pixels = torch.randn(batch * tower.pixels[0], *tower.pixels[1:], generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), tower.name: pixels}
    inputs |= {name: torch.tensor(rows).repeat(batch, 1) for name, rows in tower.beside.items()}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == image).int()
    if model.model_type in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (ids == image).long() * (model.model_type == "gemma3")
    return inputs


def circumstances(timing: Timing) -> str:
    """Say on what and how a time was measured."""
    return (
        f"{timing.device}, {timing.threads} threads, {timing.dtype}, {timing.attention} attention, batch "
        f"{timing.batch}, median of {timing.runs} runs, torch {timing.torch}, transformers {timing.transformers}"
    )


_SHOWN = (
    "method", "phase", "median_ms", "low_ms", "high_ms", "kept_tokens", "prompt_tokens", "flops", "cache_bytes",
    "peak_bytes",
)  # fmt: skip


def _check_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of {least} or more, not {value!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help="model folder (default: %(default)s), or for random weights of full size one of "
        f"{', '.join(list_architectures())}, or a configuration file",
    )
    parser.add_argument("--dtype", help="torch dtype of random weights (default: bfloat16)", default="bfloat16")
    parser.add_argument("--budgets", type=int, nargs="+", metavar="TOKENS", help="visual tokens (default: all and 64)")
    parser.add_argument("--method", default="idselection", help="what selects below all tokens (default: %(default)s)")
    parser.add_argument("--text", type=int, default=64, help="text tokens of a prompt (default: %(default)s)")
    parser.add_argument("--image-size", type=int, nargs="+", metavar="PIXELS", help=SIZE_HELP)
    parser.add_argument("--batch", type=int, default=1, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--new", type=int, default=8, help="tokens to decode in a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=10, help="runs that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="runs before them (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    given = _parser().parse_args(arguments)
    try:
        config, own = read_config(given.model)
        size = size_given(given.image_size) or own
        inputs = example_inputs(config, given.text, size, given.batch)
        whole = tower_of(config, size).visual
        budgets = given.budgets or [whole, 64]
        methods = [None if budget == whole else get_method(given.method, budget=budget) for budget in budgets]
        if given.model.is_dir():
            backbone, _ = load_model(given.model, given.device)
        else:
            check_device(given.device)
            backbone = adapter_for(build_random(config, getattr(torch, given.dtype, given.dtype), given.device))
        inputs = {name: tensor.to(given.device) for name, tensor in inputs.items()}
        timings = time_methods(backbone, inputs, methods, runs=given.runs, warmup=given.warmup, new_tokens=given.new)
        print(f"{given.model}: {circumstances(timings[0])}\n")
        shown = pd.DataFrame(timings)[list(_SHOWN)].dropna(axis="columns", how="all")
        print(shown.round(3).to_string(index=False))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
