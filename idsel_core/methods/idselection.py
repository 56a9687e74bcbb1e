"""ID-Selection: importance, and diversity by suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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

    @classmethod
    def published(cls, budget: int | float, **knobs: Any) -> IDSelection:
        """Return the method as the one public re-implementation reads the paper.

        Scores are the attention of the prompt's last token in the language model's layer 2, min-maxed; picks subtract;
        gamma is 20; tokens are alike by projector features; and the least suppressed token is next once scores have
        run out. The authors published no code.

        Parameters
        ----------
        budget : int or float
            Number or share of tokens to keep.
        knobs
            Other values of knobs than these.

        Notes
        -----
        Source: the baseline "idselection" of github.com/anonymous733882/q-cal-submission, which cites Eq. 7-9 of arXiv
        2604.05601 for distance, weight and update.
        """
        reading: dict[str, Any] = {
            "importance": "instruction",
            "instruction_layer": 2,
            "instruction_tokens": "last",
            "normalise": "minmax",
            "features": "projector",
            "gamma": 20.0,
            "update": "subtract",
            "exhausted": "continue",
        }
        return cls(budget, **(reading | knobs))

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        return self.pick(tokens, self.scores(tokens))
