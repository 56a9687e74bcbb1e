"""Time encoding, selection, prefill and decoding apart, on the device at hand and in the current process.

Print a table from the command line, for noise images and prompts of random words:

    idsel time --budgets 576 64 16 --method idselection --runs 10

Published models are timed by their names, with random weights and without a download:

    idsel time --model llava-1.5-7b --device cuda --budgets 576 64
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from idsel_core.backbones import Backbone, Encoded
from idsel_core.backbones._shared.caches import cache_in, with_cache
from idsel_core.backbones.in_llm.hooks import following
from idsel_core.methods import Method, UniformGrid, drops_inside
from idsel_core.pruning.pipeline import encode_images, read_tokens, select_tokens, shorten_call
from idsel_core.study.asked_methods import title
from idsel_core.study.ends import FULL
from idsel_core.study.refusals import is_refusal
from idsel_core.study.timing.clock import begin, device_name, largest, now, peak_memory, quartiles
from idsel_core.study.timing.example_inputs import check_int
from idsel_core.study.timing.flops import phase_flops
from idsel_core.study.timing.records import Timing

_Passes = dict[Any, tuple[Encoded, float, int | None]]
_PHASES = ("encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class Lap:
    """What one run through all phases took and left."""

    milliseconds: list[float]
    peaks: list[int | None]
    columns: int
    images: int
    before: int
    layers: list[int]
    cache_bytes: int | None = None
    flops: Mapping[str, int] = field(default_factory=dict)


@torch.no_grad()
def time_methods(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    methods: Sequence[Method | None],
    *,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
) -> list[Timing]:
    """Time encoding, selection, prefill and decoding apart, as `prune` does them around ``generate``; shows a bar.

    All methods take turns, so that whatever else the machine does meets all of them alike. Each turn goes through all
    phases once; methods share the pass of the tower that they would run alike. Work that was queued on a device is
    waited for at the end of each.

    Parameters
    ----------
    backbone : Backbone
        As `open_backbone` returns it, or `adapter_for`.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` with ``input_ids`` and ``pixel_values``, or what stands for them, on the model's
        device.
    methods : sequence of Method or None
        What selects; where it is None all tokens are kept and no "select" is returned.
    runs, warmup : int
        Turns to measure, and before them turns to leave out.
    new_tokens : int
        Tokens to decode in a turn, after the first one, which the prefill gives.

    Returns
    -------
    list[Timing]
        One for each method and phase; ``pandas.DataFrame`` makes a table of it.

    Raises
    ------
    ValueError
        If a number is too small, `inputs` lack the prompt or the image, or a method cannot be had on this backbone.
    """
    check_inputs(backbone, inputs, runs, warmup, new_tokens)
    laps: list[list[Lap]] = [[] for _ in methods]
    for _ in tqdm(range(warmup + runs), desc="time", unit="turn"):
        passes: _Passes = {}
        for number, method in enumerate(methods):
            laps[number].append(_lap(backbone, inputs, method, new_tokens, passes))
    timings = []
    for method, taken in zip(methods, laps, strict=True):
        whole = timing_of(backbone, inputs, method, runs, warmup, new_tokens, taken[-1])
        flops = phase_flops(backbone, inputs, method, taken[-1].layers, new_tokens)
        for place, phase in enumerate(_PHASES):
            if method is None and phase == "select":
                continue
            vision = phase == "encode"
            timings.append(
                replace(
                    whole,
                    phase=phase,
                    flops=flops.get(phase),
                    **quartiles([lap.milliseconds[place] for lap in taken[warmup:]]),
                    peak_bytes=largest(lap.peaks[place] for lap in taken[warmup:]),
                    attention=_attention(backbone, vision),
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
            if not is_refusal(error, type(method).__module__):
                raise
            refused[f"{title(method)} at {method.budget:g}"] = str(error)
    return usable, refused


def check_inputs(backbone: Backbone, inputs: Mapping[str, Any], runs: int, warmup: int, new_tokens: int) -> None:
    """Raise ValueError unless there are a prompt, an image, and numbers that are large enough."""
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0), ("new_tokens", new_tokens, 1)):
        check_int(name, value, least)
    missing = ["input_ids"] if inputs.get("input_ids") is None else []
    if all(inputs.get(name) is None for name in backbone.pixel_inputs):
        missing.append(backbone.pixel_inputs[0])
    if missing:
        raise ValueError(f"inputs lack {' and '.join(missing)}")


def timing_of(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None,
    runs: int,
    warmup: int,
    new_tokens: int,
    lap: Lap,
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
        over_ideal_low=None,
        over_ideal_high=None,
        over_full=None,
        attention=_attention(backbone, vision=False),
        device=device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


def _attention(backbone: Backbone, vision: bool) -> str:
    config = backbone.model.config
    tower = getattr(config, "vision_config", None) or config.audio_config
    return str((tower if vision else config.get_text_config())._attn_implementation)


def _encode(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method, passes: _Passes
) -> tuple[Encoded, float, int | None]:
    """Return what a method reads of the tower as if nothing of it had been read before, with milliseconds and peak.

    Methods that need the same pass of the tower find it in `passes`.
    """
    images = backbone.image_arguments(inputs)
    grid, device = backbone.target_grid(method, **images), backbone.model.device
    key = (grid, frozenset(method.tower_depths))
    if key not in passes:
        start = begin(device)
        encoded = encode_images(backbone, method, inputs)
        passes[key] = (encoded, 1e3 * (now(device) - start), peak_memory(device))
    encoded, milliseconds, peak = passes[key]
    views: Mapping[str, Any] = encoded.views
    return replace(encoded, views={name: view.__wrapped__ for name, view in views.items()}), milliseconds, peak


def _lap(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None,
    new_tokens: int,
    passes: _Passes,
) -> Lap:
    """Go through all phases once, apart from the tower if its pass is at hand."""
    model = backbone.model
    acting = UniformGrid(1.0) if method is None else method
    encoded, encode_ms, encode_peak = _encode(backbone, inputs, acting, passes)
    marks, peaks = [begin(model.device)], [encode_peak]

    def lap() -> None:
        peaks.append(peak_memory(model.device))
        marks.append(begin(model.device))

    tokens = read_tokens(backbone, encoded, inputs)
    call = shorten_call(backbone, acting, tokens, select_tokens(acting, tokens), inputs)
    short = call.inputs
    lap()
    mask = short.get("attention_mask")
    mask = torch.ones_like(short["input_ids"]) if mask is None else mask
    short["attention_mask"] = mask
    if short.get("position_ids") is None:
        short["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with call.running() as passage:
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
    return Lap(
        milliseconds,
        peaks,
        columns=short["input_ids"].shape[1],
        images=len(tokens),
        before=int(tokens.full_lengths.max()),
        layers=passage.layers.amax(0).tolist(),
        cache_bytes=cache_bytes,
    )
