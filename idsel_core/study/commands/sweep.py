"""Run all jobs of a grid; after a kill, the same command goes on where the last one was.

A grid is a YAML file in which each knob is a value or a list of values; config/grids/example.yaml is one. What stands
behind -- goes to Snakemake.

    idsel sweep config/grids/example.yaml --dry-run
    idsel sweep config/grids/example.yaml --cores 4
    idsel sweep config/grids/example.yaml --profile workflow/profiles/slurm -- --retries 0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.commands._arguments import add_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("grid", type=Path, metavar="GRID", help="a YAML file such as config/grids/example.yaml")
    parser.add_argument(
        "--profile",
        type=Path,
        default=Path("workflow/profiles/local"),
        metavar="FOLDER",
        help="where jobs run: workflow/profiles/local or workflow/profiles/slurm (default: %(default)s)",
    )
    add_cores(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="tell how many jobs would run, how long and on how much disk, write nothing",
    )


def run(given: argparse.Namespace) -> int:
    """Run the sweep."""
    from idsel_core.study.run.run_sweep import run_sweep

    return run_sweep(given.grid, given.profile, given.cores, given.dry_run, given.more)
