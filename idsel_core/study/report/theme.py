"""The theme of all figures: sizes for paper and slides, names beside lines, percent axes, and how figures are saved."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.optimize import isotonic_regression

from idsel_core.methods import METHODS
from idsel_core.study.report import palette
from idsel_core.study.report.alt_text import ALT, alt_text

COLUMN, PAGE = 3.4, 7.0
"""Widths of a text column and of a page, inches."""


@dataclass(frozen=True)
class Use:
    """What figures are drawn for.

    Attributes
    ----------
    column, page : float
        Widths of a narrow and of a wide figure, inches.
    tallest : float
        No figure is taller, inches.
    scale : float
        Of heights, fonts, lines and markers.
    dpi : float
        Dots an inch of PNG files.
    """

    column: float
    page: float
    tallest: float
    scale: float
    dpi: float


USES: Final = {"paper": Use(COLUMN, PAGE, 9.5, 1.0, 200), "slides": Use(8.4, 12.8, 7.2, 1.75, 160)}
_FONT: Final = 8.0
"""Size of text in papers, points; that of ticks, legends and notes is smaller."""
_now = USES["paper"]

ENDS: Final = {"full": "all tokens", "no-image": "no image", "other-image": "another image"}
"""Labels of the ends of the scale, which are no methods."""
FINAL: Final = " (final)"
"""What `comparison.by_title` adds to the name of a method whose budget is the tokens left after the last drop."""

CONTROLS: Final = ("topk", "diversity", "random", "uniform", "downsample")
"""The methods that a pruning method has to beat."""


def use_theme(use: str = "paper") -> None:
    """Set the one theme of all figures.

    Parameters
    ----------
    use : str
        A name of `USES`.

    Raises
    ------
    ValueError
        If there is no such use.
    """
    global _now
    if use not in USES:
        raise ValueError(f"figures are drawn for {' or '.join(USES)}, not for {use!r}")
    _now, scale = USES[use], USES[use].scale
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    small, least = 0.9 * _FONT * scale, 0.78 * _FONT * scale
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": _now.dpi,
            "savefig.bbox": "standard",
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "ps.fonttype": 42,
            "font.size": _FONT * scale,
            "axes.labelsize": _FONT * scale,
            "axes.titlesize": _FONT * scale,
            "legend.title_fontsize": _FONT * scale,
            "legend.fontsize": small,
            "xtick.labelsize": small,
            "ytick.labelsize": small,
            "figure.labelsize": least,
            "lines.linewidth": 1.2 * scale,
            "lines.markersize": 3.6 * scale,
            "lines.markeredgewidth": 0.6 * scale,
            "axes.linewidth": 0.7 * scale,
            "grid.linewidth": 0.6 * scale,
            "axes.edgecolor": palette.CROWD,
            "grid.color": palette.GRID,
            "text.color": palette.INK,
            "axes.labelcolor": palette.INK,
            "xtick.color": palette.INK,
            "ytick.color": palette.INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def size(width: str, height: float) -> tuple[float, float]:
    """Return the size of a figure in inches, for what figures are drawn for now.

    Parameters
    ----------
    width : str
        "column" or "page".
    height : float
        In a paper, inches.
    """
    return {"column": _now.column, "page": _now.page}[width], min(_now.tallest, _now.scale * height)


def size_for_rows(rows: int, each: float, rest: float) -> tuple[float, float]:
    """Return the size of a figure as wide as a page with a row for each of many things, inches.

    Parameters
    ----------
    rows : int
        How many rows.
    each, rest : float
        Heights of a row and of all else in a paper, inches.
    """
    return size("page", rest + each * rows)


def points(share: float = 1.0) -> float:
    """Return a size of text in points, as a share of that of the labels of axes."""
    return share * _FONT * _now.scale


def row_points(figure: Figure, rows: int, rest: float) -> float:
    """Return the size of text, in points, that rows of a figure have room for.

    Parameters
    ----------
    figure : Figure
        The figure.
    rows : int
        How many rows are above each other.
    rest : float
        Height of all else in a paper, inches.
    """
    room = figure.get_size_inches()[1] - rest * _now.scale
    return min(points(0.9), max(0.82 * 72 * room / max(rows, 1), 1.0))


def label(method: str) -> str:
    """Return what figures and tables call a method, or "name, knobs"; a name that is not registered stays as it is."""
    whole, final = method.removesuffix(FINAL), FINAL if method.endswith(FINAL) else ""
    name, comma, knobs = whole.partition(", ")
    known = METHODS[name].label if name in METHODS else ENDS.get(name, name)
    return known + comma + knobs + final


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method, which no company changes; where its budget is final, dashed and open."""
    drawn = {}
    for method in methods:
        colour, marker = palette.of_method(method.removesuffix(FINAL))
        final = {"linestyle": "--", "markerfacecolor": palette.PICKED} if method.endswith(FINAL) else {}
        drawn[method] = {"color": colour, "marker": marker, **final}
    return drawn


def plot_band(axes: Axes, table: pd.DataFrame, x: str, y: str, name: str, **style: Any) -> Line2D:
    """Draw one line with its interval, and return the line; `table` has the columns `x`, `y`, low and high."""
    table = table.sort_values(x)
    line: Line2D = axes.plot(table[x], table[y], label=name, **style)[0]
    axes.fill_between(table[x], table["low"], table["high"], color=line.get_color(), alpha=0.15, linewidth=0)
    return line


