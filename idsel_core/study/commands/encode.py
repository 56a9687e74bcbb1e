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
    """Encode the images and print where the encoding is.

    Raises
    ------
    ValueError
        If encodings of this model and data set are not stored.
    """
    from idsel_core.study.backbone_folders import check_evaluable
    from idsel_core.study.dataset import read_split
    from idsel_core.study.encodings import encode_split, fingerprint, write_encoding
    from idsel_core.study.open_backbone import open_backbone
    from idsel_core.study.paths import CACHE

    chosen = (given.dtype, given.quantisation, given.attention)
    if check_evaluable(given.backbone, given.revision)["model_type"] != "llava" or chosen != ("auto", None, None):
        raise ValueError(
            "encodings are stored of a folder of type llava as its files say alone, whose images all have one grid of "
            "visual tokens; the study encodes all other images while it asks, once for all settings of a job"
        )
    split, folder = read_split(given.split, Path(given.data)), Path(given.backbone)
    backbone, processor = open_backbone(folder, given.device)
    path = given.out or CACHE / f"{given.split}.safetensors"
    write_encoding(encode_split(backbone, processor, split), path, fingerprint(split, folder))
    print(path)
    return 0
