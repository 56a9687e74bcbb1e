"""The command line of `idsel_core.study.cost`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pandas as pd
import torch

from idsel_core.loading.random_models import list_architectures
from idsel_core.methods import get_method
from idsel_core.study import cost
from idsel_core.study.cost import Attention, cost_table, full_budget, read_config
from idsel_core.study.cost.shapes import SIZE_HELP, size_given
from idsel_core.study.paths import MODEL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.study.cost",
        description=cost.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help=f"model folder, configuration file (default: %(default)s), or one of {', '.join(list_architectures())}",
    )
    parser.add_argument(
        "--budgets",
        type=_budget,
        nargs="+",
        metavar="BUDGET",
        help="visual tokens, in all layers or as 576x2,64x30: 576 in two layers, then 64 in thirty (default: all, and "
        "those of 192, 128, 64, 32, 16 that are fewer)",
    )
    parser.add_argument("--text", type=int, default=64, help="text tokens of the prompt (default: %(default)s)")
    parser.add_argument("--image-size", type=int, nargs="+", metavar="PIXELS", help=SIZE_HELP)
    parser.add_argument("--method", default="idselection", help="whose selection is counted, or none")
    parser.add_argument("--attention", choices=get_args(Attention), default="full", help="pairs that are multiplied")
    parser.add_argument("--dtype", default="float16", help="torch dtype of the cache (default: %(default)s)")
    parser.add_argument("--counted", action="store_true", help="count by running the model without weights, too")
    return parser


def _budget(text: str) -> int | list[int]:
    if "x" not in text:
        return int(text)
    runs = [part.split("x") for part in text.split(",")]
    return [int(tokens) for tokens, layers in runs for _ in range(int(layers))]


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; for example float16, bfloat16, float32")
    return found


def _printed(table: pd.DataFrame) -> str:
    """Return the table in readable units, one column a budget."""
    shown = pd.DataFrame({"visual tokens": table["budget"].map("{:g}".format), "by layer": table["profile"]})
    shown["equal budget"] = table["equal_budget"]
    for name, column in {
        "flops_paper (G multiply-adds)": "flops_paper",
        "flops_analytic (GFLOP)": "flops_analytic",
        "  encode": "encode",
        "  select": "select",
        "  language model": "language_model",
        "flops_counted (GFLOP, no selection)": "flops_counted",
        "decoding step (GFLOP)": "flops_step",
    }.items():
        if table[column].notna().all():
            shown[name] = (table[column] / 1e9).map("{:,.4g}".format)
    shown["cache (MiB)"] = (table["cache_bytes"] / 2**20).map("{:,.4g}".format)
    for name, column in {
        "saved, paper": "saved_paper",
        "saved, language model": "saved_language_model",
        "saved, analytic": "saved_analytic",
    }.items():
        shown[name] = table[column].map("{:.1%}".format)
    return shown.T.to_string(header=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    given = _parser().parse_args(arguments)
    try:
        config, own = read_config(given.model)
        size = size_given(given.image_size) or own
        whole = full_budget(config, size)
        budgets = given.budgets or [whole, *(tokens for tokens in (192, 128, 64, 32, 16) if tokens < whole)]
        method = None if given.method == "none" else get_method(given.method, budget=1)
        table = cost_table(
            config,
            budgets,
            given.text,
            image_size=size,
            attention=given.attention,
            method=method,
            dtype=_dtype(given.dtype),
            counted=given.counted,
        )
        print(f"{given.model}: {given.text} text tokens, {given.attention} attention, selection by {given.method}\n")
        print(_printed(table))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
