"""Write one HTML file with all figures and tables, where they came from and what they ran on; it opens offline.

For example:

    idsel report
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.paths import FIGURES, ROWS, TABLES, TIMES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shown = "(default: %(default)s)"
    parser.add_argument(
        "--out", type=Path, default=Path("results/report.html"), metavar="FILE", help=f"file to write {shown}"
    )
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="FOLDER", help=f"folder of figures {shown}")
    parser.add_argument("--tables", type=Path, default=TABLES, metavar="FOLDER", help=f"folder of tables {shown}")
    parser.add_argument("--rows", type=Path, default=ROWS, metavar="FOLDER", help=f"store of rows {shown}")
    parser.add_argument("--times", type=Path, default=TIMES, metavar="FOLDER", help=f"store of times {shown}")


def run(given: argparse.Namespace) -> int:
    """Write the report and say how large it is."""
    from idsel_core.study.report.html_report import write_report

    print(write_report(given.out, given.figures, given.tables, given.rows, given.times))
    return 0
