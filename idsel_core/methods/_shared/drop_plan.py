"""Drop layers of methods inside the language model, and the number of tokens that each drop leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def check_layer(knob: str, layer: int | float) -> None:
    """Raise ValueError unless a knob is a layer: its number, or its share of the depth."""
    number = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    if not number and not (isinstance(layer, float) and 0 < layer < 1):
        raise ValueError(
            f"{knob} must be a layer (int, 0 or more) or a share of the depth (float between 0 and 1), not {layer!r}"
        )


def check_layers(knob: str, layers: Sequence[int | float]) -> None:
    """Raise ValueError unless a knob is a tuple of layers."""
    if not isinstance(layers, tuple) or not layers:
        raise ValueError(f"{knob} must be a tuple of layers, not {layers!r}")
    for layer in layers:
        check_layer(knob, layer)


def resolve_layers(layers: Sequence[int | float], depth: int, after: bool = False) -> tuple[int, ...]:
    """Return the drop layers, before which tokens are dropped, in rising order without repeats.

    Parameters
    ----------
    layers : sequence of int or float
        Layers from 0, or shares of the depth, which are rounded to a layer from 1 to the last.
    depth : int
        Number of layers of the language model.
    after : bool
        Whether `layers` are those after which tokens are dropped.

    Raises
    ------
    ValueError
        If there is no such layer, or no layer before or after the drop.
    """
    if depth < 2:
        raise ValueError(f"tokens are dropped between layers, but this language model has {depth} layer")
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
    """Return the tokens before the first drop and after each, if each drop leaves as few as it can."""
    counts = [count]
    for _ in range(drops):
        counts.append(min(least(counts[-1]), counts[-1]))
    return counts


def by_average(count: int, budget: int, spans: Sequence[int], least: Callable[[int], int]) -> list[int]:
    """Return the tokens before the first drop and after each, so that their mean over the layers is the budget.

    Each drop multiplies the tokens by the same factor, which is found by bisection. What rounding leaves over is then
    added to the last spans first.

    Parameters
    ----------
    count : int
        Tokens before the first drop.
    budget : int
        Mean to reach, up to rounding; it must be reachable and at most `count`.
    spans : sequence of int
        Number of layers before the first drop, between drops, and after the last drop: one more than there are drops.
    least : Callable
        Gives the fewest tokens that a drop can leave of a number of tokens.

    Returns
    -------
    list of int
        As many numbers as `spans`: the tokens that the layers of each span read.
    """
    wanted = budget * sum(spans)  # tokens times layers

    def falling(factor: float) -> list[int]:
        counts = [count]
        for drop in range(1, len(spans)):
            left = math.floor(count * factor**drop + 0.5)
            counts.append(min(counts[-1], max(least(counts[-1]), left)))
        return counts

    low, high = 0.0, 1.0  # factors; falling(low) fits into the budget, falling(high) may not
    if total_tokens(falling(high), spans) <= wanted:
        return falling(high)
    while (middle := (low + high) / 2) not in (low, high):  # until no float lies between
        low, high = (middle, high) if total_tokens(falling(middle), spans) <= wanted else (low, middle)
    counts = falling(low)
    rest = wanted - total_tokens(counts, spans)
    for drop in range(len(spans) - 1, 0, -1):  # counts[drop] is read by spans[drop] layers
        more = min(max(math.floor(rest / spans[drop] + 0.5), 0), counts[drop - 1] - counts[drop])
        if drop + 1 == len(spans) or least(counts[drop] + more) <= counts[drop + 1]:
            counts[drop] += more
            rest -= more * spans[drop]
    return counts


def by_final(count: int, budget: int, spans: Sequence[int], least: Callable[[int], int]) -> list[int]:
    """Return the tokens before the first drop and after each, so that the last leaves the budget; see `by_average`."""
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


def total_tokens(counts: Sequence[int], spans: Sequence[int]) -> int:
    """Return the sum over all layers of the tokens that each reads."""
    return sum(tokens * layers for tokens, layers in zip(counts, spans, strict=True))
