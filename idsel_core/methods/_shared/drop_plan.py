"""Before which layers methods inside the language model drop tokens, and how many stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


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


def resolve_layers(layers: Sequence[int | float], depth: int, after: bool = False) -> tuple[int, ...]:
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
    if total_tokens(falling(high), spans) <= wanted:
        return falling(high)
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if total_tokens(falling(middle), spans) <= wanted else (low, middle)
    counts = falling(low)
    rest = wanted - total_tokens(counts, spans)
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


def total_tokens(counts: Sequence[int], spans: Sequence[int]) -> int:
    return sum(tokens * layers for tokens, layers in zip(counts, spans, strict=True))
