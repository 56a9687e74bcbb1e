"""Run the notebooks of all studies and draw all figures and tables into results/.

Only what is not up to date runs. What stands behind -- goes to Snakemake.

    idsel figures --cores 4
    idsel figures -- --forceall
"""

from __future__ import annotations

import argparse

from idsel_core.study.commands._arguments import add_cores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_cores(parser)
    parser.add_argument("--dry-run", action="store_true", help="tell what would run, write nothing")


def run(given: argparse.Namespace) -> int:
    """Run the workflow."""
    from idsel_core.study.run.make_figures import make_figures

    return make_figures(given.cores, given.dry_run, given.more)
