"""Measures of stored rows beside accuracy: loyalty to the full model's answers, and F1 of yes and no."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from idsel_core.study.metrics import yes_no
from idsel_core.study.report.bootstrap import (
    interval_bounds,
    mean_scores,
    paired_scores,
    resampled_means,
    with_settings,
)

_ASKED = ["backbone", "dataset", "split", "question_id"]


def as_loyal(rows: pd.DataFrame, full: str = "full") -> pd.DataFrame:
    """Return rows in which `correct` says whether the full model, given the same question, answered the same.

    All functions that read accuracies then read loyalties. Right and wrong play no part: two wrong answers agree if
    they are the same text.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, those of the full model among them.
    full : str
        The method whose answers are the reference.

    Raises
    ------
    ValueError
        If the full model was not asked a question, or gave several answers to one.
    """
    by = [name for name in _ASKED if name in rows]
    reference = rows[rows["method"] == full].drop_duplicates([*by, "prediction"])
    twice = reference[reference.duplicated(by)]
    if len(twice):
        raise ValueError(f"method {full!r} gave several answers to question {twice.iloc[0]['question_id']!r}")
    said = rows[by].merge(reference[[*by, "prediction"]], on=by, how="left")["prediction"]
    if said.isna().any():
        raise ValueError(
            f"loyalty needs the answers of method {full!r}, which lacks {said.isna().sum()} of {len(rows)} rows' "
            "questions"
        )
    return rows.assign(correct=(said.to_numpy() == rows["prediction"].to_numpy()).astype(float))


def loyalty(
    rows: pd.DataFrame,
    by: Sequence[str],
    *,
    full: str = "full",
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the share of answers that equal the full model's, with intervals from shared resamples.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone and split, those of the full model among them.
    by : sequence of str
        The columns that tell settings apart.
    full : str
        As for `as_loyal`.
    level, resamples, seed
        As for `bootstrap_mean`.

    Returns
    -------
    DataFrame
        As of `mean_scores`; 1.0 is the full model's.

    Raises
    ------
    KeyError, ValueError
        As for `as_loyal` and `mean_scores`.
    """
    return mean_scores(as_loyal(rows, full), by, level=level, resamples=resamples, seed=seed)


def f1_scores(
    rows: pd.DataFrame, by: Sequence[str], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Return F1 of yes over all questions that ask for yes or no, with intervals from shared resamples.

    F1 is no mean over questions. Each row says whether it is a true, false or missed yes; a resample of the questions
    sums these, and has its own F1.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one backbone and split; those whose right answer is neither yes nor no are left out.
    by : sequence of str
        The columns that tell settings apart.
    level, resamples, seed
        As for `bootstrap_mean`. Resamples without any yes are left out.

    Returns
    -------
    DataFrame
        The columns of `by`, then f1, low, high, questions, level, resamples, seed.

    Raises
    ------
    ValueError
        If no question asks for yes or no, or as for `paired_scores`.
    """
    asked = rows[rows["answer"].str.lower().isin(["yes", "no"])]
    if asked.empty:
        raise ValueError("F1 needs questions whose right answer is yes or no; there are none")
    kinds = yes_no.counts(asked["prediction"].tolist(), asked["answer"].tolist())
    tables = [paired_scores(asked.assign(correct=kinds[:, kind]), by) for kind in range(3)]
    whole = pd.concat(tables, axis=1)
    settings = tables[0].shape[1]
    drawn = resampled_means(whole, resamples, seed).reshape(resamples, 3, settings)
    found = yes_no.f1(drawn.swapaxes(1, 2))
    low, high = interval_bounds(found[~pd.isna(found).any(axis=1)], level)
    mean = yes_no.f1(whole.to_numpy().mean(0).reshape(3, settings).T)
    return with_settings(tables[0], {"f1": mean, "low": low, "high": high}, level, resamples, seed)
