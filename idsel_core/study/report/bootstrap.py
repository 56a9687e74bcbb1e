"""Paired bootstrap intervals over questions, for means, differences and shares of full performance."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over questions, its percentile bootstrap interval, and the settings that reproduce it."""

    mean: float
    low: float
    high: float
    questions: int
    level: float
    resamples: int
    seed: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled_means(scores: ArrayLike, resamples: int = 2000, seed: int | Sequence[int] = 0) -> Array:
    """Return the mean of each column in each resample of the rows; columns stay paired, as they share resamples.

    Parameters
    ----------
    scores : array of float (n,) or (n, m)
        One row a question, one column a method.
    resamples : int
        Number of resamples; each draws n rows with replacement.
    seed : int or sequence of int
        Seed of the draws; equal seeds and n give equal resamples.

    Returns
    -------
    array of float64 (resamples, m)
        The mean of each column in each resample.

    Raises
    ------
    ValueError
        If there are no scores, one is not finite, or `resamples` is below 1.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size:
        raise ValueError("a bootstrap needs at least one score, got none")
    count = len(values)
    values = values.reshape(count, -1)
    if not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, got {values[~np.isfinite(values)][0]}")
    if resamples < 1:
        raise ValueError(f"resamples must be 1 or more, got {resamples}")
    draw = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    # A resample is a row of weights, so all columns cost one matrix product; blocks bound the memory.
    block = max(1, 2**22 // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = draw.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means[start : start + rows] = weights @ values / count
    return means


def interval_bounds(means: Array, level: float) -> Array:
    """Return the lower and the upper quantile of each column of resampled means, (2, m)."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    return np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)