def name_lines(axes: Axes, lines: Sequence[Line2D] | None = None) -> None:
    """Write the name of each line to the right of the axes, at the height where it ends, instead of a legend.

    Parameters
    ----------
    axes : Axes
        Whose limits and scales are set.
    lines : sequence of Line2D, optional
        Which lines; by default all that have names.
    """
    lines = [one for one in axes.lines if not str(one.get_label()).startswith("_")] if lines is None else lines
    ends = []
    for line in lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        level = len(x) == 2 and line.get_transform() == axes.get_yaxis_transform()
        last = int(np.nanargmax(x))
        right = axes.get_xlim()[1] if level else x[last]
        ends.append((right, y[last], str(line.get_label()), line.get_color()))
    name_points(axes, ends)


def name_points(
    axes: Axes, ends: Sequence[tuple[float, float, str, Any]], side: str = "right", at: float | None = None
) -> None:
    """Write names beside points in a column in which none covers another, each with a thin line to its point.

    Parameters
    ----------
    axes : Axes
        Whose limits and scales are set.
    ends : sequence of tuples
        x and y in data coordinates, name and colour of each point.
    side : str
        "right": names begin at `at`; "left": they end there.
    at : float, optional
        Where the column is, as a share of the width of the axes; by default just outside them.
    """
    if not ends:
        return
    figure: Any = axes.figure
    figure.draw_without_rendering()
    at = (1.03 if side == "right" else -0.03) if at is None else at
    font = points(0.85)
    gap = 1.2 * font / 72 * figure.dpi / axes.bbox.height
    to_share = (axes.transData + axes.transAxes.inverted()).transform
    wanted = np.array([to_share((x, y))[1] for x, y, _, _ in ends])
    for place, (x, y, name, colour) in zip(spread(wanted, gap), ends, strict=True):
        axes.annotate(
            name,
            (x, y),
            (at, place),
            textcoords="axes fraction",
            annotation_clip=False,
            ha="left" if side == "right" else "right",
            va="center",
            fontsize=font,
            color=darker(colour),
            arrowprops={
                "arrowstyle": "-",
                "color": palette.CROWD,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0.0 if side == "right" else 1.0, 0.5),
            },
        )


def spread(wanted: ArrayLike, gap: float, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Move numbers apart until no two are nearer than a gap, all together as little as can be.

    Parameters
    ----------
    wanted : array
        The numbers, (N,).
    gap : float
        The least distance of two of them.
    low, high : float
        Where they have to lie, if that has room for all of them.

    Returns
    -------
    ndarray
        The numbers, (N,): the least sum of squared moves.
    """
    wanted = np.asarray(wanted, float)
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    apart = isotonic_regression(wanted[order] - steps).x
    apart = np.clip(apart, low, max(low, high - gap * (len(wanted) - 1))) + steps
    placed = np.empty_like(wanted)
    placed[order] = apart
    return placed


def darker(colour: Any) -> tuple[float, float, float]:
    """Return a colour for text in the colour of a line: dark enough to be read on white."""
    red, green, blue = to_rgb(colour)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    share = min(1.0, 0.42 / max(light, 1e-9))
    return red * share, green * share, blue * share


def percent_axis(axis: Axis) -> None:
    """Show shares as percent, at ticks that no rounding moves."""
    axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))


def number_ticks(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers: 1, 2, 5, 10, or more where it spans little."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high > 20 * low else (1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def budget_axis(axes: Axes, budgets: ArrayLike, name: str = "visual tokens kept", room: float = 1.7) -> None:
    """Give a logarithmic x axis a tick at each budget, and a label where the next one is further than a ratio."""
    ticks = sorted(set(np.asarray(budgets).astype(int).tolist()))
    axes.set_xscale("log", base=2)
    _ticks(axes, ticks, _labels_with_room(ticks, room))
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
    figure.supxlabel(text, x=0.995, ha="right", fontsize=points(0.72), color=palette.LINE)
    return figure


def save(figure: Figure, folder: Path | str, name: str, origin: Mapping[str, Any], alt: str | None = None) -> None:
    """Write a figure as PNG and PDF, show it where a notebook runs, and close it.

    The files hold no time of writing, so equal figures are equal files.

    Parameters
    ----------
    figure : Figure
        The figure; its label says in a few words what it shows.
    folder, name
        Where it goes; the folder is made if need be.
    origin : Mapping
        What it was drawn from, see `Results.origin`; kept in the metadata of both files.
    alt : str, optional
        What it shows, for those who cannot see it; by default `alt_text` reads it off the figure. Kept in the metadata
        of the PNG file, where pages take it from.
    """
    note, alt = json.dumps(origin, sort_keys=True), alt_text(figure) if alt is None else alt
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png = _png(figure, {"Description": note, ALT: alt})
    (folder / f"{name}.png").write_bytes(png)
    figure.savefig(
        folder / f"{name}.pdf",
        metadata={"CreationDate": None, "Subject": note, "Title": str(figure.get_label()) or name},
    )
    _show(png, alt, round(100 * figure.get_size_inches()[0] / _now.scale))
    plt.close(figure)


def _png(figure: Figure, notes: Mapping[str, str]) -> bytes:
    """Return a figure as PNG; one without pictures has no more than 256 colours, which makes it smaller."""
    drawn, written, info = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png")
    for key, text in notes.items():
        info.add_itxt(key, text)
    with Image.open(drawn) as image:
        dots = image.info["dpi"]
        flat = image.convert("RGB")
    if not any(axes.images for axes in figure.axes):
        flat = flat.quantize(256, kmeans=3, dither=Image.Dither.NONE)
    flat.save(written, "PNG", pnginfo=info, optimize=True, dpi=dots)
    return written.getvalue()


def _show(png: bytes, alt: str, width: int) -> None:
    """Show a PNG picture with its alt text where a notebook runs; elsewhere do nothing."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ModuleNotFoundError:
        return
    if get_ipython() is not None and "inline" in mpl.get_backend():
        shown = {"image/png": {"alt": alt, "width": width}}
        display({"image/png": png, "text/plain": alt}, metadata=shown, raw=True)
