"""PyramidDrop: fewer tokens from stage to stage, by the attention of the last prompt token."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from idsel_core.methods._shared.drop_plan import check_layers, resolve_layers
from idsel_core.methods._shared.in_llm import AttentionFrom, Choice, InLLM, LayerTokens, Positions, most_attended


@dataclass(frozen=True)
class PyramidDrop(InLLM):
    """Drop tokens in stages, by the attention that the last prompt token would pay to them in the next layer.

    It is the last token before the answer, where one stands behind the prompt. Every stage multiplies the number of
    tokens by the same factor, which follows from the budget: by one half if 72 of 576 tokens are left at last, or 270
    on average. Positions are numbered anew at each stage.

    Source: PyramidDrop, arXiv 2410.17247.

    Parameters
    ----------
    layers : tuple of int or float
        Drop layers, the first of each stage but the first stage, or their shares of the depth; by default layers 8, 16
        and 24 of 32.
    """

    name: ClassVar[str] = "pyramiddrop"
    label: ClassVar[str] = "PyramidDrop"
    positions: ClassVar[Positions] = "compact"
    attention_from: ClassVar[AttentionFrom] = "after"

    _: KW_ONLY
    layers: tuple[int | float, ...] = (8 / 32, 16 / 32, 24 / 32)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("layers", self.layers)

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layers."""
        return resolve_layers(self.layers, num_layers)

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep the most attended tokens."""
        return most_attended(tokens, counts)
