"""Questions that a model answers right with all visual tokens, and wrong with those that a method keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from idsel_core.study.dataset import FULL
from idsel_core.study.report import palette
from idsel_core.study.report.pictures import draw_kept


def turned_wrong(rows: pd.DataFrame, method: str, budget: float) -> pd.DataFrame:
    """Return the rows of a method that are wrong where those of all tokens are right.

    Parameters
    ----------
    rows : DataFrame
        Stored rows of one split and one backbone, with those of all tokens.
    method : str
        Name of the method.
    budget : float
        Its budget.

    Returns
    -------
    DataFrame
        A row a question, with the column ``with_all``, the answer with all tokens. They come by the share of the kept
        tokens that lie on an object, and then by their question.

    Raises
    ------
    ValueError
        If the rows hold neither all tokens nor the method at this budget, or the method with several settings.
    """
    whole, pruned = rows[rows["method"] == FULL], rows[(rows["method"] == method) & (rows["budget"] == budget)]
    for name, part in (("all tokens", whole), (f"{method} at {budget:g} tokens", pruned)):
        if part.empty:
            raise ValueError(f"the rows hold none of {name}")
        if part["question_id"].duplicated().any():
            raise ValueError(f"the rows hold several settings of {name}: choose one of them first")
    both = pruned.merge(
        whole[["question_id", "prediction", "correct"]].rename(columns={"prediction": "with_all", "correct": "right"}),
        on="question_id",
        validate="one_to_one",
    )
    wrong = both[(both["right"] == 1) & (both["correct"] == 0)].drop(columns="right")
    return wrong.sort_values(["on_objects", "question_id"], ignore_index=True)


def draw_dropped(
    axis: Axes, picture: Image.Image, order: Sequence[int], grid: tuple[int, int], inside: np.ndarray
) -> int:
    """Draw the kept tokens of a picture, and a border around each dropped token that lies on an object.

    Parameters
    ----------
    axis : Axes
        Where to draw.
    picture : Image
        The picture.
    order : sequence of int
        Kept tokens, as they were picked.
    grid : tuple[int, int]
        Rows and columns of tokens.
    inside : ndarray
        Which tokens lie on an object, bool (N,), in raster order.

    Returns
    -------
    int
        Number of tokens on objects that were dropped.
    """
    draw_kept(axis, picture, order, *grid)
    dropped = np.setdiff1d(np.flatnonzero(inside), order)
    width, height = picture.width / grid[1], picture.height / grid[0]
    for token in dropped.tolist():
        corner = token % grid[1] * width, token // grid[1] * height
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=palette.DROPPED, linewidth=0.6))
    return len(dropped)
