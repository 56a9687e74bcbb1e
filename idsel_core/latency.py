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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from idsel_core.architectures import build_random, list_architectures
from idsel_core.backbones import Backbone, adapter_for
from idsel_core.cost import full_budget, read_config
from idsel_core.evaluation import check_device, load_model
from idsel_core.methods import Method, UniformGrid, get_method
from idsel_core.paths import MODEL

_PHASES = ("encode", "select", "prefill", "decode")


@dataclass(frozen=True)
class Timing:
    """Wall time of one phase of answering a batch of prompts, on the device and in the process that measured it.

    Attributes
    ----------
    phase : str
        "encode": pixels to projector output. "select": scores, selection and the cut of the prompts. "prefill": the
        shortened prompts to the first token. "decode": one further token, mean over those of a run.
    median_ms, low_ms, high_ms : float
        Median and quartiles over runs, milliseconds for the whole batch.
    runs, warmup : int
        Runs that were measured, and those before them that were not.
    batch, images : int
        Prompts, and images in them.
    prompt_tokens, kept_tokens : int
        Columns of the shortened prompts, and the most visual tokens kept of an image.
    attention : str
        Attention implementation of the phase's model: the vision tower for "encode", else the language model.
    device, dtype : str
        Where and in what the model ran.
    threads : int
        CPU threads of torch.
    """

    phase: str
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int
    batch: int
    images: int
    prompt_tokens: int
    kept_tokens: int
    attention: str
    device: str
    dtype: str
    threads: int


@torch.no_grad()
def time_phases(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    method: Method | None = None,
    *,
    runs: int = 10,
    warmup: int = 2,
    new_tokens: int = 8,
) -> list[Timing]:
    """Time encoding, selection, prefill and decoding apart, as `prune` does them around ``generate``.

    Each run goes through all phases once. Work that was queued on a device is waited for at the end of each.

    Parameters
    ----------
    backbone : Backbone
        As `load_model` returns it, or `adapter_for`.
    inputs : Mapping[str, Any]
        ``input_ids``, ``pixel_values`` and, if there is padding, ``attention_mask``, on the model's device.
    method : Method, optional
        What selects; by default all tokens are kept and no "select" is returned.
    runs, warmup : int
        Runs to measure, and before them runs to leave out.
    new_tokens : int
        Tokens to decode in a run, after the first one, which the prefill gives.

    Returns
    -------
    list[Timing]
        One for each phase; ``pandas.DataFrame`` makes a table of it.

    Raises
    ------
    ValueError
        If a number is too small, or `inputs` lack the prompt or the image.
    """
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0), ("new_tokens", new_tokens, 1)):
        _check_int(name, value, least)
    missing = [name for name in ("input_ids", "pixel_values") if inputs.get(name) is None]
    if missing:
        raise ValueError(f"inputs lack {' and '.join(missing)}")
    model, config = backbone.model, backbone.model.config
    acting = UniformGrid(1.0) if method is None else method
    laps, prompt, kept = [], 0, 0
    for _ in range(warmup + runs):
        lap, prompt, kept = _lap(backbone, inputs, acting, new_tokens)
        laps.append(lap)
    implementation = dict.fromkeys(_PHASES, config.get_text_config()._attn_implementation)
    implementation["encode"] = config.vision_config._attn_implementation
    quartiles = np.percentile(laps[warmup:], [25, 50, 75], axis=0).T
    return [
        Timing(
            phase=phase,
            median_ms=float(median),
            low_ms=float(low),
            high_ms=float(high),
            runs=runs,
            warmup=warmup,
            batch=len(inputs["input_ids"]),
            images=len(inputs["pixel_values"]),
            prompt_tokens=prompt,
            kept_tokens=kept,
            attention=implementation[phase],
            device=_device_name(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        for phase, (low, median, high) in zip(_PHASES, quartiles, strict=True)
        if method is not None or phase != "select"
    ]


def _lap(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method, new_tokens: int
) -> tuple[list[float], int, int]:
    """Return the milliseconds of each phase, the shortened prompts' columns and the most tokens kept."""
    model = backbone.model
    images = backbone.image_arguments(inputs)
    grid = backbone.wanted_grid(method, **images)
    marks = [_now(model.device)]
    encoded = backbone.encode(grid=grid, depths=method.depths, **images)
    marks.append(_now(model.device))
    tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs.get("attention_mask"))
    selection = method.select(tokens)
    short = backbone.shorten(inputs, tokens, selection)
    marks.append(_now(model.device))
    mask = short.get("attention_mask")
    mask = torch.ones_like(short["input_ids"]) if mask is None else mask
    places = (mask.cumsum(1) - 1).clamp_min(0)
    short |= {"attention_mask": mask, "position_ids": places}
    with backbone.reading():
        output = model(**short, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1:].argmax(-1)
    marks.append(_now(model.device))
    for _ in range(new_tokens):
        mask, places = torch.cat([mask, torch.ones_like(token)], 1), places[:, -1:] + 1
        output = model(
            input_ids=token,
            attention_mask=mask,
            position_ids=places,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        token = output.logits[:, -1:].argmax(-1)
    marks.append(_now(model.device))
    lap = [1e3 * (after - before) for before, after in itertools.pairwise(marks)]
    lap[-1] /= new_tokens
    return lap, short["input_ids"].shape[1], int(selection.counts.max())


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def example_inputs(
    config: PreTrainedConfig, text_tokens: int, image_size: tuple[int, int], batch: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Return prompts of random words, each around one image of noise.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a model that `idsel_core.cost` knows.
    text_tokens : int
        Words of a prompt, 2 or more: one before the image, the others behind it.
    image_size : tuple[int, int]
        Height and width, pixels.
    batch : int
        Prompts.
    seed : int
        Of words and noise.

    Raises
    ------
    TypeError, ValueError
        If the model type is not supported, or a number is too small.
    """
    _check_int("text_tokens", text_tokens, 2)
    _check_int("batch", batch, 1)
    model: Any = config
    count, image = full_budget(config, image_size), int(model.image_token_id)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(model.get_text_config().vocab_size - 1, (batch, text_tokens), generator=generator)
    words += (words >= image).long()
    ids = torch.cat([words[:, :1], torch.full((batch, count), image), words[:, 1:]], 1)
    pixels = torch.randn(batch, model.vision_config.num_channels, *image_size, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


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
        config, size = read_config(given.model)
        whole = full_budget(config, size)
        inputs = example_inputs(config, given.text, size, given.batch)
        budgets = given.budgets or [whole, 64]
        methods = [None if budget == whole else get_method(given.method, budget=budget) for budget in budgets]
        if given.model.is_dir():
            backbone, _ = load_model(given.model, given.device)
        else:
            check_device(given.device)
            backbone = adapter_for(build_random(config, getattr(torch, given.dtype, given.dtype), given.device))
        inputs = {name: tensor.to(given.device) for name, tensor in inputs.items()}
        timings = []
        for method in methods:
            timings += time_phases(backbone, inputs, method, runs=given.runs, warmup=given.warmup, new_tokens=given.new)
        print(pd.DataFrame(timings).round(3).to_string(index=False))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
