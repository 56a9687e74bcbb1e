"""Tell what figures were drawn from, and whether the store still holds the same rows.

For example:

    idsel explain results/figures/gamma.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.paths import ROWS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "figures", nargs="+", type=Path, metavar="FIGURE", help="a PNG or PDF file, or a page of Markdown with tables"
    )
    parser.add_argument(
        "--results", type=Path, default=ROWS, metavar="FOLDER", help="the store to compare with (default: %(default)s)"
    )


def run(given: argparse.Namespace) -> int:
    """Print what each figure was drawn from."""
    from idsel_core.study.store.explain import explain
    from idsel_core.study.store.results import Results

    for figure in given.figures:
        print(explain(figure, Results(given.results)))
    return 0
