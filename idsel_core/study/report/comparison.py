"""Methods against each other on the same questions: who wins, who ties, and which questions are easy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd

from idsel_core.study.backbone_folders import job_name
from idsel_core.study.report.bootstrap import paired_difference, paired_scores
from idsel_core.study.report.settings import own_positions
from idsel_core.study.report.significance import holm, sign_flip_test
from idsel_core.study.report.theme import ENDS, FINAL, label
from idsel_core.study.store.results import Results

_LEVEL: Final = 0.05
_FRAGILE: Final = "vispruner"
"""The method whose picks follow the parity of ranks, so that the rounding of a processor moves them."""


def by_title(rows: pd.DataFrame) -> pd.DataFrame:
    """Call methods whose budget is what is left at last, not a mean over layers, "name (final)" in `method`."""
    final = rows["convention"] == "final"
    return rows.assign(method=rows["method"].where(~final, rows["method"] + FINAL))


def read_comparison(results: Results, job: str = "06_comparison", beside: str = "04_ablation_budget") -> pd.DataFrame:
    """Return the rows of the comparison, with those of the controls where another job asked them the same questions.

    Parameters
    ----------
    results : Results
        The store.
    job : str
        The comparison.
    beside : str
        The job that asked the controls. Of its rows those of other questions, splits or budgets are left out, and those
        of settings that the comparison asked itself.

    Raises
    ------
    ValueError
        If a control was not asked all questions of the comparison, or was asked with other positions than the default
        of the backbone's family alone.
    """
    rows = results.frame(job)
    if beside not in results.jobs():
        return rows
    more = results.frame(beside)
    more = more[more["budget"].isin(rows["budget"]) | more["method"].isin(list(ENDS))]
    return own_positions(with_others(rows, more, job, beside)).reset_index(drop=True)


def with_others(rows: pd.DataFrame, others: pd.DataFrame, job: str, beside: str) -> pd.DataFrame:
    """Return rows with those of another job that asked the same questions.

    Parameters
    ----------
    rows, others : DataFrame
        Rows of both. Of the others, those of other questions, splits and further seeds are left out, and those of
        settings that `rows` hold.
    job, beside : str
        What both are called.

    Raises
    ------
    ValueError
        If a setting of the other job was asked some of the questions alone.
    """
    asked, setting = rows["question_id"].unique(), ["method", "budget"]
    more = others[others["split"].isin(rows["split"]) & others["question_id"].isin(asked) & (others["seed"] == 0)]
    own = pd.MultiIndex.from_frame(rows[setting]).unique()
    more = more[~pd.MultiIndex.from_frame(more[setting]).isin(own)]
    short = more.groupby(setting)["question_id"].nunique()
    if (short < len(asked)).any():
        raise ValueError(f"{beside} asked {short.min()} of the {len(asked)} questions of {job}; it must ask them all")
    return pd.concat([rows, more], ignore_index=True)


def find_comparison(results: Results, model: str, job: str = "06_comparison") -> str:
    """Return the job of the store that compared methods with a model, "" if there is none.

    Parameters
    ----------
    results : Results
        The store.
    model : str
        As `backbone_name` calls it, and the settings that it was loaded with.
    job : str
        Of the notebook, with the embedded model.

    Raises
    ------
    ValueError
        If several did, on other questions.
    """
    named = job_name(job, model)
    found = [one for one in results.jobs() if one == named or (model != "embedded" and one.startswith(f"{named}-"))]
    if len(found) > 1:
        raise ValueError(f"several jobs compare methods with {model}; choose one of {', '.join(found)}")
    return found[0] if found else ""


def is_final(method: str) -> bool:
    """Return whether the budget of a method, as `by_title` calls it, is what is left after the last drop."""
    return method.endswith(FINAL)


def marked_label(method: str) -> str:
    """Return the label of a method in a ranking, with the mark of the note that it needs; see `ranking_notes`."""
    return label(method) + (" †" if is_final(method) else " ‡" if method == _FRAGILE else "")


def ranking_notes(methods: Iterable[str], apart: bool = True) -> list[str]:
    """Return what has to be said below a ranking of these methods.

    Parameters
    ----------
    methods : iterable of str
        The methods, as `by_title` calls them.
    apart : bool
        Whether those that read more tokens than their budget stand apart; they need not where cost is measured.
    """
    methods = set(methods)
    notes = []
    if any(map(is_final, methods)):
        why = ", so these rows stand apart and are not ranked with the others" if apart else ""
        notes.append(
            f"† The budget is what is left after the last drop: earlier layers read more tokens than that{why}."
        )
    if _FRAGILE in methods:
        notes.append(
            f"‡ {label(_FRAGILE)} pairs tokens by the parity of their rank, so the rounding of a processor moves its "
            "numbers."
        )
    return notes


def versus_each(rows: pd.DataFrame, method: str = "idselection", resamples: int = 2000) -> pd.DataFrame:
    """Compare one method with every other at each budget, question by question.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split; all methods answered the same questions.
    method : str
        The method that is compared.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        budget, other, mean, low, high (the method's accuracy less the other's, 95 % interval), questions (how many),
        p and corrected (`sign_flip_test`, and `holm` over the whole table) and outcome: "win" or "loss" where
        `corrected` is below 0.05, else "tie".

    Raises
    ------
    ValueError
        If the method has no rows.
    """
    rows = rows[~rows["method"].isin(list(ENDS))]
    budgets = rows.loc[rows["method"] == method, "budget"].unique()
    if not len(budgets):
        raise ValueError(f"no rows of method {method!r}; there are {sorted(rows['method'].unique())}")
    found = []
    for budget in sorted(budgets, reverse=True):
        scores = paired_scores(rows[rows["budget"] == budget], ["method"])
        for other in scores.columns.drop(method):
            gap = paired_difference(scores[method], scores[other], resamples=resamples)
            p_value = sign_flip_test(scores[method] - scores[other])
            found.append((budget, other, gap.mean, gap.low, gap.high, gap.questions, p_value))
    table = pd.DataFrame(found, columns=["budget", "other", "mean", "low", "high", "questions", "p"])
    table["corrected"] = holm(table["p"])
    found_out = table["corrected"] < _LEVEL
    return table.assign(outcome=np.select([found_out & (table["mean"] > 0), found_out], ["win", "loss"], "tie"))


def on_front(table: pd.DataFrame, cost: str) -> pd.Series:
    """Tell of each row whether no other one is as cheap and has as large a share of full performance.

    Parameters
    ----------
    table : DataFrame
        With the column `share`.
    cost : str
        The column of the cost, such as milliseconds.
    """
    order = table.sort_values([cost, "share"], ascending=[True, False])
    best = order["share"].cummax().shift(fill_value=-1.0)
    return (order["share"] > best).reindex(table.index)


def by_difficulty(rows: pd.DataFrame, easy: str = "downsample") -> pd.DataFrame:
    """Keep the questions that all tokens answer, and call those easy that a smaller image answers at the same budget.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split, those of "full" and of `easy` among them.
    easy : str
        The method that tells easy questions from hard ones.

    Returns
    -------
    DataFrame
        The rows of the other methods with a new column `difficulty`, "easy" or "hard".

    Raises
    ------
    ValueError
        If "full" or `easy` has no rows.

    Notes
    -----
    Liao et al., "Are we using the right benchmark", VTC-Bench: samples that plain down-sampling answers cannot tell
    methods apart.
    """
    for needed in ("full", easy):
        if needed not in set(rows["method"]):
            raise ValueError(f"no rows of method {needed!r}; there are {sorted(rows['method'].unique())}")
    answered = rows.loc[(rows["method"] == "full") & (rows["correct"] == 1), "question_id"]
    rows = rows[rows["question_id"].isin(answered)]
    small = rows.loc[rows["method"] == easy, ["question_id", "budget", "correct"]]
    rows = rows[~rows["method"].isin([*ENDS, easy])].merge(
        small, on=["question_id", "budget"], suffixes=("", "_small"), validate="many_to_one"
    )
    difficulty = np.where(rows["correct_small"] == 1, "easy", "hard")
    return rows.drop(columns="correct_small").assign(difficulty=difficulty)
