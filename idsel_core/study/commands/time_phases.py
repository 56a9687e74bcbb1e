"""Time encode, select, prefill and decode of one method, at several budgets that take turns.

For example:

    idsel time --budgets 576 64 16
    idsel time --model llava-1.5-7b --device cuda --budgets 576 64 --runs 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.commands._arguments import IMAGE_SIZE_HELP, add_device, natural, positive, published_models
from idsel_core.study.paths import MODEL

_SHOWN = (
    "method", "phase", "median_ms", "low_ms", "high_ms", "kept_tokens", "prompt_tokens", "flops", "cache_bytes",
    "peak_bytes",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help="folder of a model (default: %(default)s), or for random weights of full size one of "
        f"{published_models()}, or a configuration file",
    )
    parser.add_argument("--dtype", default="bfloat16", help="torch dtype of random weights (default: %(default)s)")
    parser.add_argument(
        "--budgets", type=positive, nargs="+", metavar="TOKENS", help="visual tokens to keep (default: all and 64)"
    )
    parser.add_argument(
        "--method", default="idselection", help="method that selects below all tokens (default: %(default)s)"
    )
    parser.add_argument("--text", type=natural, default=64, help="text tokens of a prompt (default: %(default)s)")
    parser.add_argument("--image-size", type=positive, nargs="+", metavar="PIXELS", help=IMAGE_SIZE_HELP)
    parser.add_argument("--batch", type=positive, default=1, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--new", type=positive, default=8, help="tokens to decode in a run (default: %(default)s)")
    parser.add_argument("--runs", type=positive, default=10, help="runs that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=natural, default=2, help="runs before them (default: %(default)s)")
    add_device(parser)


def run(given: argparse.Namespace) -> int:
    """Measure and print one row a method and phase."""
    import pandas as pd

    from idsel_core.backbones import adapter_for
    from idsel_core.loading.random_models import build_random
    from idsel_core.methods import get_method
    from idsel_core.study.cost import read_config
    from idsel_core.study.cost.models import tower_of
    from idsel_core.study.cost.shapes import size_given
    from idsel_core.study.devices import check_device, dtype_named
    from idsel_core.study.open_backbone import open_backbone
    from idsel_core.study.timing.example_inputs import example_inputs
    from idsel_core.study.timing.phases import time_methods
    from idsel_core.study.timing.records import circumstances

    check_device(given.device)
    config, own = read_config(given.model)
    size = size_given(given.image_size) or own
    inputs = example_inputs(config, given.text, size, given.batch)
    whole = tower_of(config, size).visual
    budgets = given.budgets or [whole, 64]
    methods = [None if budget == whole else get_method(given.method, budget=budget) for budget in budgets]
    if given.model.is_dir():
        backbone, _ = open_backbone(given.model, given.device)
    else:
        backbone = adapter_for(build_random(config, dtype_named(given.dtype), given.device))
    inputs = {name: tensor.to(given.device) for name, tensor in inputs.items()}
    timings = time_methods(backbone, inputs, methods, runs=given.runs, warmup=given.warmup, new_tokens=given.new)
    print(f"{given.model}: {circumstances(timings[0])}\n")
    shown = pd.DataFrame(timings)[list(_SHOWN)].dropna(axis="columns", how="all")
    print(shown.round(3).to_string(index=False))
    return 0
