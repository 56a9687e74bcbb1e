"""Run a command with one GPU of this machine to itself.

The GPU's number goes into CUDA_VISIBLE_DEVICES; the lease ends with the command, however that ends. Where Slurm gave
one GPU, and where there is none, the command runs as it is; several that Slurm gave to one job are leased within it.

    idsel lease python train.py
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "--locks",
        type=Path,
        metavar="FOLDER",
        help="folder of the lock files, the same for all that share the machine (default: one of the temporary folder)",
    )
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")


def run(given: argparse.Namespace) -> int:
    """Become the command."""
    program = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not program:
        raise ValueError("name a command to run, such as: idsel lease python train.py")

    from idsel_core.study.run.gpu_lease import run_with_gpu

    run_with_gpu(program, given.locks)
    return 0
