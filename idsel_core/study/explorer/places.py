"""Where visual tokens lie on the picture that is shown."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor

from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class Places:
    """Where the tokens of one image lie.

    Attributes
    ----------
    rows, columns : int
        Of the grid that lies over the picture.
    cells : ndarray
        The cell of each token in raster order, int (N,); -1 of a token that lies nowhere on the picture.
    """

    rows: int
    columns: int
    cells: np.ndarray

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """The token of each cell, int (rows * columns,); -1 where there is none."""
        tokens = np.full(self.rows * self.columns, -1)
        drawn = np.flatnonzero(self.cells >= 0)[::-1]  # the first token of a cell is written last
        tokens[self.cells[drawn]] = drawn
        return tokens

    def field(self, values: np.ndarray) -> np.ndarray:
        """Return values (N,) of tokens as a map (rows, columns), NaN where there is no token."""
        field = np.where(self.tokens >= 0, np.asarray(values, float)[self.tokens], np.nan)
        return field.reshape(self.rows, self.columns)

    def token_at(self, spot: tuple[float, float]) -> int | None:
        """Return the token at shares of height and width, or None where there is none."""
        row, column = (int(min(max(at, 0.0) * n, n - 1)) for at, n in zip(spot, (self.rows, self.columns), strict=True))
        token = int(self.tokens[row * self.columns + column])
        return None if token < 0 else token


def places_of(tokens: VisualTokens) -> Places:
    """Return where the tokens of the first image lie.

    Crops lie beside each other on the picture, and the thumbnail's tokens lie nowhere; of tiles whose order is not
    known, those of the last tile, which shows the whole picture, are placed alone.

    Raises
    ------
    ValueError
        If no token has a place.
    """
    count = int(tokens.lengths[0])
    grid = tokens.grid[0, :count].cpu().numpy()  # (N, 2)
    placed = grid[:, 0] >= 0
    if "crops" in tokens.sources and (crops := tokens.crops[0, :count].cpu().numpy())[:, 0].max() >= 0:
        placed &= crops[:, 0] >= 0
        side = grid.max(0) + 1
        grid = grid + crops * side
    elif "tiles" in tokens.sources:
        tiles = tokens.sources["tiles"]()[0, :count].cpu().numpy()
        placed &= tiles == tiles.max()
    if not placed.any():
        raise ValueError("the tokens of this model have no place on the picture")
    low, high = grid[placed].min(0), grid[placed].max(0)
    rows, columns = (high - low + 1).tolist()
    cells = np.where(placed, (grid[:, 0] - low[0]) * columns + grid[:, 1] - low[1], -1)
    return Places(rows, columns, cells)


def picture_read(processor: object, pixels: Tensor | None, picture: Image.Image) -> Image.Image:
    """Return the part of a picture that the model reads, which some processors cut out of it.

    Parameters
    ----------
    processor : object
        Of the model.
    pixels : Tensor, optional
        What it made of the picture; (1, 3, height, width) where the model reads one image without tiles.
    picture : Image
        The whole picture, which is returned of models that read it otherwise.
    """
    images = getattr(processor, "image_processor", None)
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if pixels is None or pixels.ndim != 4 or pixels.shape[:2] != (1, 3):
        return picture
    values = pixels[0].float().cpu().numpy().transpose(1, 2, 0)  # (height, width, 3)
    if getattr(images, "do_normalize", False) and mean is not None and std is not None:
        values = values * np.asarray(std) + np.asarray(mean)
    if getattr(images, "do_rescale", True):
        values = values * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
