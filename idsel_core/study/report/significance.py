"""Whether two methods differ on the same questions, and how many such findings are chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, permutation_test

from idsel_core.study.report.bootstrap import Array


def sign_flip_test(differences: ArrayLike, resamples: int = 9999, seed: int = 0) -> float:
    """Return the two-sided p-value of the mean of paired differences under random signs.

    Where all differences that are not 0 have one size, as those of right and wrong answers have, the test is exact
    (McNemar, Psychometrika 12, 1947); else it draws signs.

    Parameters
    ----------
    differences : array of float (n,)
        One score less the other, a question each.
    resamples : int
        Number of draws of the signs, where they are drawn.
    seed : int
        Seed of the draws.

    Raises
    ------
    ValueError
        If there are no differences, or one is not finite.
    """
    given = np.asarray(differences, dtype=np.float64).ravel()
    if not given.size or not np.isfinite(given).all():
        raise ValueError("a test needs finite differences, one at least")
    moved = given[given != 0]
    if not moved.size:
        return 1.0
    if np.unique(np.abs(moved)).size == 1:
        return float(binomtest(int((moved > 0).sum()), moved.size).pvalue)

    def distance(signed: Array, axis: int = -1) -> Array:
        return np.asarray(np.abs(signed.sum(axis)).round(9))  # sums that are equal but for rounding are equal

    tested = permutation_test(
        (moved,),
        distance,
        permutation_type="samples",
        n_resamples=resamples,
        alternative="greater",
        rng=seed,
        batch=1000,
    )
    return float(tested.pvalue)


def holm(p_values: ArrayLike) -> Array:
    """Return p-values corrected for their number, so that a family of findings holds none by chance at the level asked.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979): the k-th smallest of m is multiplied by m - k + 1, and
    none is below a smaller one.

    Parameters
    ----------
    p_values : array of float (m,)
        Of m comparisons, 0 to 1.

    Returns
    -------
    array of float64 (m,)
        In the order given, at most 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    corrected = np.empty_like(given)
    corrected[order] = np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1)).clip(max=1)
    return corrected
