"""Print what a model costs with fewer visual tokens: FLOPs in three named columns, and memory of the KV cache.

flops_paper     the literature's formula: multiply-adds (not FLOPs) of visual tokens in the language model, no more
flops_analytic  true to the configuration: tower, projector, selection, text tokens, grouped keys, SwiGLU, LM head
flops_counted   what torch's counter sees when the model runs, with --counted

    idsel cost --model llava-1.5-7b --budgets 576 64 16 576x2,64x30
    idsel cost --model smolvlm2-2.2b --image-size 1152 1536
    idsel cost --model qwen2-audio-7b --image-size 1000
    idsel cost --model qwen2.5-vl-7b --image-size 448 448 --frames 64 --budgets 1024
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from idsel_core.study.commands._arguments import IMAGE_SIZE_HELP, natural, positive, published_models
from idsel_core.study.paths import MODEL

if TYPE_CHECKING:
    import pandas as pd


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help=f"folder of a model, configuration file, or one of {published_models()} (default: %(default)s)",
    )
    parser.add_argument(
        "--budgets",
        type=_budget,
        nargs="+",
        metavar="BUDGET",
        help="visual tokens, in all layers or as 576x2,64x30: 576 in two layers, then 64 in thirty (default: all, and "
        "those of 192, 128, 64, 32, 16 that are fewer)",
    )
    parser.add_argument("--text", type=natural, default=64, help="text tokens of the prompt (default: %(default)s)")
    parser.add_argument("--image-size", type=positive, nargs="+", metavar="PIXELS", help=IMAGE_SIZE_HELP)
    parser.add_argument("--frames", type=positive, help="frames of a video of that size (default: an image)")
    parser.add_argument(
        "--method", default="idselection", help="method whose selection is counted, or none (default: %(default)s)"
    )
    parser.add_argument(
        "--attention",
        choices=("full", "causal"),
        default="full",
        help="pairs of tokens that are multiplied (default: %(default)s)",
    )
    parser.add_argument("--dtype", default="float16", help="torch dtype of the KV cache (default: %(default)s)")
    parser.add_argument("--counted", action="store_true", help="also count by running the model without weights")


def run(given: argparse.Namespace) -> int:
    """Count and print a table, one column a budget."""
    from idsel_core.methods import get_method
    from idsel_core.study.cost import cost_table, full_budget, read_config
    from idsel_core.study.cost.shapes import pair, size_given
    from idsel_core.study.devices import dtype_named

    config, own = read_config(given.model)
    size = size_given(given.image_size) or own
    if given.frames is not None:
        if size is None:
            raise ValueError("--frames needs --image-size, height and width of a frame")
        size = (given.frames, *pair(size))
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
        dtype=dtype_named(given.dtype),
        counted=given.counted,
    )
    print(f"{given.model}: {given.text} text tokens, {given.attention} attention, selection by {given.method}\n")
    print(_printed(table))
    return 0


def _budget(text: str) -> int | list[int]:
    if text.isdecimal():
        return int(text)
    if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", text):
        raise argparse.ArgumentTypeError(f"must be visual tokens such as 64, or 576x2,64x30 by layers, not {text!r}")
    stretches = [stretch.split("x") for stretch in text.split(",")]
    return [int(tokens) for tokens, layers in stretches for _ in range(int(layers))]


def _printed(table: pd.DataFrame) -> str:
    """Return the table in readable units, one column a budget."""
    import pandas as pd

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
