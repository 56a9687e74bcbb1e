"""Figures and tables from the result store: one theme, one colour a method, intervals always."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsel_core.methods import METHODS

COLUMN, PAGE = 3.4, 7.0
"""Widths of a text column and of a page, inches."""

ENDS: Final = {"full": "all tokens", "no-image": "no image"}
"""Labels of the two ends of the scale, which are no methods."""
_FIRST = ("idselection", "topk", "diversity", "random", "uniform", "downsample", *ENDS)
_LEADING = dict(zip(_FIRST, [*sns.color_palette("colorblind", 6), "0.2", "0.6"], strict=True))
_MARKERS = "osD^vPXd<>ph*8H"


def use_theme() -> None:
    """Set the one theme of all figures."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "legend.frameon": False, "pdf.fonttype": 42}
    )


def label(method: str) -> str:
    """Return what figures call a method."""
    return METHODS[method].label if method in METHODS else ENDS.get(method, method)


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method; those of the leading methods never change."""
    rest = [method for method in methods if method not in _LEADING]
    colours = {**_LEADING, **dict(zip(rest, sns.color_palette("husl", max(len(rest), 1)), strict=False))}
    known = [*_LEADING, *rest]
    return {m: {"color": colours[m], "marker": _MARKERS[known.index(m) % len(_MARKERS)]} for m in methods}


def plot_band(axes: Axes, table: pd.DataFrame, x: str, y: str, name: str, **style: Any) -> None:
    """Draw one line with its interval; `table` has the columns `x`, `y`, low and high."""
    table = table.sort_values(x)
    axes.plot(table[x], table[y], label=name, markersize=4, **style)
    axes.fill_between(table[x], table["low"], table["high"], color=style["color"], alpha=0.18, linewidth=0)


def save(figure: Figure, folder: Path | str, name: str, origin: Mapping[str, Any]) -> None:
    """Write a figure as PNG and PDF, without the time of writing, so that equal figures are equal files.

    Parameters
    ----------
    figure : Figure
        The figure.
    folder, name
        Where it goes; the folder is made if need be.
    origin : Mapping
        What it was drawn from, see `Results.origin`; kept in the metadata of both files.
    """
    note = json.dumps(origin, sort_keys=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None, "Description": note})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Subject": note})
