"""Draw figures again from the stores, for a paper or for slides, without asking a model.

Without a name, all figures are listed with the job that each is drawn from. A figure for a paper is as wide as a text
column or a page, one for slides is large; both are written as PDF, with its fonts in it, and as PNG.

    idsel figure
    idsel figure budget --for slides
    idsel figure comparison comparison_cost --for paper --out my-paper/figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.commands._arguments import positive
from idsel_core.study.paths import ROWS, TIMES

_USES = ("paper", "slides")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw; without one, all are listed")
    parser.add_argument("--list", action="store_true", help="list all figures and where they are drawn from")
    parser.add_argument(
        "--for", dest="use", choices=_USES, default="paper", help="what they are drawn for (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder to write to (default: results/figures/paper, or .../slides)"
    )
    parser.add_argument(
        "--rows", type=Path, default=ROWS, metavar="FOLDER", help="store of rows (default: %(default)s)"
    )
    parser.add_argument(
        "--times", type=Path, default=TIMES, metavar="FOLDER", help="store of times (default: %(default)s)"
    )
    parser.add_argument(
        "--resamples",
        type=positive,
        default=2000,
        metavar="N",
        help="bootstrap resamples of the intervals (default: %(default)s)",
    )


def run(given: argparse.Namespace) -> int:
    """List figures, or draw them."""
    import matplotlib as mpl

    from idsel_core.study.report import drawings, theme

    stored = drawings.Stored(given.rows, given.times, given.resamples)
    for name in given.names:
        drawings.drawing_of(name)
    if given.list or not given.names:
        print("\n".join(_lines(stored)))
        return 0
    for name in given.names:
        drawings.check(name, stored)
    mpl.use("Agg")
    theme.use_theme(given.use)
    out = given.out or Path("results/figures") / given.use
    for name in given.names:
        drawings.save(name, stored, out)
        print(f"{out / name}.pdf and .png")
    return 0


def _lines(stored: object) -> list[str]:
    """Return a line a figure: its name, what it shows, and what is not stored that it is drawn from."""
    from idsel_core.study.report import drawings

    assert isinstance(stored, drawings.Stored)
    lines = []
    for name, drawing in drawings.FIGURES.items():
        lacking = drawings.missing(name, stored)
        jobs = ", ".join(drawing.jobs)
        source = f"not stored: {', '.join(lacking)}" if lacking else f"from {jobs or 'the training log'}"
        lines.append(f"{name:26} {drawing.says} ({source})")
    return lines
