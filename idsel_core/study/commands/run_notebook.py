"""Run a notebook and keep the executed copy; unknown or mistyped parameters are refused before anything is written.

For example:

    idsel run notebooks/02_ablation_gamma.ipynb logs/mine.ipynb -p budgets "[32]" -p gammas "[5.0, 20.0]"
    idsel run notebooks/02_ablation_gamma.ipynb logs/mine.ipynb -f config/smoke/02_ablation_gamma.yaml
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("notebook", metavar="NOTEBOOK", help="the .ipynb file")
    parser.add_argument("output", metavar="OUTPUT", help="file for the executed copy")
    parser.add_argument(
        "-f", dest="files", metavar="FILE", action="append", default=[], help="YAML file of parameters; later ones win"
    )
    parser.add_argument(
        "-p",
        dest="pairs",
        metavar=("NAME", "VALUE"),
        nargs=2,
        action="append",
        default=[],
        help="one parameter, its value in YAML; wins over files",
    )


def run(given: argparse.Namespace) -> int:
    """Run the notebook; returns 1 if a cell failed or the kernel died."""
    import papermill

    from idsel_core.study.run.notebook_runner import given_parameters
    from idsel_core.study.run.notebook_runner import run as run_notebook

    try:
        run_notebook(given.notebook, given.output, given_parameters(given.files, given.pairs))
    except papermill.PapermillExecutionError as error:
        print(f"{given.notebook} failed in cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The executed notebook with the traceback is {given.output}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"{given.notebook}: {error} (where memory ran out, or something killed it)", file=sys.stderr)
        return 1
    return 0
