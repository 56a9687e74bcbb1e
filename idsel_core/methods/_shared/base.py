"""The base of all selection methods."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Method(ABC):
    """A selection method: a frozen dataclass whose fields are its knobs.

    A method of your own implements `select`; ``docs/new_method.md`` shows how. Images with different numbers of tokens
    are padded to one batch, and padding may hold any value in features and views, NaN included: mask with
    ``tokens.mask`` before a sum, mean, sort or product over tokens.

    Parameters
    ----------
    budget : int or float
        Number or share of tokens to keep of each image, see `resolve_budget`.

    Raises
    ------
    TypeError, ValueError
        If a knob has a bad type or value.
    """

    name: ClassVar[str]
    """Name in the registry and in stored rows."""
    label: ClassVar[str]
    """What figures and tables call the method; its name by default."""
    acts_on_pixels: ClassVar[bool] = False
    """Whether the method wants smaller images: true of those that have a `target_grid` of their own."""

    shares_budget: ClassVar[bool] = False
    """Whether the images of a batch share a budget, so that what one keeps depends on the others."""

    budget: int | float

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__ and "label" not in cls.__dict__:
            cls.label = cls.name
        cls.acts_on_pixels = cls.target_grid is not Method.target_grid

    def __post_init__(self) -> None:
        resolve_budget(self.budget, torch.tensor([sys.maxsize]))

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads, other than the layer that feeds the projector."""
        return ()

    def target_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the token grid to resize an image to; by default the grid that it has."""
        return rows, columns

    @abstractmethod
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Parameters
        ----------
        tokens : VisualTokens
            B rows. Padding may hold NaN.

        Returns
        -------
        Selection
            B rows.
        """


def take_best(scores: Tensor, tokens: VisualTokens, budget: int | float) -> Selection:
    """Keep the tokens of highest score; ties go to the lowest index.

    Parameters
    ----------
    scores : Tensor
        (B, N), any float dtype; padding may hold any value.
    tokens : VisualTokens
        B rows.
    budget : int or float
        Number or share of tokens to keep of each image, see `resolve_budget`.

    Raises
    ------
    ValueError
        If scores are not (B, N), or NaN at a token.
    """
    counts = resolve_budget(budget, tokens.lengths)
    if scores.shape != tokens.mask.shape:
        raise ValueError(f"scores must be {tuple(tokens.mask.shape)}, a row an image, not {tuple(scores.shape)}")
    if bool((scores.isnan() & tokens.mask).any()):
        row, token = (scores.isnan() & tokens.mask).nonzero()[0].tolist()
        raise ValueError(f"scores must not be NaN at a token; row {row}, token {token} is")
    scores = scores.float().masked_fill(~tokens.mask, -torch.inf)
    ranking = scores.sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]  # (B, K)
    beyond = torch.arange(ranking.shape[1], device=ranking.device) >= counts[:, None]
    return Selection.from_order(ranking.masked_fill(beyond, -1), scores, budget)


def keep_all(tokens: VisualTokens, budget: int | float, merged: bool = False) -> Selection:
    """Leave images whole: all tokens in raster order, with equal scores, and nothing merged.

    Parameters
    ----------
    tokens : VisualTokens
        B rows.
    budget : int or float
        As it was given.
    merged : bool
        Whether the selection has features, so that it can stand beside one that merges tokens; they are the tokens'.
    """
    place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand(tokens.mask.shape)
    whole = Selection.from_order(place.masked_fill(~tokens.mask, -1), tokens.mask.float().log(), budget)
    if not merged:
        return whole
    chosen = whole.indices.clamp_min(0)[..., None].expand(-1, -1, tokens.features.shape[2])
    return replace(whole, features=tokens.features.gather(1, chosen))
