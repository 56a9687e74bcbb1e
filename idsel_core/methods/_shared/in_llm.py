"""Base of methods that drop visual tokens between layers of the language model, during the prefill."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, TypeGuard, get_args

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method, keep_all
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
    """The visual tokens at a drop layer, with what a method may read there; a row is one image in its whole prompt.

    Parameters
    ----------
    states : Tensor
        Hidden states that the next layer reads, (I, L, D), any float dtype; before the first layer input embeddings.
    columns : Tensor
        Columns of the image's tokens in the prompt, rising, int64 (I, N), -1 at padding.
    real, text : Tensor
        Masks of the columns that are no padding, and of the text after the image up to the end of the prompt,
        bool (I, L).
    query_tokens : Tensor
        Mask of the query tokens, bool (I, L), see `InLLM.query_tokens`.
    read : Callable
        Returns the queries (I, H, L, d) and keys (I, H', L, d) of one layer, with positions applied, and the scale; see
        `InLLM.attention_from`. Of a layer "after" only the queries of query tokens are computed, and the others may
        hold any value.
    norm : Callable
        The last norm of the language model.
    words, ends : Tensor, optional
        Masks of the words that ask about the image, and of the last token before the answer, bool (I, L); without
        them, `text` and the last token.
    """

    states: Tensor
    columns: Tensor
    real: Tensor
    text: Tensor
    query_tokens: Tensor
    read: Callable[[], tuple[Tensor, Tensor, float]] = _nothing_ran
    norm: Callable[[Tensor], Tensor] = _no_norm
    words: Tensor | None = None
    ends: Tensor | None = None

    def __len__(self) -> int:
        return self.columns.shape[0]

    @property
    def mask(self) -> Tensor:
        """True at tokens, False at padding, bool (I, N)."""
        return self.columns >= 0

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each image, int64 (I,)."""
        return self.mask.sum(1)

    def visual(self, values: Tensor) -> Tensor:
        """Gather values (I, L, D) of the prompt at the image's tokens, giving (I, N, D), 0 at padding."""
        return gather_tokens(values, self.columns).masked_fill(~self.mask[..., None], 0)

    @cached_property
    def attention(self) -> Tensor:
        """Attention of the query tokens to the image's tokens, mean over heads and query tokens, float32 (I, N)."""
        return attention_rows.causal_row(*self.read(), self.query_tokens, self.real, self.columns)


@dataclass(frozen=True, eq=False)
class Choice:
    """The tokens that a drop leaves of each image.

    Parameters
    ----------
    order : Tensor
        Long (I, K); kept tokens in the order of the picks, -1 after the last token of a shorter row.
    scores : Tensor
        float32 (I, N); the scores before the first pick, -inf at padding.
    merged : Tensor, optional
        (I, M, D); hidden states of merged tokens, which follow the last kept token.
    merged_counts : Tensor, optional
        Long (I,); number of merged tokens of each image, M at most.
    """

    order: Tensor
    scores: Tensor
    merged: Tensor | None = None
    merged_counts: Tensor | None = None


@dataclass(frozen=True)
class InLLM(Method):
    """A method that drops visual tokens between layers of the language model, during the prefill.

    It says before which layers tokens are dropped (`drop_layers`), how many are left (`counts`) and which (`choose`).
    It may select tokens before the language model too (`select`); by default all tokens enter.

    Parameters
    ----------
    budget_convention : {"average", "final"}
        Meaning of the budget. "average": the mean over all layers of the tokens that each reads, within half a token;
        the layers before the first drop set a lower bound. "final": the tokens that are left after the last drop.
        Merged tokens count like others.
    """

    positions: ClassVar[Positions]
    """Whether positions after a drop are numbered anew ("compact") or kept ("keep"); those of several axes are kept."""
    attention_from: ClassVar[AttentionFrom] = "before"
    """The layer whose queries and keys are read: the last before a drop, or the first after it, on undropped tokens."""
    reads_words: ClassVar[bool] = False
    """Whether the method reads which tokens are words of the question."""

    _: KW_ONLY
    budget_convention: Convention = "average"

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = get_args(Convention)
        if self.budget_convention not in allowed:
            raise ValueError(f"budget_convention must be one of {', '.join(allowed)}, not {self.budget_convention!r}")

    @property
    def inside(self) -> bool:
        """Whether the method drops tokens inside the language model at all."""
        return True

    @abstractmethod
    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layers, before which tokens are dropped, rising, for a language model of `num_layers` layers.

        Raises
        ------
        ValueError
            If there is no such layer.
        """

    @abstractmethod
    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Choose the `counts` (I,) tokens that are left of each image, merged ones included, no more than it has."""

    def query_tokens(self, prompt: LayerTokens) -> Tensor:
        """Return a mask of the query tokens, bool (I, L): by default the last token of the prompt before the answer.

        Parameters
        ----------
        prompt : LayerTokens
            The prompts before the first layer.
        """
        return attention_rows.last_token(prompt.real) if prompt.ends is None else prompt.ends

    def least(self, count: int) -> int:
        """Return the fewest tokens that a drop can leave of `count` tokens."""
        return 1

    def entering(self, full: Tensor, depth: int | None) -> Tensor:
        """Return the number of tokens of each image that enter the language model, int64 (B,); by default all.

        Parameters
        ----------
        full : Tensor
            Number of tokens of each image, int64 (B,).
        depth : int, optional
            Number of layers of the language model.
        """
        return full

    def select(self, tokens: VisualTokens) -> Selection:
        """Let all tokens enter the language model."""
        return keep_all(tokens, self.budget)

    def counts(self, full: Tensor, entering: Tensor, num_layers: int) -> Tensor:
        """Return the number of tokens of each image after each drop, int64 (I, drops).

        Every drop multiplies it by the same factor, up to rounding.

        Parameters
        ----------
        full, entering : Tensor
            Number of tokens of each image, and of those that enter the language model, int64 (I,).
        num_layers : int
            Number of layers of the language model.

        Raises
        ------
        ValueError
            If the budget cannot be reached; the message names the least budget that can.
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
                    f"{self.name} cannot bring {count} visual tokens down to {budget} ({self.budget_convention} of "
                    f"{num_layers} layers, {spans[0]} of which read all): the least budget for this model is {lowest}"
                )
            rows.append(plan(count, budget, spans, self.least)[1:])
        return torch.tensor(rows, device=entering.device)


def drops_inside(method: object) -> TypeGuard[InLLM]:
    """Return whether an object is a method that drops tokens inside the language model."""
    return isinstance(method, InLLM) and method.inside


def most_attended(tokens: LayerTokens, counts: Tensor) -> Choice:
    """Keep the tokens that receive the most attention; ties go to the lowest index.

    Parameters
    ----------
    tokens : LayerTokens
        I rows.
    counts : Tensor
        Number of tokens to keep of each image, int64 (I,).
    """
    scores = tokens.attention.masked_fill(~tokens.mask, -torch.inf)
    return Choice(truncate(argsort_by((scores,), tokens.mask), counts), scores)
