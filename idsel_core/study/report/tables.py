"""Tables of accuracies, and how tables are saved with the line that says what they are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from idsel_core.study.report.agreement import as_loyal, loyalty
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.theme import label
from idsel_core.study.store.provenance import origin_comment


def method_table(
    rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000, *, loyal: bool = False
) -> pd.DataFrame:
    """Return accuracy by question type and share of full performance with its interval, for the budgets named.

    Parameters
    ----------
    rows : DataFrame
        Rows of the budget ablation with compact positions, those of "full" and "no-image" among them.
    budgets : sequence of float
        Which budgets to list, beside "full" and "no-image".
    resamples : int
        Bootstrap resamples of the intervals.
    loyal : bool
        Whether to add the column loyalty, with its interval.
    """
    listed = rows[rows["budget"].isin(budgets) | rows["method"].isin(["full", "no-image"])]
    wide = listed.pivot_table(index=["method", "budget"], columns="question_type", values="correct", sort=False)
    wide = wide.mul(100).round(1)
    shares = share_of_full(listed, ["method", "budget"], resamples=resamples).set_index(["method", "budget"])
    percent = shares[["share", "low", "high"]].mul(100).round(1).astype(str)
    said = percent["share"] + " [" + percent["low"] + ", " + percent["high"] + "]"
    wide["share of full"] = said.loc[wide.index]
    if loyal:
        wide["loyalty"] = loyalty_column(listed, ["method", "budget"], resamples).loc[wide.index]
    wide = wide.reset_index().sort_values("budget", ascending=False, kind="stable")
    wide["budget"] = wide["budget"].astype(int)
    return wide.assign(method=wide["method"].map(label))


def loyalty_column(rows: pd.DataFrame, by: Sequence[str], resamples: int = 2000) -> pd.Series:
    """Return the loyalty of each setting with its interval, in percent and as text, indexed by `by`."""
    table = loyalty(rows, by, resamples=resamples).set_index(list(by))[["mean", "low", "high"]].mul(100)
    text = [f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in table.to_numpy()]
    return pd.Series(text, index=table.index, name="loyalty")


def accuracy(rows: pd.DataFrame, by: Sequence[str] = ("method", "budget")) -> pd.DataFrame:
    """Return the accuracy of each setting, in all and by question type, with the chance level, 0 to 1.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store.
    by : sequence of str
        The columns that tell settings apart, "method" and "budget" among them.
    """
    questions = [*(name for name in by if name not in ("method", "budget")), "question_id"]
    chance = rows.drop_duplicates(questions).assign(method="chance", budget=0.0, correct=lambda one: one["chance"])
    rows = pd.concat([rows.assign(correct=rows["correct"].astype(float)), chance], ignore_index=True)
    wide = rows.pivot_table(index=list(by), columns="question_type", values="correct", sort=False)
    wide.insert(0, "all", rows.groupby(list(by), sort=False)["correct"].mean())
    return wide


def accuracy_table(rows: pd.DataFrame, *, loyal: bool = False) -> pd.DataFrame:
    """Return the accuracy in percent of each split, method and budget, in all and by question type, and chance.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of any splits, methods and budgets.
    loyal : bool
        Whether to add the share of answers that equal the full model's, whose rows must be there then.

    Returns
    -------
    DataFrame
        split, questions (how many), method, budget, all, a column a question type, and where asked for loyalty.
    """
    by = ["split", "method", "budget"]
    wide = accuracy(rows, by)
    if loyal:
        wide["loyalty"] = as_loyal(rows).groupby(by)["correct"].mean()
    wide = wide.mul(100).round(1).sort_index(level="split", sort_remaining=False, ascending=False).reset_index()
    wide.insert(1, "questions", wide["split"].map(rows.groupby("split")["question_id"].nunique()))
    return wide.assign(method=wide["method"].map(label), budget=wide["budget"].astype(int))


def save_table(
    table: pd.DataFrame, folder: Path | str, name: str, *notes: str, origin: Mapping[str, Any] | None = None
) -> str:
    """Write a table as Markdown, its notes and what it was made from below it, and return the text."""
    return save_text("\n\n".join([table.to_markdown(index=False), *filter(None, notes)]), folder, name, origin)


def save_text(text: str, folder: Path | str, name: str, origin: Mapping[str, Any] | None = None) -> str:
    """Write Markdown beside the tables, with what it was made from in a comment, and return it without the comment."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    comment = "" if origin is None else f"\n{origin_comment(origin)}\n"
    (folder / f"{name}.md").write_text(f"{text}\n{comment}")
    return text
