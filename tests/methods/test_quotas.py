"""Whole parts of a total by largest remainders."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from idsel_core.methods._shared.quotas import in_proportion, share_out
from tests.support.peers_reference import by_remainder


def test_of_equal_remainders_the_first_gets_more():
    """Of a total of 2, 4 and 1 of 6 are due 1 1/3 and 1/3; in floating point the second remainder is larger."""
    assert in_proportion(2, [4, 1, 1]) == [Fraction(4, 3), Fraction(1, 3), Fraction(1, 3)]
    assert 4 / 3 - 1 < 1 / 3
    assert share_out(2, in_proportion(2, [4, 1, 1]), [2, 2, 2]) == [2, 0, 0]


def test_of_equal_remainders_the_last_gives_back():
    assert share_out(6, [2.0, 2.0, 0.9, 1.1], [4, 4, 4, 4], [1, 1, 1, 1]) == [2, 2, 1, 1]
    assert share_out(5, [2.0, 2.0, 0.9, 0.1], [4, 4, 4, 4], [1, 1, 1, 1]) == [2, 1, 1, 1]


def test_what_a_part_has_no_room_for_goes_to_the_others():
    assert share_out(7, [5.5, 1.0, 0.5], [3, 9, 9]) == [3, 2, 2]
    assert share_out(0, in_proportion(0, [0, 0]), [0, 0]) == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_those_of_the_formula(seed):
    draw = np.random.default_rng(seed)
    for _ in range(20):
        room = draw.integers(0, 12, size=draw.integers(1, 7)).tolist()
        least = [min(1, most) for most in room] if draw.random() < 0.5 else [0] * len(room)
        total = int(draw.integers(sum(least), sum(room) + 1))
        dues = (draw.random(len(room)) * 2 * total / len(room)).tolist()
        if draw.random() < 0.5:
            dues = in_proportion(total, room)
        parts = share_out(total, dues, room, least)
        assert parts == by_remainder(total, dues, room, least)
        assert sum(parts) == total and all(low <= n <= most for low, n, most in zip(least, parts, room, strict=True))


@pytest.mark.parametrize(("total", "least"), [(6, None), (-1, None), (1, [1, 1])])
def test_a_total_out_of_reach_is_refused(total, least):
    with pytest.raises(ValueError, match=f"cannot take {total}"):
        share_out(total, [1.0, 1.0], [2, 3], least)
