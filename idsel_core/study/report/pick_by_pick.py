"""ID-Selection pick by pick: a poster, and a frame for each pick."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from idsel_core.study.report import palette, theme
from idsel_core.study.report.pictures import draw_heat, draw_kept


def poster(
    picture: Image.Image,
    order: Sequence[int],
    trace: np.ndarray,
    diverse: Sequence[int],
    grid: tuple[int, int],
    steps: Sequence[int] = (0, 1, 2, 4, 8, 16),
) -> Figure:
    """Draw a picture, its importance, what diversity alone keeps, what ID-Selection keeps, and how the scores fall.

    Parameters
    ----------
    picture : Image
        What the model reads.
    order : sequence of int
        Picks of ID-Selection.
    trace : ndarray
        Scores before each pick and after the last, (K + 1, N), -inf at picks.
    diverse : sequence of int
        Picks of diversity alone.
    grid : tuple[int, int]
        Rows and columns of tokens.
    steps : sequence of int
        Numbers of picks after which the scores are drawn; those that there are not are left out.
    """
    steps = [step for step in steps if step < len(trace)]
    figure = plt.figure(figsize=(theme.PAGE, 3.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.75, 1.25))
    above, below = parts
    top, bottom = above.subplots(1, 4), below.subplots(1, len(steps), squeeze=False)[0]
    top[0].imshow(picture)
    top[0].set_axis_off()
    draw_heat(top[1], picture, trace[0], *grid)
    draw_kept(top[2], picture, diverse, *grid)
    draw_kept(top[3], picture, order, *grid)
    names = ("image", "importance", f"diversity only: {len(diverse)}", f"ID-Selection: {len(order)}")
    for axis, name in zip(top, names, strict=True):
        axis.set_title(name, fontsize="small")
    for axis, step in zip(bottom, steps, strict=True):
        _draw_left(axis, picture, trace, order, step, grid)
        axis.set_title("before pick 1" if step == 0 else f"after pick {step}", fontsize="small")
    return figure


def _draw_left(
    axis: Axes, picture: Image.Image, trace: np.ndarray, order: Sequence[int], step: int, grid: tuple[int, int]
) -> None:
    """Draw the scores after so many picks on the scale of the first scores, and the picks."""
    left = np.where(np.isfinite(trace[step]), trace[step], np.nan)
    draw_heat(axis, picture, left, *grid)
    axis.images[-1].set_clim(0, trace[0].max())
    width, height = picture.width / grid[1], picture.height / grid[0]
    for pick, token in enumerate(order[:step], 1):
        color = palette.PICK if pick == step else palette.PICKED
        corner = token % grid[1] * width, token // grid[1] * height
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.0))


def frames(
    picture: Image.Image, order: Sequence[int], trace: np.ndarray, grid: tuple[int, int], width: int = 640
) -> list[Image.Image]:
    """Return a picture for each number of picks, from 0: the scores that are left beside the tokens that are kept.

    Parameters
    ----------
    picture, order, trace, grid
        As for `poster`.
    width : int
        Of a frame, pixels.
    """
    drawn = []
    for step in range(len(trace)):
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.5), layout="constrained")
        _draw_left(axes[0], picture, trace, order, step, grid)
        draw_kept(axes[1], picture, order[:step], *grid)
        axes[0].set_title("score left")
        axes[1].set_title(f"{step} of {grid[0] * grid[1]} tokens kept")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=width / 6.4, bbox_inches=None)
        plt.close(figure)
        drawn.append(Image.open(buffer).convert("RGB"))
    return drawn