def bootstrap_mean(scores: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean of scores and its percentile interval (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    scores : array of float (n,)
        One score a question.
    level : float
        Coverage of the interval, in (0, 1).
    resamples, seed : int
        See `resampled_means`.

    Returns
    -------
    Interval
        Mean and bounds in the unit of the scores.

    Raises
    ------
    ValueError
        If the scores are not one finite number a question, or a knob is out of range.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"scores must have one dimension, got shape {values.shape}")
    low, high = interval_bounds(resampled_means(values, resamples, seed), level)[:, 0]
    return Interval(float(values.mean()), float(low), float(high), len(values), level, resamples, seed)


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of a - b over the same questions, with the interval of `bootstrap_mean`.

    Parameters
    ----------
    a, b : array of float (n,)
        Scores of two methods, question by question in the same order.
    level, resamples, seed
        See `bootstrap_mean`.

    Returns
    -------
    Interval
        Positive if `a` is better.

    Raises
    ------
    ValueError
        If the shapes differ, or as for `bootstrap_mean`.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired scores need the same questions, got shapes {left.shape} and {right.shape}")
    return bootstrap_mean(left - right, level=level, resamples=resamples, seed=seed)


def paired_scores(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return scores with one row a question and one column a setting, to compare settings on the same questions.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone and split.
    by : sequence of str
        The columns that tell settings apart, such as ["method", "budget"]. Scores that differ in other columns alone,
        such as the seed, are averaged.

    Returns
    -------
    DataFrame
        Index (question_type, question_id), a column for each setting.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If a setting lacks some of the questions.
    """
    absent = [name for name in by if name not in rows]
    if absent:
        raise KeyError(f"unknown columns {absent}; there are {list(rows.columns)}")
    mean = rows.groupby(["question_type", "question_id", *by], dropna=False)["correct"].mean()
    table = mean.unstack(list(by))
    short = table.isna().sum()
    if short.any():
        raise ValueError(
            f"a paired comparison needs the same questions in all settings; {list(by)} = {short.idxmax()!r} "
            f"lacks {short.max()} of {len(table)}"
        )
    return table


def mean_scores(
    rows: pd.DataFrame, by: Sequence[str], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return the mean score of each setting over all questions, with intervals from shared resamples.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone and split.
    by : sequence of str
        The columns that tell settings apart; with "question_type" among them, each question type has its own.
    level, resamples, seed
        See `bootstrap_mean`.

    Returns
    -------
    DataFrame
        The columns of `by`, then mean, low, high, questions, level, resamples, seed.

    Raises
    ------
    KeyError, ValueError
        As for `paired_scores` and `bootstrap_mean`.
    """
    if "question_type" in by:
        rest = [name for name in by if name != "question_type"]
        parts = [
            mean_scores(part, rest, level=level, resamples=resamples, seed=seed).assign(question_type=question_type)
            for question_type, part in rows.groupby("question_type")
        ]
        table = pd.concat(parts, ignore_index=True)
        return table[[*by, *(name for name in table if name not in by)]]
    scores = paired_scores(rows, by)
    low, high = interval_bounds(resampled_means(scores, resamples, seed), level)
    return with_settings(scores, {"mean": scores.to_numpy().mean(0), "low": low, "high": high}, level, resamples, seed)


def share_of_full(
    rows: pd.DataFrame,
    by: Sequence[str],
    *,
    full: str = "full",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the share of full performance: the mean over question types of score / score with all tokens.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone and split, those of the reference included.
    by : sequence of str
        The columns that tell settings apart.
    full : str
        The method whose rows are the reference.
    level, resamples, seed
        See `bootstrap_mean`; how questions are drawn is in `resampled_shares`.

    Returns
    -------
    DataFrame
        The columns of `by`, then share, low, high (1.0 is full performance), questions, level, resamples, seed.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If there are no reference rows, questions differ between settings, or the reference scores 0 in a question type.
    """
    scores, shares, drawn = resampled_shares(rows, by, full=full, resamples=resamples, seed=seed)
    low, high = interval_bounds(drawn, level)
    return with_settings(scores, {"share": shares, "low": low, "high": high}, level, resamples, seed)


def resampled_shares(
    rows: pd.DataFrame, by: Sequence[str], *, full: str = "full", resamples: int = 2000, seed: int = 0
) -> tuple[pd.DataFrame, Array, Array]:
    """Return paired scores, and the share of full performance of each of their columns, as it is and resampled.

    Questions are drawn within each question type, the same ones for every setting and the reference, so an interval
    covers the reference's own spread. Question types in which the reference scores 0 are left out, with a warning.
    Resamples where the reference scores 0 in a question type are left out; this
    happens with a handful of questions alone.

    Parameters
    ----------
    rows, by, full, resamples, seed
        See `share_of_full`.

    Returns
    -------
    tuple[DataFrame, array of float64 (m,), array of float64 (resamples, m)]
        The table of `paired_scores` with m columns, their shares, and the shares in each resample.

    Raises
    ------
    KeyError, ValueError
        As `share_of_full`.
    """
    reference = rows[rows["method"] == full]
    if reference.empty:
        raise ValueError(f"no rows of method {full!r} to compare with; there are {sorted(rows['method'].unique())}")
    scores = paired_scores(rows, by)
    whole = paired_scores(reference, ["method"]).reindex(scores.index)[full]
    if whole.isna().any():
        raise ValueError(f"method {full!r} lacks {whole.isna().sum()} of {len(scores)} questions")
    shares, drawn, nothing = [], [], []
    for number, (question_type, part) in enumerate(scores.groupby(level="question_type")):
        both = np.column_stack([part.to_numpy(), whole.loc[part.index].to_numpy()])
        if not both[:, -1].any():
            nothing.append(question_type)
            continue
        shares.append(both[:, :-1].mean(0) / both[:, -1].mean())
        means = resampled_means(both, resamples, (seed, number))
        drawn.append(means[:, :-1] / np.where(means[:, -1:] > 0, means[:, -1:], np.nan))
    if nothing:
        said = f"method {full!r} scores 0 in question type {', '.join(map(repr, nothing))}"
        if not shares:
            raise ValueError(f"{said}: a share of it means nothing")
        warnings.warn(f"{said}, which is left out of the shares", stacklevel=2)
    means = np.mean(drawn, axis=0)
    return scores, np.mean(shares, axis=0), means[np.isfinite(means).all(1)]


def with_settings(
    scores: pd.DataFrame, values: dict[str, Array], level: float, resamples: int, seed: int
) -> pd.DataFrame:
    """Return values, one for each column of `paired_scores`, as rows beside what the columns stand for."""
    table = pd.DataFrame(values, index=scores.columns).reset_index()
    return table.assign(questions=len(scores), level=level, resamples=resamples, seed=seed)
