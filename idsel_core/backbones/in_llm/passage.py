"""What happens to the visual tokens of one call on their way through the language model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from idsel_core.methods._shared.in_llm import InLLM
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Slots


@dataclass(frozen=True, eq=False)
class Drop:
    """What happened before one layer.

    Attributes
    ----------
    layer : int
        The first layer that reads what is left.
    counts : Tensor
        Tokens left of each image, merged ones among them, int64 (I,).
    selection : Selection
        Those of them that were not merged, numbered as the tokens that the method saw before the language model.
    milliseconds : float
        Wall time of the choice with its scores.
    """

    layer: int
    counts: Tensor
    selection: Selection
    milliseconds: float


@dataclass(eq=False)
class Passage:
    """How the visual tokens of one call pass through the language model.

    Attributes
    ----------
    entering : Selection
        The tokens that enter it.
    depth : int
        Its layers.
    drops : list[Drop]
        What was dropped so far; complete once the prompt was read.
    """

    entering: Selection
    depth: int
    drops: list[Drop] = field(default_factory=list)

    @property
    def left(self) -> Selection:
        """The tokens that are left after the last drop; merged ones have no number and are not among them."""
        return self.drops[-1].selection if self.drops else self.entering

    @property
    def layers(self) -> Tensor:
        """Tokens that each layer reads of each image, int64 (I, depth)."""
        counts = [self.entering.counts] * self.depth
        for drop in self.drops:
            counts[drop.layer :] = [drop.counts.to(self.entering.counts.device)] * (self.depth - drop.layer)
        return torch.stack(counts, 1)


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to happen to I images in B prompts."""

    method: InLLM
    slots: Slots
    placeholder: Tensor  # (B, L)
    places: tuple[int, ...]
    counts: Tensor  # (I, places)
    passage: Passage
    words: Tensor | None  # (B, L): the words that ask, where the method reads them
    ends: Tensor  # (B, L): the last token before the answer
    labelled: bool = False  # whether the last states need a column for each label
