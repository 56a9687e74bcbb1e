"""Base of methods that start from an importance score."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import get_args

from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.scores.registry import Normalise, check_importance, importance_scores
from idsel_core.visual_tokens import INSTRUCTION, QueryTokens, VisualTokens, check_instruction


@dataclass(frozen=True)
class Scored(Method):
    """A method with an importance score.

    Parameters
    ----------
    importance : str
        A name in `idsel_core.IMPORTANCE`.
    normalise : {"minmax", "raw"}
        Normalisation of each score before it is used or combined.
    instruction_layer : int
        Layer of the language model whose instruction attention is read; 0 is the first layer.
    instruction_tokens : {"words", "last"}
        Query tokens of that attention: the mean over the instruction's words, which are the user's own words of the
        last turn before the answer, or the last token of the prompt before the answer, at layer 1 or deeper.
    """

    _: KW_ONLY
    importance: str = "unified"
    normalise: Normalise = "minmax"
    instruction_layer: int = INSTRUCTION[0]
    instruction_tokens: QueryTokens = INSTRUCTION[1]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_importance(self.importance)
        if self.normalise not in get_args(Normalise):
            raise ValueError(f"normalise must be one of {', '.join(get_args(Normalise))}, not {self.normalise!r}")
        check_instruction(self.instruction_layer, self.instruction_tokens)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """Return the importance of each token, float32 (B, N)."""
        tokens = tokens.with_instruction(self.instruction_layer, self.instruction_tokens)
        return importance_scores(tokens, self.importance, self.normalise)
