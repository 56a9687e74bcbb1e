"""FastV: attention of the last prompt token in an early layer of the language model."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from idsel_core.methods._shared.drop_plan import check_layer, resolve_layers
from idsel_core.methods._shared.in_llm import Choice, InLLM, LayerTokens, Positions, most_attended


@dataclass(frozen=True)
class FastV(InLLM):
    """Drop tokens once, by the attention of the last prompt token in the layer before the drop.

    It is the last token before the answer, where one stands behind the prompt. Kept tokens keep their positions.

    Source: FastV, arXiv 2403.06764.

    Parameters
    ----------
    layer : int or float
        Drop layer, the first that reads fewer tokens, or its share of the depth; by default layer 2 of 32.
    """

    name: ClassVar[str] = "fastv"
    label: ClassVar[str] = "FastV"
    positions: ClassVar[Positions] = "keep"

    _: KW_ONLY
    layer: int | float = 2 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer("layer", self.layer)

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layer."""
        return resolve_layers((self.layer,), num_layers)

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep the most attended tokens."""
        return most_attended(tokens, counts)
