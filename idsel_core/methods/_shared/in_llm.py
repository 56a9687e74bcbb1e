"""What methods share that drop visual tokens between layers of the language model, while it reads the prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, TypeGuard, get_args

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.drop_plan import by_average, by_final, cheapest, total_tokens
from idsel_core.methods._shared.ragged import argsort_by, gather_tokens, truncate
from idsel_core.scores import attention_rows
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

Convention = Literal["average", "final"]
Positions = Literal["compact", "keep"]
AttentionFrom = Literal["before", "after"]


def _nothing_ran() -> tuple[Tensor, Tensor, float]:
    raise RuntimeError("no layer of the language model has run yet")


def _no_norm(states: Tensor) -> Tensor:
    return states


@dataclass(frozen=True, eq=False)
class LayerTokens:
    """What a method may look at where visual tokens are about to be dropped: a row one image, in its whole prompt.

    Parameters
    ----------
    states : Tensor
        What the next layer would read, (I, L, D), any float dtype. Before the first layer: the input embeddings.
    columns : Tensor
        Where in the prompt the image's tokens are, rising, int64 (I, N), -1 for padding.
    real, text : Tensor
        Columns that are no padding, and those of text that follows the image, bool (I, L).
    query_tokens : Tensor
        Columns of the tokens whose attention counts, bool (I, L), see `InLLM.query_tokens`.
    read : Callable
        Gives the queries (I, H, L, d) and keys (I, H', L, d), after their positions were applied, and the scale of one
        layer, see ``InLLM.attention_from``. Of a layer "after", only the queries of tokens that ask are there; the others may be
        anything.
    norm : Callable
        The norm that the language model ends with.
    """

    states: Tensor
    columns: Tensor
    real: Tensor
    text: Tensor
    query_tokens: Tensor
    read: Callable[[], tuple[Tensor, Tensor, float]] = _nothing_ran
    norm: Callable[[Tensor], Tensor] = _no_norm

    def __len__(self) -> int:
        return self.columns.shape[0]

    @property
    def mask(self) -> Tensor:
        """True at tokens, False at padding, bool (I, N)."""
        return self.columns >= 0

    @property
    def lengths(self) -> Tensor:
        """Tokens of each image, int64 (I,)."""
        return self.mask.sum(1)

    def visual(self, values: Tensor) -> Tensor:
        """Return values (I, L, D) of the image's tokens, (I, N, D), 0 at padding."""
        return gather_tokens(values, self.columns).masked_fill(~self.mask[..., None], 0)

    @cached_property
    def attention(self) -> Tensor:
        """Attention of the tokens that ask to the image's tokens, mean over both heads and them, float32 (I, N)."""
        return attention_rows.causal_row(*self.read(), self.query_tokens, self.real, self.columns)


@dataclass(frozen=True, eq=False)
class Choice:
    """What is left of each image.

    Parameters
    ----------
    order : Tensor
        Long (I, K); tokens to keep, in the order in which they were picked, -1 after the last one of a shorter row.
    scores : Tensor
        float32 (I, N); the scores that the choice started from, -inf at padding.
    merged : Tensor, optional
        (I, M, D); states of new tokens, which go behind the last token that is kept.
    merged_counts : Tensor, optional
        Long (I,); how many of the M are tokens.
    """

    order: Tensor
    scores: Tensor
    merged: Tensor | None = None
    merged_counts: Tensor | None = None


@dataclass(frozen=True)
class InLLM(Method):
    """A method that drops visual tokens between layers of the language model, while it reads the prompt.

    Such a method says before which layers (`drop_layers`), how many tokens are left (`counts`), and which (`choose`). It may
    choose before the language model as well (`select`); by default all tokens enter.

    Parameters
    ----------
    budget_convention : {"average", "final"}
        What the budget is: the mean over the layers of the tokens that each reads, to within half a token, or the
        tokens that are left after the last drop. Tokens before the first drop weigh in the mean, so it cannot be
        smaller than they allow. Merged tokens count as any others.
    """

    positions: ClassVar[Positions]
    """Whether tokens behind a drop are numbered anew ("compact") or keep their positions, as all do of several axes."""
    attention_from: ClassVar[AttentionFrom] = "before"
    """Whose queries and keys are read: those of the layer before a drop, or of the one after it on undropped tokens."""

    _: KW_ONLY
    budget_convention: Convention = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = get_args(Convention)
        if self.budget_convention not in allowed:
            raise ValueError(f"budget_convention must be one of {', '.join(allowed)}, not {self.budget_convention!r}")

    @property
    def inside(self) -> bool:
        """Whether tokens are dropped inside the language model at all."""
        return True

    @abstractmethod
    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers before which tokens are dropped, rising, of a language model with so many layers.

        Raises
        ------
        ValueError
            If there is no such layer.
        """

    @abstractmethod
    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Choose what is left of each image, with its merged tokens `counts` (I,), no more than it has."""

    def query_tokens(self, prompt: LayerTokens) -> Tensor:
        """Return the tokens whose attention counts, bool (I, L): by default the last one of the prompt.

        Parameters
        ----------
        prompt : LayerTokens
            The prompts before the first layer.
        """
        return attention_rows.last_token(prompt.real)

    def least(self, count: int) -> int:
        """Return the fewest tokens that a drop can leave of `count`."""
        return 1

    def select(self, tokens: VisualTokens) -> Selection:
        """Let all tokens enter the language model."""
        resolve_budget(self.budget, tokens.lengths)
        place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand(tokens.mask.shape)
        return Selection.from_order(place.masked_fill(~tokens.mask, -1), tokens.mask.float().log(), self.budget)

    def counts(self, full: Tensor, entering: Tensor, num_layers: int) -> Tensor:
        """Return how many tokens of each image are left after each drop, int64 (I, places).

        They fall by one factor from drop to drop, as far as whole tokens allow.

        Parameters
        ----------
        full, entering : Tensor
            Tokens of each image, and those of them that enter the language model, int64 (I,).
        num_layers : int
            Layers of the language model.

        Raises
        ------
        ValueError
            If the budget cannot be reached; the message names the least one that can.
        """
        spans = [after - before for before, after in pairwise((0, *self.drop_layers(num_layers), num_layers))]
        budgets = resolve_budget(self.budget, full).minimum(entering)
        plan = by_average if self.budget_convention == "average" else by_final
        rows = []
        for count, budget in zip(entering.tolist(), budgets.tolist(), strict=True):
            least = cheapest(count, len(spans) - 1, self.least)
            lowest = -(-total_tokens(least, spans) // num_layers) if self.budget_convention == "average" else least[-1]
            if budget < lowest:
                raise ValueError(
                    f"{self.name} cannot bring {count} visual tokens down to {budget} "
                    f"({self.budget_convention} of {num_layers} layers, {spans[0]} of which read all): the least budget for "
                    f"this model is {lowest}"
                )
            rows.append(plan(count, budget, spans, self.least)[1:])
        return torch.tensor(rows, device=entering.device)


def drops_inside(method: object) -> TypeGuard[InLLM]:
    """Return whether a method, or whatever else is given, drops tokens inside the language model."""
    return isinstance(method, InLLM) and method.inside


def most_attended(tokens: LayerTokens, counts: Tensor) -> Choice:
    """Keep the tokens that get the most attention, ties to the lowest index.

    Parameters
    ----------
    tokens : LayerTokens
        I rows.
    counts : Tensor
        Tokens to keep of each image, int64 (I,).
    """
    scores = tokens.attention.masked_fill(~tokens.mask, -torch.inf)
    return Choice(truncate(argsort_by((scores,), tokens.mask), counts), scores)
