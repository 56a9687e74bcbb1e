"""ID-Selection in two stages: some tokens before the language model, and fewer inside it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import Tensor

from idsel_core.methods._shared.by_importance import Scored
from idsel_core.methods._shared.by_suppression import Greedy
from idsel_core.methods._shared.drop_plan import check_layers, resolve_layers
from idsel_core.methods._shared.in_llm import Choice, InLLM, LayerTokens, Positions
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Unavailable, VisualTokens


@dataclass(frozen=True)
class IDSelectionInside(InLLM, Greedy, Scored):
    """Pick more tokens than the budget as ID-Selection does, and pick among them again inside the language model.

    The first picking is that of `IDSelection` with the same knobs. The second takes as importance the attention of the
    last prompt token in the layer before the drop, which has read the question, and as likeness the cosines of the
    hidden states; of the knobs it shares `gamma`, `update` and `exhausted`. It needs no pass of its own: what
    `IDSelection` reads of such a layer over all tokens is read here of few, on their way.

    Source: this project. The paper of ID-Selection names scores that change inside the language model as future work.

    Parameters
    ----------
    times : float
        How many times the budget enters the language model, 1 or more; at most all tokens, and under the "average"
        convention no more than leave half of the budget, in the mean over the layers behind the first drop.
    layers : tuple of int or float
        Drop layers, the first that read fewer tokens, or their shares of the depth; by default layer 2 of 32.
    """

    name: ClassVar[str] = "idselection-inside"
    label: ClassVar[str] = "ID-Selection inside"
    positions: ClassVar[Positions] = "compact"

    _: KW_ONLY
    times: float = 4.0
    layers: tuple[int | float, ...] = (2 / 32,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.times, bool) or not isinstance(self.times, int | float) or not 1 <= self.times <= 1e9:
            raise ValueError(f"times must be a number from 1 to 1e9, not {self.times!r}")
        check_layers("layers", self.layers)

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layers."""
        return resolve_layers(self.layers, num_layers)

    def entering(self, full: Tensor, depth: int | None) -> Tensor:
        """Return the number of tokens of each image that enter the language model, int64 (B,).

        Parameters
        ----------
        full : Tensor
            Number of tokens of each image, int64 (B,).
        depth : int, optional
            Number of layers of the language model.

        Raises
        ------
        Unavailable
            If `depth` is None and the budget is an average over the layers.
        ValueError
            If there is no such drop layer.
        """
        budgets = resolve_budget(self.budget, full)
        most = full
        if self.budget_convention == "average":
            if depth is None:
                raise Unavailable(
                    "decoder_layers", "an average budget needs the number of layers of the language model"
                )
            before = self.drop_layers(depth)[0]
            most = full.minimum((budgets * depth - (depth - before) * ((budgets + 1) // 2)) // before)
        return (budgets.double() * self.times + 0.5).floor().minimum(most.double()).long().maximum(budgets)

    def select(self, tokens: VisualTokens) -> Selection:
        """Select the tokens of each image that enter the language model."""
        counts = self.entering(tokens.lengths, tokens.decoder_layers)
        return self.pick(tokens, self.scores(tokens), counts)

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Pick the tokens that are left, by attention and by likeness of the hidden states."""
        scores = tokens.attention.masked_fill(~tokens.mask, 0)
        picked = self.pick_alike(tokens.visual(tokens.states), scores, tokens.mask, counts)
        return Choice(picked.order, picked.scores)
