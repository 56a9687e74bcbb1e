"""What methods share that drop visual tokens between layers of the language model, while it reads the prompt."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, TypeGuard, get_args

import torch
from torch import Tensor

from idsel_core import importance
from idsel_core.methods.base import Method
from idsel_core.methods.steps import cut, ranked, take
from idsel_core.selection import Selection, resolve_budget
from idsel_core.tokens import VisualTokens

Convention = Literal["average", "final"]
Positions = Literal["compact", "keep"]
Reads = Literal["before", "after"]


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
    asking : Tensor
        Columns of the tokens whose attention counts, bool (I, L), see `InLLM.asking`.
    read : Callable
        Gives the queries (I, H, L, d) and keys (I, H', L, d), after their positions were applied, and the scale of one
        layer, see ``InLLM.reads``. Of a layer "after", only the queries of tokens that ask are there; the others may be
        anything.
    norm : Callable
        The norm that the language model ends with.
    """

    states: Tensor
    columns: Tensor
    real: Tensor
    text: Tensor
    asking: Tensor
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
        return take(values, self.columns).masked_fill(~self.mask[..., None], 0)

    @cached_property
    def attention(self) -> Tensor:
        """Attention of the tokens that ask to the image's tokens, mean over both heads and them, float32 (I, N)."""
        return importance.causal_row(*self.read(), self.asking, self.real, self.columns)


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

    Such a method says at which layers (`places`), how many tokens are left (`counts`), and which (`choose`). It may
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
    reads: ClassVar[Reads] = "before"
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
    def places(self, depth: int) -> tuple[int, ...]:
        """Return the layers before which tokens are dropped, rising, of a language model with `depth` layers.

        Raises
        ------
        ValueError
            If there is no such layer.
        """

    @abstractmethod
    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Choose what is left of each image, with its merged tokens `counts` (I,), no more than it has."""

    def asking(self, prompt: LayerTokens) -> Tensor:
        """Return the tokens whose attention counts, bool (I, L): by default the last one of the prompt.

        Parameters
        ----------
        prompt : LayerTokens
            The prompts before the first layer.
        """
        return importance.last_token(prompt.real)

    def least(self, count: int) -> int:
        """Return the fewest tokens that a drop can leave of `count`."""
        return 1

    def select(self, tokens: VisualTokens) -> Selection:
        """Let all tokens enter the language model."""
        resolve_budget(self.budget, tokens.lengths)
        place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand(tokens.mask.shape)
        return Selection.from_order(place.masked_fill(~tokens.mask, -1), tokens.mask.float().log(), self.budget)

    def counts(self, full: Tensor, entering: Tensor, depth: int) -> Tensor:
        """Return how many tokens of each image are left after each drop, int64 (I, places).

        They fall by one factor from drop to drop, as far as whole tokens allow.

        Parameters
        ----------
        full, entering : Tensor
            Tokens of each image, and those of them that enter the language model, int64 (I,).
        depth : int
            Layers of the language model.

        Raises
        ------
        ValueError
            If the budget cannot be reached; the message names the least one that can.
        """
        spans = [after - before for before, after in pairwise((0, *self.places(depth), depth))]
        budgets = resolve_budget(self.budget, full).minimum(entering)
        plan = by_average if self.budget_convention == "average" else by_final
        rows = []
        for count, budget in zip(entering.tolist(), budgets.tolist(), strict=True):
            least = cheapest(count, len(spans) - 1, self.least)
            lowest = -(-_total(least, spans) // depth) if self.budget_convention == "average" else least[-1]
            if budget < lowest:
                raise ValueError(
                    f"{self.name} cannot bring {count} visual tokens down to {budget} "
                    f"({self.budget_convention} of {depth} layers, {spans[0]} of which read all): the least budget for "
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
    return Choice(cut(ranked((scores,), tokens.mask), counts), scores)


def check_layer(knob: str, layer: int | float) -> None:
    """Raise ValueError unless a knob names a layer, by its number or by its share of the depth."""
    number = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    if not number and not (isinstance(layer, float) and 0 < layer < 1):
        raise ValueError(
            f"{knob} must be a layer (int, 0 or more) or a share of the depth (float between 0 and 1), not {layer!r}"
        )


def check_layers(knob: str, layers: Sequence[int | float]) -> None:
    """Raise ValueError unless a knob is a tuple that names layers."""
    if not isinstance(layers, tuple) or not layers:
        raise ValueError(f"{knob} must be a tuple of layers, not {layers!r}")
    for layer in layers:
        check_layer(knob, layer)


def places_of(layers: Sequence[int | float], depth: int, after: bool = False) -> tuple[int, ...]:
    """Return the layers before which tokens are dropped, rising and each once.

    Parameters
    ----------
    layers : sequence of int or float
        Layers from 0, or shares of the depth, rounded to a layer from 1 to the last one.
    depth : int
        Layers of the language model.
    after : bool
        `layers` are the ones after which tokens are dropped.

    Raises
    ------
    ValueError
        If there is no such layer, or nothing would be before or after it.
    """
    if depth < 2:
        raise ValueError(f"tokens can be dropped between layers, but this language model has {depth}")
    places = set()
    for layer in layers:
        if isinstance(layer, int):
            place = layer + after
            if not 0 < place < depth:
                raise ValueError(
                    f"tokens cannot be dropped {'after' if after else 'before'} layer {layer} of {depth}: choose one "
                    f"from {1 - after} to {depth - 1 - after}"
                )
        else:
            place = min(max(math.floor(layer * depth + 0.5) + after, 1), depth - 1)
        places.add(place)
    return tuple(sorted(places))


def cheapest(count: int, drops: int, least: Callable[[int], int]) -> list[int]:
    """Return the tokens before and after each drop if each leaves as few as it can."""
    counts = [count]
    for _ in range(drops):
        counts.append(min(least(counts[-1]), counts[-1]))
    return counts


def by_average(count: int, budget: int, spans: Sequence[int], least: Callable[[int], int]) -> list[int]:
    """Return the tokens before and after each drop, so that their mean over the layers is the budget.

    Parameters
    ----------
    count : int
        Tokens at first.
    budget : int
        Mean to reach, up to rounding; it must be reachable and no more than `count`.
    spans : sequence of int
        Layers before the first drop, between drops, and after the last one.
    least : Callable
        The fewest tokens that a drop can leave of a number of tokens.
    """
    wanted = budget * sum(spans)

    def falling(factor: float) -> list[int]:
        counts = [count]
        for drop in range(1, len(spans)):
            left = math.floor(count * factor**drop + 0.5)
            counts.append(min(counts[-1], max(least(counts[-1]), left)))
        return counts

    low, high = 0.0, 1.0
    if _total(falling(high), spans) <= wanted:
        return falling(high)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _total(falling(middle), spans) <= wanted else (low, middle)
    counts = falling(low)
    rest = wanted - _total(counts, spans)
    for drop in range(len(spans) - 1, 0, -1):
        more = min(max(math.floor(rest / spans[drop] + 0.5), 0), counts[drop - 1] - counts[drop])
        if drop + 1 == len(spans) or least(counts[drop] + more) <= counts[drop + 1]:
            counts[drop] += more
            rest -= more * spans[drop]
    return counts


def by_final(count: int, budget: int, spans: Sequence[int], least: Callable[[int], int]) -> list[int]:
    """Return the tokens before and after each drop, so that the budget is left at last; arguments as `by_average`."""
    drops = len(spans) - 1
    counts = [count]
    for drop in range(1, drops):
        left = math.floor(count * (budget / count) ** (drop / drops) + 0.5)
        counts.append(min(counts[-1], max(budget, least(counts[-1]), left)))
    counts.append(budget)
    for drop in range(drops - 1, 0, -1):
        while least(counts[drop]) > counts[drop + 1]:
            counts[drop] -= 1
    return counts


def _total(counts: Sequence[int], spans: Sequence[int]) -> int:
    return sum(tokens * layers for tokens, layers in zip(counts, spans, strict=True))
