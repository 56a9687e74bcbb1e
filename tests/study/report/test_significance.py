"""Paired tests and their correction, against the formulas of the papers and against what chance does."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from idsel_core.study.report.significance import holm, sign_flip_test


def all_signs(differences):
    """Try every choice of signs: the share whose sum is at least as far from 0 as the one seen."""
    sums = [abs(np.dot(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    return np.mean(np.array(sums) >= abs(np.sum(differences)) - 1e-12)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=10))
def test_right_and_wrong_answers_are_tested_exactly(differences):
    assert sign_flip_test(differences) == pytest.approx(all_signs(differences))


@given(st.lists(st.sampled_from([-1.0, -0.3, 0.0, 0.6, 1.0]), min_size=2, max_size=8))
def test_other_scores_are_tested_by_all_signs_where_they_are_few(differences):
    assert sign_flip_test(differences) == pytest.approx(all_signs(differences), abs=1e-3)


def test_equal_methods_are_found_different_as_often_as_the_level_says():
    draw = np.random.default_rng(0)
    found = [sign_flip_test(draw.choice([-1, 0, 1], 200, p=[0.1, 0.8, 0.1])) < 0.05 for _ in range(400)]
    assert 0.01 < np.mean(found) < 0.06


@pytest.mark.parametrize("bad", [[], [0.1, float("nan")]])
def test_a_test_without_differences_is_refused(bad):
    with pytest.raises(ValueError, match="finite differences, one at least"):
        sign_flip_test(bad)


def test_holm_gives_the_numbers_of_a_hand_count():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_lies_between_one_and_bonferroni(values):
    p, corrected = np.array(values), holm(values)
    assert (corrected >= p).all() and (corrected <= np.minimum(p * len(p), 1) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0).all()


def test_a_family_of_equal_methods_seldom_holds_one_finding():
    draw = np.random.default_rng(1)
    families = draw.uniform(size=(2000, 20))
    assert np.mean([(holm(family) < 0.05).any() for family in families]) < 0.06
