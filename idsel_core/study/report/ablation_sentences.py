"""Sentences about the ablations, made from the numbers so that they are true of them."""

from __future__ import annotations

from typing import Any

import pandas as pd

from idsel_core.methods import IDSelection
from idsel_core.study.knobs import knob_columns
from idsel_core.study.report.ablation_figures import named_importance
from idsel_core.study.report.bootstrap import mean_scores, paired_difference, paired_scores, share_of_full
from idsel_core.study.report.theme import label
from idsel_core.study.report.wording import gamma_name, points, verdict


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _percent(row: dict[str, Any], value: str = "mean") -> str:
    return f"{100 * row[value]:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def about_gamma(rows: pd.DataFrame, default: float | None = None, resamples: int = 2000) -> str:
    """Say, for each budget, which gammas and updates did best, and how the default compares with top-K.

    Parameters
    ----------
    rows : DataFrame
        Rows of the ablation of gamma, those of top-K importance among them.
    default : float, optional
        The gamma that is compared, as the store writes it; by default that of `IDSelection`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    default = float(knob_columns(IDSelection(1))["gamma"]) if default is None else default
    swept = rows[rows["method"] == "idselection"]
    lines = []
    for budget in sorted(swept["budget"].unique(), reverse=True):
        part = swept[swept["budget"] == budget]
        scores = paired_scores(part, ["update", "gamma"])
        means = mean_scores(part, ["update", "gamma"], resamples=resamples)
        best = max(_records(means), key=lambda row: row["mean"])
        top = paired_scores(rows[(rows["method"] == "topk") & (rows["budget"] == budget)], ["budget"]).iloc[:, 0]
        like: dict[str, list[float]] = {}
        others: list[Any] = scores.columns.drop((best["update"], best["gamma"])).tolist()
        for update, gamma in others:
            gap = paired_difference(scores[update, gamma], scores[best["update"], best["gamma"]], resamples=resamples)
            if gap.high >= 0:
                like.setdefault(update, []).append(gamma)
        alike = "; ".join(
            f"*{update}* with {', '.join(gamma_name(g) for g in sorted(of))}" for update, of in like.items()
        )
        said = [
            f"- **{budget:g} tokens**: best is *{best['update']}* with gamma {gamma_name(best['gamma'])}, "
            f"{_percent(best)} (the best of {len(means)} settings on these very questions, so a little flattered). "
            f"Not told apart from it: {alike or 'no other'}."
        ]
        for update in sorted(part["update"].unique()):
            if (update, default) in scores:
                gain = paired_difference(scores[update, default], top.loc[scores.index], resamples=resamples)
                said.append(
                    f"*{update}* with gamma {gamma_name(default)} is {verdict(gain)} top-K importance: {points(gain)}."
                )
        if {("subtract", default), ("multiply", default)} <= set(scores):
            gap = paired_difference(scores["multiply", default], scores["subtract", default], resamples=resamples)
            said.append(f"*Multiply* is {verdict(gap)} *subtract* there: {points(gap)}.")
        lines.append(" ".join(said))
    return "\n".join(lines)


def about_importance(rows: pd.DataFrame, resamples: int = 2000) -> str:
    """Say, for each budget, how the importance scores rank, and what normalisation and feature space change."""
    swept = named_importance(rows[rows["method"] == "idselection"])
    lines = []
    for budget in sorted(swept["budget"].unique(), reverse=True):
        part = swept[swept["budget"] == budget]
        plain = part[(part["normalise"] == "minmax") & (part["features"] == "projector")]
        said = [f"- **{budget:g} tokens**:"]
        if len(plain):
            means = sorted(_records(mean_scores(plain, ["score"], resamples=resamples)), key=lambda row: -row["mean"])
            best, worst = means[0], means[-1]
            scores = paired_scores(plain, ["score"])
            gap = paired_difference(scores[best["score"]], scores[worst["score"]], resamples=resamples)
            between = ", ".join(f"*{row['score']}* {100 * row['mean']:.1f}" for row in means[1:-1])
            said.append(
                f"with min-max and projector features from *{best['score']}*, {_percent(best)}, down to "
                f"*{worst['score']}*, {_percent(worst)}; {points(gap)} between them"
                f"{f'; the others: {between}' if between else ''}."
            )
        for knob, one, other in (("features", "encoder", "projector"), ("normalise", "raw", "minmax")):
            if {one, other} <= set(part[knob]):
                both = paired_scores(part, [knob])
                change = paired_difference(both[one], both[other], resamples=resamples)
                said.append(f"Over all scores, *{one}* is {verdict(change)} *{other}*: {points(change)}.")
        lines.append(" ".join(said))
    return "\n".join(lines)


def about_budget(rows: pd.DataFrame, method: str = "idselection", resamples: int = 2000) -> str:
    """Say what share of full performance a method keeps, and which controls it beats, ties with or loses to.

    The last line tells which question types suffer most and least at the smallest budget.
    """
    shares = _records(share_of_full(rows, ["method", "budget"], resamples=resamples))
    blind = next(row for row in shares if row["method"] == "no-image")
    chance, right = rows["chance"].mean(), rows.loc[rows["method"] == "no-image", "correct"].mean()
    lines = [
        f"With no image the model gets {100 * right:.1f} % of the questions right, where chance is {100 * chance:.1f} "
        f"%: that is {100 * blind['share']:.1f} % of its full score."
    ]
    for row in sorted(shares, key=lambda row: -row["budget"]):
        if row["method"] != method:
            continue
        here = rows[rows["budget"] == row["budget"]]
        scores = paired_scores(here[~here["method"].isin(["full", "no-image"])], ["method"])
        verdicts: dict[str, list[str]] = {"above": [], "not told apart from": [], "below": []}
        for other in scores.columns.drop(method):
            gap = paired_difference(scores[method], scores[other], resamples=resamples)
            verdicts[verdict(gap)].append(f"{label(other)} ({points(gap)})")
        said = "; ".join(f"{word} {', '.join(others)}" for word, others in verdicts.items() if others)
        lines.append(
            f"- **{row['budget']:g} tokens**: {label(method)} keeps {_percent(row, 'share')} of full performance. "
            f"By accuracy it is {said}."
        )
    return "\n".join([*lines, *_by_type(rows, method)])


def _by_type(rows: pd.DataFrame, method: str) -> list[str]:
    """Say how much of the accuracy of each question type a method keeps at its smallest budget, the least first."""
    few = rows.loc[rows["method"] == method, "budget"].min()
    kept, full = (
        rows[chosen].groupby("question_type")["correct"].mean()
        for chosen in ((rows["method"] == method) & (rows["budget"] == few), rows["method"] == "full")
    )
    shares = (kept / full).sort_values()
    if shares.empty:
        return []
    said = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
    return [f"- By question type, {label(method)} keeps with {few:g} tokens, of the accuracy with all: {said}."]


def about_positions(rows: pd.DataFrame, resamples: int = 2000) -> str:
    """Say what keeping the original positions of the kept tokens changes."""
    lines = []
    settings = rows[["method", "budget"]].drop_duplicates().itertuples(index=False, name=None)
    for method, budget in settings:
        scores = paired_scores(rows[(rows["method"] == method) & (rows["budget"] == budget)], ["positions"])
        if {"keep", "compact"} <= set(scores):
            gap = paired_difference(scores["keep"], scores["compact"], resamples=resamples)
            lines.append(
                f"- {label(method)}, {budget:g} tokens: original positions are {verdict(gap)} compact ones, "
                f"{points(gap)}."
            )
    return "\n".join(lines)
