"""What methods share that begin with an importance score."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import get_args

from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.scores.registry import IMPORTANCE, Normalise, importance_scores
from idsel_core.visual_tokens import VisualTokens, Which, check_instruction


@dataclass(frozen=True)
class Scored(Method):
    """A method with an importance score.

    Parameters
    ----------
    importance : str
        A name in `idsel_core.scores.IMPORTANCE`.
    normalise : {"minmax", "raw"}
        What is done to each score before it is used or combined.
    instruction_layer : int
        Layer of the language model that instruction attention is read at; 0 is the input layer.
    instruction_tokens : {"last", "mean"}
        Its query: the prompt's last token, or the mean over all text tokens after the image.
    """

    _: KW_ONLY
    importance: str = "unified"
    normalise: Normalise = "minmax"
    instruction_layer: int = 0
    instruction_tokens: Which = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        for knob, allowed in (("importance", tuple(IMPORTANCE)), ("normalise", get_args(Normalise))):
            if getattr(self, knob) not in allowed:
                raise ValueError(f"{knob} must be one of {', '.join(allowed)}, not {getattr(self, knob)!r}")
        check_instruction(self.instruction_layer, self.instruction_tokens)

    def scores(self, tokens: VisualTokens) -> Tensor:
        """Return the importance of each token, float32 (B, N)."""
        tokens = tokens.with_instruction(self.instruction_layer, self.instruction_tokens)
        return importance_scores(tokens, self.importance, self.normalise)
