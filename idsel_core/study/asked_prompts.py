"""The shortened prompts of one method and some questions, and what tells their answers apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from idsel_core.methods import Method
from idsel_core.selection.result import Selection
from idsel_core.study.common_batches import ShortPrompt


@dataclass(frozen=True, eq=False)
class AskedPrompts:
    """The shortened prompts of one method and some questions, and what the rows say of them.

    Attributes
    ----------
    method : Method or str
        Of the rows.
    keys : sequence of Hashable
        What the answer to each prompt depends on, beside the model.
    prompts : sequence of ShortPrompt
        To be answered.
    layers : ndarray
        Visual tokens that each layer reads, int (B, layers).
    words : list[int]
        Columns of each prompt that hold no visual token.
    before : ndarray
        Visual tokens of the images, int (B,).
    on_objects : list[float], optional
        Share of the kept tokens that lie on an object, where that is known.
    answers : list[Tensor], optional
        New tokens of each prompt, where it was answered already.
    """

    method: Method | str
    keys: Sequence[Hashable]
    prompts: Sequence[ShortPrompt]
    layers: np.ndarray
    words: list[int]
    before: np.ndarray
    on_objects: list[float] | None = None
    answers: list[Tensor] | None = None


def picks_of(selection: Selection) -> Sequence[Hashable]:
    """Return what tells the kept tokens of each row apart: their indices, and their features where they are new."""
    indices = [row.cpu().numpy().tobytes() for row in selection.rows()]
    if selection.features is None:
        return indices
    kept = (row[:count] for row, count in zip(selection.features, selection.counts.tolist(), strict=True))
    features = [row.cpu().contiguous().view(torch.uint8).numpy().tobytes() for row in kept]
    return list(zip(indices, features, strict=True))
