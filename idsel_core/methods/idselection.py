"""ID-Selection: importance first, diversity by suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from idsel_core.methods._shared.by_importance import Scored
from idsel_core.methods._shared.by_suppression import Greedy
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class IDSelection(Greedy, Scored):
    """Pick the most important token, suppress the tokens that look like it, repeat.

    Source: "ID-Selection", arXiv 2604.05601. Importance, its normalisation, the features and the update rule are knobs,
    because public material does not settle them.
    """

    name: ClassVar[str] = "idselection"
    label: ClassVar[str] = "ID-Selection"

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image."""
        return self.pick(tokens, self.scores(tokens))
