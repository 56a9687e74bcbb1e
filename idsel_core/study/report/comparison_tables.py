"""Tables of the comparison. Methods that read more tokens than their budget stand last in each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.comparison import is_final, marked_label
from idsel_core.study.report.tables import loyalty_column
from idsel_core.study.report.theme import label


def comparison_table(
    rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000, *, loyal: bool = False
) -> pd.DataFrame:
    """Return the table in the layout of the literature: blocks of a budget, a row a method, a column a question type.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split, those of "full" among them.
    budgets : sequence of float
        Which budgets to list, beside "full".
    resamples : int
        Bootstrap resamples of the intervals.
    loyal : bool
        Whether to add the column loyalty.

    Returns
    -------
    DataFrame
        budget, method, tokens a layer (the mean over layers), the accuracy in each question type, mean, share of full,
        and where asked for loyalty.
    """
    listed = rows[rows["budget"].isin(budgets) | (rows["method"] == "full")]
    by = ["method", "budget"]
    wide = listed.pivot_table(index=by, columns="question_type", values="correct", sort=False).mul(100)
    wide["mean"] = wide.mean(axis=1)
    shares = share_of_full(listed, by, resamples=resamples).set_index(by)[["share", "low", "high"]].mul(100)
    wide = wide.map("{:.1f}".format)
    wide["share of full"] = [f"{s:.1f} [{low:.1f}, {high:.1f}]" for s, low, high in shares.loc[wide.index].to_numpy()]
    if loyal:
        wide["loyalty"] = loyalty_column(listed, by, resamples).loc[wide.index]
    wide["tokens a layer"] = listed.groupby(by)["tokens_average"].mean().loc[wide.index].map("{:.0f}".format)
    wide["order"] = shares.loc[wide.index, "share"]
    wide = wide.reset_index()
    wide["ranked"] = ~wide["method"].map(is_final)
    wide = wide.sort_values(["budget", "ranked", "order"], ascending=False, kind="stable")
    wide = wide.assign(budget=wide["budget"].astype(int).astype(str), method=wide["method"].map(marked_label))
    last = ["mean", "share of full", *(["loyalty"] if loyal else [])]
    return wide[["budget", "method", "tokens a layer", *dict.fromkeys(rows["question_type"]), *last]]


def shares_table(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return the share of full performance with its interval, a row a method, a column a budget, in percent.

    Parameters
    ----------
    rows : DataFrame
        As for `comparison_table`.
    budgets : sequence of float
        Which budgets to show; the last one sorts the rows.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    listed = rows[rows["budget"].isin(budgets) | (rows["method"] == "full")]
    shares = share_of_full(listed, ["method", "budget"], resamples=resamples)
    last = shares[shares["budget"] == budgets[-1]].set_index("method")["share"].sort_values(ascending=False)
    order = sorted(last.index, key=is_final)
    shares = shares[shares["budget"].isin(budgets)].set_index(["method", "budget"])[["share", "low", "high"]].mul(100)
    text = [f"{share:.1f} [{low:.1f}, {high:.1f}]" for share, low, high in shares.to_numpy()]
    wide = shares.assign(text=text)["text"].unstack("budget").reindex(index=order, columns=list(budgets))
    wide.columns = [f"{budget:g} tokens" for budget in budgets]
    return wide.fillna("").rename(index=marked_label).rename_axis("method").reset_index()


def missing_table(missing: Mapping[str, str]) -> pd.DataFrame:
    """Return which methods could not run at which budgets, and why at the largest of them.

    Parameters
    ----------
    missing : Mapping[str, str]
        For methods, or "method at budget", that could not run, why.
    """
    refused: dict[str, dict[float, str]] = {}
    for name, why in missing.items():
        method, _, budget = name.partition(" at ")
        refused.setdefault(method, {})[float(budget or "inf")] = why
    rows = []
    for method, whys in refused.items():
        budgets = sorted(whys, reverse=True)
        named = ", ".join("any" if budget == float("inf") else f"{budget:g}" for budget in budgets)
        rows.append((label(method), named, whys[budgets[0]]))
    return pd.DataFrame(rows, columns=["method", "budget", "why"])
