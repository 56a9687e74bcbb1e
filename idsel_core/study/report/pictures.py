"""Scores and kept tokens drawn on an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike
from PIL import Image

from idsel_core.study.report import palette


def draw_heat(axis: Axes, picture: Image.Image, scores: ArrayLike, rows: int, columns: int) -> None:
    """Lay a map of scores (rows x columns values in raster order) over a picture."""
    width, height = picture.size
    axis.imshow(picture.convert("L"), cmap=palette.PICTURE, alpha=0.9)
    field = np.asarray(scores, float).reshape(rows, columns)
    axis.imshow(field, cmap=palette.SCORES, alpha=0.65, extent=(0, width, height, 0), interpolation="nearest")
    axis.set_axis_off()


def draw_kept(axis: Axes, picture: Image.Image, order: Sequence[int], rows: int, columns: int) -> None:
    """Dim the tokens of a picture that were not kept; the first pick's border is brightest, the last one's darkest."""
    width, height = picture.size
    cell_width, cell_height = width / columns, height / rows
    shade = np.full((rows * columns,), 0.78)
    shade[list(order)] = 0.0
    axis.imshow(picture)
    veil = np.zeros((rows, columns, 4))
    veil[..., 3] = shade.reshape(rows, columns)
    axis.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
    for color, token in zip(sns.color_palette(palette.PICKS, len(order)), order, strict=True):
        x, y = token % columns * cell_width, token // columns * cell_height
        axis.add_patch(Rectangle((x, y), cell_width, cell_height, fill=False, edgecolor=color, linewidth=0.8))
    axis.set_axis_off()
