"""A step of gpu.py: answers of a full-size model with random weights, by phase and against a prompt cut by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from idsel_core.backbones import Backbone, adapter_for
from idsel_core.loading.random_models import build_random
from idsel_core.methods import IDSelection, Method
from idsel_core.study.cost import full_budget, read_config
from idsel_core.study.timing.example_inputs import example_inputs
from idsel_core.study.timing.ideal import time_ideal
from idsel_core.study.timing.phases import runnable, time_methods
from idsel_core.study.timing.records import Timing

TEXT = 64
"""Text tokens of a prompt."""


def time_answers(
    backbone: Backbone,
    inputs: Mapping[str, Any],
    methods: Sequence[Method],
    options: Mapping[str, int],
) -> tuple[list[Timing], dict[str, str]]:
    """Return times by phase, of all tokens too, and end to end against the ideal; and what is left out, and why."""
    usable, missing = runnable(backbone, inputs, methods)
    timings = time_methods(backbone, inputs, [None, *usable], **options)
    for method in usable:
        try:
            timings += time_ideal(backbone, inputs, method, **options)
        except ValueError as error:
            missing[f"the ideal of {method.name} at {method.budget:g}"] = str(error)
    return timings, missing


def narrow(config: Any) -> None:
    """Make a configuration as narrow and shallow as its family can be, with as many visual tokens as before."""
    text, tower = config.get_text_config(), config.vision_config
    # A head of 128, which the sections of rotary positions of Qwen-VL add up to.
    text.update({"hidden_size": 256, "intermediate_size": 32, "num_hidden_layers": 2})
    text.update({"num_attention_heads": 2, "num_key_value_heads": 2})
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    smaller = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "depth": 3, "out_hidden_size": 256}
    smaller |= {"num_attention_heads": 2, "num_heads": 2}
    tower.update({name: value for name, value in smaller.items() if hasattr(tower, name)})
    if hasattr(tower, "fullatt_block_indexes"):
        tower.fullatt_block_indexes = [2]


def measure(
    *, device: str, small: bool, model: str, tokens: int, budgets: tuple[int, ...], image_size: Any = None
) -> list[dict[str, Any]]:
    """Return one row a phase, method and budget, and one for each thing that is left out."""
    config, own = read_config(Path(model))
    size = image_size or own
    if (counted := full_budget(config, size)) != tokens:
        raise ValueError(f"{model} has {counted} visual tokens for an image of {size}, not {tokens}")
    if small:
        narrow(config)
    dtype = torch.float32 if small else torch.bfloat16
    try:
        adapter_for(build_random(config, dtype, "meta"))
    except ValueError as error:
        # Too old for the family: nothing that is installed can run it.
        raise ImportError(str(error), name="transformers") from error
    backbone = adapter_for(build_random(config, dtype, device))
    inputs = {name: values.to(device) for name, values in example_inputs(config, TEXT, size).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    options = {"runs": 1, "warmup": 0, "new_tokens": 1} if small else {"runs": 21, "warmup": 3, "new_tokens": 8}
    timings, missing = time_answers(backbone, inputs, [IDSelection(budget=budget) for budget in budgets], options)
    rows = [{"part": "answers", "model": model, **asdict(timing)} for timing in timings]
    for row in rows:
        print(f"{model}: {row['method']} at {row['kept_tokens']}, {row['phase']} {row['median_ms']:.1f} ms")
    for what, why in missing.items():
        print(f"{model}: left out: {what}: {why}")
        rows.append({"part": "left out", "model": model, "what": what, "why": why})
    return rows
