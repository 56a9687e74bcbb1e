"""PyramidDrop: fewer tokens from stage to stage, by the attention of the prompt's last token."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from idsel_core.methods.in_llm import (
    Choice,
    InLLM,
    LayerTokens,
    Positions,
    Reads,
    check_layers,
    most_attended,
    places_of,
)


@dataclass(frozen=True)
class PyramidDrop(InLLM):
    """Drop tokens in stages, by the attention that the prompt's last token would pay in the layer that follows.

    From stage to stage the tokens fall by one factor, which follows from the budget: by half for 72 of 576 tokens at
    last, or 270 on average. Positions are numbered anew at each stage.

    Source: PyramidDrop, arXiv 2410.17247.

    Parameters
    ----------
    layers : tuple of int or float
        First layer of each stage but the first, or its share of the depth; by default layers 8, 16 and 24 of 32.
    """

    name: ClassVar[str] = "pyramiddrop"
    positions: ClassVar[Positions] = "compact"
    reads: ClassVar[Reads] = "after"

    _: KW_ONLY
    layers: tuple[int | float, ...] = (8 / 32, 16 / 32, 24 / 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("layers", self.layers)

    def places(self, depth: int) -> tuple[int, ...]:
        """Return the layers before which tokens are dropped."""
        return places_of(self.layers, depth)

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep the most attended tokens."""
        return most_attended(tokens, counts)
