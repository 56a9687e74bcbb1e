"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from idsel_core.study.paths import DATA, MODEL

_CONFIGS = Path(__file__).parents[2] / "loading/configs"

IMAGE_SIZE_HELP = "height and width of the image, or mel frames of the clip (default: the processor's, or the longest)"


def add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Add which model is asked about which split of which data set."""
    parser.add_argument(
        "--split", default="validation", metavar="NAME", help="split of the data set (default: %(default)s)"
    )
    parser.add_argument(
        "--backbone",
        default=str(MODEL),
        metavar="MODEL",
        help="hub id, such as llava-hf/llava-1.5-7b-hf, or folder of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        default=str(DATA),
        metavar="DATA",
        help="folder or table of questions, or lmms:TASK (default: %(default)s)",
    )
    add_device(parser)
    parser.add_argument(
        "--dtype", default="auto", help="type of the weights, such as bfloat16; auto takes the model's (default: auto)"
    )
    parser.add_argument("--quantisation", choices=("int8", "int4"), help="of the language model, by bitsandbytes")
    parser.add_argument("--attention", metavar="NAME", help="attention implementation, such as sdpa")
    parser.add_argument("--revision", default="main", help="branch, tag or commit of a hub id (default: main)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the device that the model runs on."""
    parser.add_argument("--device", default="cpu", help="torch device, cpu or cuda (default: %(default)s)")


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Add how many jobs run side by side."""
    parser.add_argument(
        "--cores",
        type=positive,
        default=os.cpu_count(),
        metavar="N",
        help="jobs that run side by side (default: %(default)s, as many as this machine has cores)",
    )


def published_models() -> str:
    """Return the names of the published models whose configuration comes with the package."""
    return ", ".join(sorted(path.stem for path in _CONFIGS.glob("*.json")))


def positive(text: str) -> int:
    """Return a text as an int of 1 or more."""
    return _at_least(1, text)


def natural(text: str) -> int:
    """Return a text as an int of 0 or more."""
    return _at_least(0, text)


def number_or_share(name: str, text: str) -> int | float:
    """Return a budget from the text of an argument: an int as a number of visual tokens, anything else as a share.

    Raises
    ------
    ValueError
        If it is no number.
    """
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ValueError(
            f"{name} must be a number of visual tokens such as 64, or a share such as 0.1, not {text!r}"
        ) from None


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an int of {least} or more, not {text!r}")
    return int(text)
