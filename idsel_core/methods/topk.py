"""Control: importance without diversity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idsel_core.methods._shared.base import take_best
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class TopK(Scored):
    """Keep the tokens of highest importance: ID-Selection without suppression."""

    name: ClassVar[str] = "topk"
    label: ClassVar[str] = "top-K importance"

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        return take_best(self.scores(tokens), tokens, self.budget)
