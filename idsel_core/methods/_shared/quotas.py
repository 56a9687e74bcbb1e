"""Distribution of a whole number over parts by largest remainders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction


def in_proportion(total: int, weights: Sequence[int]) -> list[Fraction]:
    """Return what each part is due of a total, in proportion to weights, exactly; nothing where all weights are 0."""
    whole = max(sum(weights), 1)
    return [Fraction(total * weight, whole) for weight in weights]


def share_out(
    total: int, dues: Sequence[float | Fraction], room: Sequence[int], least: Sequence[int] | None = None
) -> list[int]:
    """Round what parts are due down, and give what is left of a total to the largest remainders.

    Where `least` brings the parts above the total, those with the smallest remainders give back.

    Parameters
    ----------
    total : int
        From the sum of `least` to that of `room`.
    dues : Sequence[float or Fraction]
        What each part is due.
    room, least : Sequence[int]
        The most, and the fewest, that each part can take; by default 0.

    Returns
    -------
    list[int]
        Their sum is the total. Of equal remainders the first gets more.

    Raises
    ------
    ValueError
        If no parts within these bounds have the total as their sum.
    """
    least = [0] * len(room) if least is None else least
    if not sum(least) <= total <= sum(room):
        raise ValueError(f"parts that take {sum(least)} to {sum(room)} cannot take {total}")
    counts = [min(max(math.floor(due), low), most) for due, low, most in zip(dues, least, room, strict=True)]
    while (rest := total - sum(counts)) != 0:
        step = 1 if rest > 0 else -1
        able = [part for part, count in enumerate(counts) if least[part] <= count + step <= room[part]]
        able.sort(key=lambda part: (step * (counts[part] - dues[part]), step * part))
        for part in able[: abs(rest)]:
            counts[part] += step
    return counts
