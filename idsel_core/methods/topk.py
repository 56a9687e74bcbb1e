"""Control: importance alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idsel_core.methods.base import take_best
from idsel_core.methods.scored import Scored
from idsel_core.selection import Selection
from idsel_core.tokens import VisualTokens


@dataclass(frozen=True)
class TopK(Scored):
    """Keep the tokens of highest importance; the limit of ID-Selection without suppression."""

    name: ClassVar[str] = "topk"

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image."""
        return take_best(self.scores(tokens), tokens, self.budget)
