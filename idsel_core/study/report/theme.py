"""The theme of all figures: widths, one label and one colour a method, percent axes, and how figures are saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from idsel_core.methods import METHODS

COLUMN, PAGE = 3.4, 7.0
"""Widths of a text column and of a page, inches."""

ENDS: Final = {"full": "all tokens", "no-image": "no image"}
"""Labels of the two ends of the scale, which are no methods."""
FINAL: Final = " (final)"
"""What `comparison.by_title` adds to the name of a method whose budget is the tokens left after the last drop."""

CONTROLS: Final = ("topk", "diversity", "random", "uniform", "downsample")
"""The methods that a pruning method has to beat."""

_FIRST = ("idselection", *CONTROLS, *ENDS)
_LEADING = dict(zip(_FIRST, [*sns.color_palette("colorblind", 6), "0.2", "0.6"], strict=True))
_MARKERS = "osD^vPXd<>ph*8H"


def use_theme() -> None:
    """Set the one theme of all figures."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "legend.frameon": False, "pdf.fonttype": 42}
    )


def label(method: str) -> str:
    """Return what figures and tables call a method, or "name, knobs"; a name that is not registered stays as it is."""
    whole, final = method.removesuffix(FINAL), FINAL if method.endswith(FINAL) else ""
    name, comma, knobs = whole.partition(", ")
    known = METHODS[name].label if name in METHODS else ENDS.get(name, name)
    return known + comma + knobs + final


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method; those of the leading methods never change."""
    rest = [method for method in methods if method not in _LEADING]
    colours = {**_LEADING, **dict(zip(rest, sns.color_palette("husl", max(len(rest), 1)), strict=False))}
    known = [*_LEADING, *rest]
    return {m: {"color": colours[m], "marker": _MARKERS[known.index(m) % len(_MARKERS)]} for m in methods}


def plot_band(axes: Axes, table: pd.DataFrame, x: str, y: str, name: str, **style: Any) -> Line2D:
    """Draw one line with its interval, and return the line; `table` has the columns `x`, `y`, low and high."""
    table = table.sort_values(x)
    line: Line2D = axes.plot(table[x], table[y], label=name, markersize=4, **style)[0]
    axes.fill_between(table[x], table["low"], table["high"], color=line.get_color(), alpha=0.18, linewidth=0)
    return line


def percent_axis(axis: Axis) -> None:
    """Show shares as percent, at ticks that no rounding moves."""
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def budget_axis(axes: Axes, budgets: ArrayLike, name: str = "visual tokens kept") -> None:
    """Give a logarithmic x axis a tick at each budget, and a label where there is room for one."""
    ticks = sorted(set(np.asarray(budgets).astype(int).tolist()))
    axes.set_xscale("log", base=2)
    _ticks(axes, ticks, _labels_with_room(ticks, 1.7))
    axes.set_xlabel(name)


def gamma_axis(axes: Axes, gammas: ArrayLike) -> None:
    """Give a logarithmic x axis that begins at 0 ticks at the fixed gammas, and labels where there is room for one."""
    ticks = sorted({gamma for gamma in np.asarray(gammas).astype(float).tolist() if gamma >= 0})
    axes.set_xscale("symlog", linthresh=1, base=10)
    _ticks(axes, ticks, _labels_with_room(ticks, 2.2))
    axes.set_xlim(-0.1 if ticks[0] < 1 else ticks[0] / 1.15, 1.15 * max(1.0, ticks[-1]))
    axes.set_xlabel("gamma")


def _labels_with_room(ticks: Sequence[float], ratio: float) -> list[str]:
    """Return the labels of rising ticks, empty where the next label to the right is nearer than a ratio."""
    said: list[str] = []
    last = float("inf")
    for tick in reversed(ticks):
        room = last > tick * ratio
        said.insert(0, f"{tick:g}" if room else "")
        last = tick if room else last
    return said


def _ticks(axes: Axes, ticks: Sequence[float], labels: Sequence[str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FixedFormatter(list(labels)))
    axes.xaxis.set_minor_locator(NullLocator())


def questions_asked(rows: pd.DataFrame) -> str:
    """Say how many questions rows hold, of which splits and data sets, and which backbones answered."""
    whence = [name for name in ("split", "dataset") if name in rows]
    if not whence:
        return f"{rows['question_id'].nunique():,} questions"
    counts = rows.groupby(whence, sort=False)["question_id"].nunique()
    texts = []
    for key, count in counts.items():
        split, *of = key if isinstance(key, tuple) else (key,)
        texts.append(f"{count:,} questions of split {split}" + "".join(f" of {name}" for name in of))
    if "backbone" in rows:
        texts.append("backbone " + " and ".join(rows["backbone"].unique()))
    return ", ".join(texts)


def add_note(figure: Figure, *lines: str) -> Figure:
    """Write lines in the lower right corner of a figure, such as how many questions it asked."""
    text = "\n".join(line for line in lines if line)
    figure.supxlabel(text, x=0.995, ha="right", fontsize=6.5, color="0.35")
    return figure


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
