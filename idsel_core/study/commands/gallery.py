"""Write a site of executed notebooks, figures, tables, and what they ran on; it opens offline.

For example, after `make figures`, and with a notebook of your own:

    idsel gallery
    idsel gallery logs results/mine.ipynb --out results/gallery
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.paths import FIGURES, ROWS, TABLES, TIMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shown = "(default: %(default)s)"
    logs = [Path("logs")]
    parser.add_argument(
        "notebooks",
        type=Path,
        nargs="*",
        default=logs,
        metavar="NOTEBOOK",
        help="or folders of them (default: logs)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/gallery"), metavar="FOLDER", help=f"folder to write {shown}"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="FOLDER", help=f"folder of figures {shown}")
    parser.add_argument("--tables", type=Path, default=TABLES, metavar="FOLDER", help=f"folder of tables {shown}")
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FOLDER", help=f"store of rows {shown}")
    parser.add_argument("--times", type=Path, default=TIMES, metavar="FOLDER", help=f"store of times {shown}")


def run(given: argparse.Namespace) -> int:
    """Write the gallery and say what it holds."""
    from idsel_core.study.report.gallery.site import write_gallery

    print(write_gallery(given.out, given.notebooks, given.figures, given.tables, given.rows, given.times))
    return 0
