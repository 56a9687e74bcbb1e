"""Time one method from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from idsel_core.backbones import adapter_for
from idsel_core.loading.random_models import build_random, list_architectures
from idsel_core.methods import get_method
from idsel_core.study.cost import read_config
from idsel_core.study.cost.models import tower_of
from idsel_core.study.cost.shapes import SIZE_HELP, size_given
from idsel_core.study.devices import check_device
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL
from idsel_core.study.timing.example_inputs import example_inputs
from idsel_core.study.timing.phases import time_methods
from idsel_core.study.timing.records import circumstances

_SHOWN = (
    "method", "phase", "median_ms", "low_ms", "high_ms", "kept_tokens", "prompt_tokens", "flops", "cache_bytes",
    "peak_bytes",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.study.timing.cli",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
            backbone, _ = open_backbone(given.model, given.device)
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
