"""The command line: ``idsel COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from idsel_core.methods import Method, get_method, list_methods
from idsel_core.study.dataset import BLIND, FULL, read_split
from idsel_core.study.encodings import encode_split, fingerprint, write_encoding
from idsel_core.study.evaluate import accuracy, open_study
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import CACHE, DATA, MODEL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.study.cli",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--split", default="validation", help="split of the data set (default: %(default)s)")
    common.add_argument("--model", type=Path, default=MODEL, help="model folder (default: %(default)s)")
    common.add_argument("--data", type=Path, default=DATA, help="data set folder (default: %(default)s)")
    common.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    encode = commands.add_parser("encode", parents=[common], help="encode the images of a split once")
    encode.add_argument("--out", type=Path, help="file to write (default: .cache/encodings/PART.safetensors)")
    attempt = commands.add_parser("try", parents=[common], help="print the accuracy of one method")
    attempt.add_argument("--method", default="idselection", help=f"one of {', '.join((FULL, BLIND, *list_methods()))}")
    attempt.add_argument("--budget", type=_budget, default=64, help="visual tokens, or a share such as 0.1")
    attempt.add_argument("--knob", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="e.g. gamma 5")
    attempt.add_argument("--limit", type=int, default=0, help="about this many questions; 0 is all")
    return parser


def _budget(text: str) -> int | float:
    return float(text) if "." in text else int(text)


def _method(given: argparse.Namespace) -> Method | str:
    if given.method in (FULL, BLIND):
        return str(given.method)
    plain = get_method(given.method, budget=given.budget)
    kinds = {field.name: type(getattr(plain, field.name)) for field in fields(plain)}
    return get_method(given.method, budget=given.budget, **{k: kinds.get(k, str)(v) for k, v in given.knob})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "encode":
            split = read_split(given.split, given.data)
            backbone, processor = open_backbone(given.model, given.device)
            path = given.out or CACHE / f"{given.split}.safetensors"
            write_encoding(encode_split(backbone, processor, split), path, fingerprint(split, given.model))
            print(path)
            return 0
        method = _method(given)
        study = open_study(given.split, limit=given.limit, model=given.model, data=given.data, device=given.device)
        print(accuracy(study.run([method])).round(3).to_string())
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
