"""What a figure shows, read off what is drawn, for those who cannot see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter
from PIL import Image

ALT: Final = "Alt Text"
"""The keyword of the text in a PNG file."""
_LONGEST: Final = 900


def read_alt(path: Path) -> str:
    """Return the alt text that a PNG file holds, "" if it holds none."""
    with Image.open(path) as image:
        return str(image.info.get(ALT, ""))


def alt_text(figure: Figure) -> str:
    """Say what a figure shows: its label, each panel with its axes and the ends of what is drawn, titles of pictures.

    Parameters
    ----------
    figure : Figure
        The figure. Panels that would make the text too long are counted.
    """
    title = str(figure.get_label())
    panels = [text for axes in figure.axes if (text := _panel(axes))]
    pictures = [" ".join(axes.get_title().split()) for axes in figure.axes if axes.images and axes.get_title()]
    if pictures:
        panels.append(f"Pictures: {'; '.join(pictures)}.")
    said = [f"{title}."] if title else []
    for number, panel in enumerate(panels):
        if number and sum(map(len, said)) + len(panel) > _LONGEST:
            said.append(f"And {len(panels) - number} more panels.")
            break
        said.append(panel)
    return " ".join(said)


def _panel(axes: Axes) -> str:
    if axes.get_label() == "<colorbar>" or not axes.get_visible():
        return ""
    title = " ".join(axes.get_title().split())
    if axes.images or not axes.axison:
        return ""
    across, up = (" ".join(name.split()) for name in (axes.get_xlabel(), axes.get_ylabel()))
    sides = f"{up} against {across}" if up and across else up or across
    head = ", ".join(filter(None, (title, sides)))
    body = _heat(axes) or _series(axes)
    text = f"{head}: {body}" if head and body else head or body
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _series(axes: Axes) -> str:
    """Say where each named series begins and ends, or between which values its points lie."""
    said, of_bars = [], {id(line) for one in axes.containers for line in _lines(one)}
    rows = [text.get_text() for text in axes.get_yticklabels() if text.get_text()]
    named = bool(rows) and not any(_number(row) for row in rows)
    for line in axes.lines:
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        name = str(line.get_label())
        if name.startswith("_") or id(line) in of_bars or not x.size:
            continue
        if line.get_transform() == axes.get_yaxis_transform():
            said.append(f"{name} at {_said(axes.yaxis, y[0])}")
        elif line.get_transform() != axes.get_xaxis_transform():
            first, last = int(x.argmin()), int(x.argmax())
            start, end = (f"{_said(axes.yaxis, y[at])} at {_said(axes.xaxis, x[at])}" for at in (first, last))
            said.append(f"{name} {start}" + (f", {end}" if first != last else ""))
    for container in axes.containers:
        name = str(container.get_label())
        if isinstance(container, ErrorbarContainer) and container[0] is not None:
            x = np.asarray(container[0].get_xdata(), float)
            if x.size and np.isfinite(x).any():
                low, high = (_said(axes.xaxis, value) for value in (np.nanmin(x), np.nanmax(x)))
                said.append(f"{name} ({int(np.isfinite(x).sum())}) from {low} to {high}")
        elif isinstance(container, BarContainer) and not name.startswith("_"):
            widths = [bar.get_width() for bar in container]
            said.append(f"{name} from {_said(axes.xaxis, min(widths))} to {_said(axes.xaxis, max(widths))}")
    for points in axes.collections:
        if isinstance(points, PathCollection) and not str(points.get_label()).startswith("_"):
            said.append(f"{points.get_label()} ({len(np.asarray(points.get_offsets()))})")
    if named and said:
        said.append(f"{len(rows)} rows from {rows[-1]} at the top to {rows[0]} at the bottom")
    return "; ".join(said)


def _lines(container: Any) -> list[Any]:
    return [container[0], *container[1]] if isinstance(container, ErrorbarContainer) else []


def _heat(axes: Axes) -> str:
    """Say of a heat map how many rows and columns it has, and in each column the range."""
    mesh = next((one for one in axes.collections if isinstance(one, QuadMesh)), None)
    if mesh is None:
        return ""
    values: np.ndarray = np.ma.filled(np.ma.asarray(mesh.get_array(), float), np.nan)
    rows, columns = ([text.get_text() for text in ticks] for ticks in (axes.get_yticklabels(), axes.get_xticklabels()))
    values = values.reshape(len(rows), len(columns))
    said = []
    for name, column in zip(columns, values.T, strict=True):
        if np.isfinite(column).any():
            best, worst = int(np.nanargmax(column)), int(np.nanargmin(column))
            said.append(f"{name}: {column[best]:.1f} ({rows[best]}) to {column[worst]:.1f} ({rows[worst]})")
    return f"{len(rows)} rows from {rows[0]} to {rows[-1]}; " + "; ".join(said)


def _said(axis: Axis, value: float) -> str:
    form = axis.get_major_formatter()
    if isinstance(form, FuncFormatter | PercentFormatter):
        # Points beside a named tick, moved apart to be seen, belong to it.
        nearest = min(axis.get_majorticklocs(), key=lambda tick: abs(tick - value), default=value)
        return str(form(round(float(value), 3)) or form(nearest))
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _number(text: str) -> bool:
    try:
        float(text.replace("\N{MINUS SIGN}", "-").rstrip("%").removeprefix("all "))
    except ValueError:
        return False
    return True
