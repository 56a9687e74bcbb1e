"""Tables of accuracies, and how tables are saved with the line that says what they are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from idsel_core.study.report.agreement import as_loyal, loyalty
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.table_text import SECOND, marks, to_latex, to_markdown
from idsel_core.study.report.theme import ENDS, FINAL, label
from idsel_core.study.store.provenance import origin_comment

_NOT_COMPARED: Final = ("method", "budget", "tokens a layer", "split", "questions")
_MARKED: Final = (
    "Best in bold, second best in italics (in LaTeX underlined), by the number shown; all tokens, no image and methods "
    "that read more tokens than their budget are not compared."
)


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


def best_methods(table: pd.DataFrame) -> pd.DataFrame:
    """Return the marks of the best and the second best method in each column of numbers, at each budget.

    The two ends of the scale, chance, and methods that read more tokens than their budget are not compared.

    Parameters
    ----------
    table : DataFrame
        A table of methods by their labels.
    """
    columns = [name for name in map(str, table) if name not in _NOT_COMPARED]
    methods = table["method"].astype(str)
    compared = ~methods.isin([*ENDS.values(), "chance"]) & ~methods.str.contains(FINAL, regex=False)
    return marks(table, columns, compared.to_list(), "budget" if "budget" in table else None)


def save_table(
    table: pd.DataFrame,
    folder: Path | str,
    name: str,
    *notes: str,
    origin: Mapping[str, Any] | None = None,
    best: pd.DataFrame | None = None,
) -> str:
    """Write a table as Markdown and as LaTeX, with its notes and what it was made from, and return the Markdown.

    Parameters
    ----------
    table : DataFrame
        The table.
    folder, name
        Where it goes, without suffix; the folder is made if need be.
    *notes : str
        What is written below it; in LaTeX, above it as comments.
    origin : Mapping, optional
        What it was made from.
    best : DataFrame, optional
        Which cells are best and second best, such as `best_methods` returns.
    """
    if best is not None and (best == SECOND).to_numpy().any():
        notes = (_MARKED, *notes)
    text = "\n\n".join([to_markdown(table, best), *filter(None, notes)])
    save_text(text, folder, name, origin)
    said = {"note": " ".join(filter(None, notes)), "origin": json.dumps(origin)} if origin else {}
    latex = to_latex(table, best, "budget" if "budget" in table else None, said)
    (Path(folder) / f"{name}.tex").write_text(latex)
    return text


def save_text(text: str, folder: Path | str, name: str, origin: Mapping[str, Any] | None = None) -> str:
    """Write Markdown beside the tables, with what it was made from in a comment, and return it without the comment."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    comment = "" if origin is None else f"\n{origin_comment(origin)}\n"
    (folder / f"{name}.md").write_text(f"{text}\n{comment}")
    return text
