"""Encode the images of a split once, for all later evaluations.

For example:

    idsel encode --split test
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.commands._arguments import add_study_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_study_arguments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default: .cache/encodings/SPLIT.safetensors)"
    )


def run(given: argparse.Namespace) -> int:
    """Encode the images and print where the encoding is."""
    from idsel_core.study.backbone_folders import check_evaluable
    from idsel_core.study.dataset import read_split
    from idsel_core.study.encodings import encode_split, fingerprint, write_encoding
    from idsel_core.study.open_backbone import open_backbone
    from idsel_core.study.paths import CACHE

    split = read_split(given.split, given.data)
    check_evaluable(given.backbone)
    backbone, processor = open_backbone(given.backbone, given.device)
    path = given.out or CACHE / f"{given.split}.safetensors"
    write_encoding(encode_split(backbone, processor, split), path, fingerprint(split, given.backbone))
    print(path)
    return 0
