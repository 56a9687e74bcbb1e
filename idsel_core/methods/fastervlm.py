"""FasterVLM: the attention of [CLS]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idsel_core.methods._shared.base import take_best
from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class FasterVLM(Attended):
    """Keep the tokens that [CLS] attends to most.

    Source: FasterVLM, arXiv 2412.01818.
    """

    name: ClassVar[str] = "fastervlm"
    label: ClassVar[str] = "FasterVLM"

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        return take_best(self.row(tokens), tokens, self.budget)
