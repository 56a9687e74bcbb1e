"""ID-Selection: importance, and diversity by suppression."""

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

    The importance score, its normalisation, the features and the update rule are knobs, because the public material
    leaves them open. The rule itself is in `idsel_core.selection`.

    Source: "ID-Selection", arXiv 2604.05601.
    """

    name: ClassVar[str] = "idselection"
    label: ClassVar[str] = "ID-Selection"
    nested: ClassVar[bool] = True

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        return self.pick(tokens, self.scores(tokens))
