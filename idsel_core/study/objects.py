"""Where objects lie among the visual tokens of an image, by the boxes of a data set."""

from __future__ import annotations

from typing import cast

import numpy as np
from torch import Tensor

from idsel_core.selection.result import Selection
from idsel_core.study.dataset import Split


class Objects:
    """The places of objects in the images of a split with boxes; each image is looked at once for each grid.

    Parameters
    ----------
    split : Split
        Questions, and images with their boxes.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._known: dict[tuple[str, int, int], np.ndarray] = {}

    def inside(self, image_id: str, rows: int, columns: int) -> np.ndarray:
        """Return which cells of a grid over an image have their middle in an object's box, bool (rows, columns)."""
        key = (image_id, rows, columns)
        if key not in self._known:
            self._known[key] = self._inside(*key)
        return self._known[key]

    def _inside(self, image_id: str, rows: int, columns: int) -> np.ndarray:
        width, height = self.split.picture(image_id).size
        x, y = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows)[:, None] + 0.5) * height / rows
        inside = np.zeros((rows, columns), bool)
        for box in cast(list[dict[str, int]], self.split.images.at[image_id, "objects"]):
            inside |= (x >= box["left"]) & (x < box["right"]) & (y >= box["top"]) & (y < box["bottom"])
        return inside


def shares_on_objects(kept: Selection, grid: Tensor, inside: list[np.ndarray]) -> list[float]:
    """Return the share of each image's kept tokens whose middles lie on an object, NaN where all were merged.

    Parameters
    ----------
    kept : Selection
        Tokens of I images.
    grid : Tensor
        Row and column of each token, int64 (I, N, 2), which may be of a smaller grid than `inside`.
    inside : list[ndarray]
        Which cells of each whole image lie on an object, bool (rows, columns).
    """
    shares = []
    for places, tokens, on_object in zip(grid, kept.rows(), inside, strict=True):
        sides = (places.amax(0) + 1).tolist()
        at = places[tokens.to(places.device)].cpu().numpy()  # (K, 2)
        y, x = ((at[:, axis] * 2 + 1) * on_object.shape[axis] // (2 * sides[axis]) for axis in (0, 1))
        shares.append(float(on_object[y, x].mean()) if len(at) else float("nan"))
    return shares
