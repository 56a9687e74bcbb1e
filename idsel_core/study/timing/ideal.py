"""Time pruned answers against prompts that were cut by hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import quantile_test
from transformers.modeling_outputs import BaseModelOutputWithPooling

from idsel_core.backbones import Backbone
from idsel_core.methods import Method, drops_inside
from idsel_core.pruning.api import prune
from idsel_core.pruning.pipeline import encode_images, read_tokens, select_tokens, shorten_call
from idsel_core.study.ends import FULL
from idsel_core.study.timing.clock import begin, largest, now, peak_memory, quartiles
from idsel_core.study.timing.flops import phase_flops
from idsel_core.study.timing.phases import Lap, check_inputs, timing_of
from idsel_core.study.timing.records import END_TO_END, IDEAL, Timing


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

    The three take turns, each first in every third one. By hand means: the same tower pass, then the rows of the tokens
    that `method` had chosen beforehand, in a prompt that was shortened beforehand; nothing selects, and no hook runs.

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
    check_inputs(backbone, inputs, runs, warmup, new_tokens)
    if drops_inside(method):
        raise ValueError(f"{method.name} drops tokens inside the language model: no shorter prompt is like it")
    if backbone.position_axes > 1:
        raise ValueError("a prompt cannot be cut by hand where positions have several axes")
    model: Any = backbone.model
    if not hasattr(backbone.core, "get_image_features"):
        raise ValueError(f"a prompt cannot be cut by hand: {type(model).__name__} has no get_image_features")
    images = backbone.image_arguments(inputs)
    if backbone.target_grid(method, **images) is not None and method.name == "downsample":
        raise ValueError(f"{method.name} makes the image smaller: no shorter prompt is like it")
    tokens = read_tokens(backbone, encode_images(backbone, method, inputs), inputs)
    selection = select_tokens(method, tokens)
    short = shorten_call(backbone, method, tokens, selection, inputs).inputs
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
    order = deque(contestants)
    for _ in range(warmup + runs):
        for name in order:
            start = begin(model.device)
            contestants[name]()
            taken[name].append((1e3 * (now(model.device) - start), peak_memory(model.device)))
        order.rotate(-1)
    timings = []
    clock = {name: np.array([ms for ms, _ in measured[warmup:]]) for name, measured in taken.items()}
    for name, measured in taken.items():
        acting = None if name == FULL else method
        prompt = (inputs if acting is None else short)["input_ids"]
        count = max(lengths) if acting is None else int(selection.counts.max())
        layers = [count] * backbone.decoder_layers
        lap = Lap([], [], prompt.shape[1], len(tokens), max(lengths), layers)
        flops = phase_flops(backbone, inputs, None if name == IDEAL else acting, layers, new_tokens)
        low, high = _interval_of_median(clock[name] / clock[IDEAL])
        timings.append(
            replace(
                timing_of(backbone, inputs, method, runs, warmup, new_tokens, lap),
                method=name,
                phase=END_TO_END,
                **quartiles(clock[name].tolist()),
                flops=flops.get(END_TO_END),
                peak_bytes=largest(peak for _, peak in measured[warmup:]),
                over_ideal=float(np.median(clock[name] / clock[IDEAL])),
                over_ideal_low=low,
                over_ideal_high=high,
                over_full=float(np.median(clock[name] / clock[FULL])),
            )
        )
    return timings


def _interval_of_median(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the median by order statistics, None for bounds that few values do not have."""
    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None
