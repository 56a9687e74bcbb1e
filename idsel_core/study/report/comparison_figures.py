"""Figures of the comparison. Each has one order of its rows, and says which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsel_core.study.report.bootstrap import mean_scores, share_of_full
from idsel_core.study.report.comparison import is_final, marked_label, on_front, ranking_notes
from idsel_core.study.report.theme import (
    CONTROLS,
    ENDS,
    PAGE,
    add_note,
    label,
    percent_axis,
    plot_band,
    questions_asked,
    styles,
)

_COLORS = {"win": "#0173b2", "tie": "0.55", "loss": "#d55e00"}
_OWN = "idselection"


def apart(methods: Sequence[str]) -> list[str]:
    """Return methods in their order, but those that read more tokens than their budget at the end."""
    return sorted(methods, key=is_final)


def ranking_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance of each method at each budget, best methods on top.

    A method's place is the mean, over the budgets at which it ran, of its share less the mean share of all methods
    at that budget, so that methods which cannot run at small budgets have a fair place too.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split, those of "full" among them.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    shares = share_of_full(rows, ["method", "budget"], resamples=resamples)
    shares = shares[~shares["method"].isin(list(ENDS))]
    shares["half width"] = (shares["high"] - shares["low"]) / 2
    means, widths = (
        shares.pivot_table(index="method", columns="budget", values=value).sort_index(axis=1, ascending=False)
        for value in ("share", "half width")
    )
    ranked = means[~means.index.map(is_final).to_numpy(bool)]
    place = means.sub(ranked.mean()).mean(axis=1).sort_values(ascending=False, kind="stable")
    order = apart(list(place.index))
    means, widths = means.loc[order], widths.loc[order]
    said = (100 * means).map("{:.1f}".format) + " ± " + (100 * widths).map("{:.1f}".format)
    figure, axis = plt.subplots(figsize=(PAGE, 0.8 + 0.24 * len(means)), layout="constrained")
    sns.heatmap(
        100 * means,
        annot=said.where(means.notna(), ""),
        fmt="",
        cmap="viridis",
        ax=axis,
        annot_kws={"size": 7},
        cbar_kws={"label": "share of full performance, percent"},
    )
    _name_rows(axis, order)
    axis.set_xticklabels([f"{budget:g}" for budget in means.columns])
    axis.set_xlabel("visual tokens kept")
    return add_note(
        figure,
        f"{questions_asked(rows)}; ± half the width of a 95 % bootstrap interval; empty: cannot run at this budget",
        "sorted by how far a method is above the mean of a column, over the columns where it ran",
        *ranking_notes(order),
    )


def cost_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance of each method against the FLOPs of the language model: scores and prefill.

    Methods on the front, which no other one beats at their cost, ID-Selection and its controls have colours and names;
    the others are grey. A method whose cost is not known at a budget is left out there, and the note says so.

    Parameters
    ----------
    rows : DataFrame
        As for `ranking_figure`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    by = ["method", "budget"]
    shares = share_of_full(rows, by, resamples=resamples)
    known = rows["prefill_gflops"].notna() & rows["scoring_gflops"].notna()
    spent = (rows["prefill_gflops"] + rows["scoring_gflops"]).where(known)
    cost = rows.assign(gflops=spent).groupby(by, as_index=False)["gflops"].agg(lambda one: one.mean(skipna=False))
    shares = shares[~shares["method"].isin(list(ENDS))].merge(cost, on=by)
    unknown = list(dict.fromkeys(shares.loc[shares["gflops"].isna(), "method"]))
    shares = shares.dropna(subset="gflops")
    named = {*shares.loc[on_front(shares, "gflops"), "method"], *CONTROLS, _OWN}
    figure, axis = plt.subplots(figsize=(PAGE, 4.2), layout="constrained")
    crowd = 0
    for method, style in styles(list(dict.fromkeys(shares["method"]))).items():
        chosen = shares[shares["method"] == method].sort_values("gflops")
        if method == _OWN:
            plot_band(axis, chosen, "gflops", "share", label(method), linewidth=2.5, zorder=3, **style)
            continue
        look: dict[str, Any] = {**style, "label": label(method), "alpha": 0.9, "zorder": 2}
        if method not in named:
            look = {**style, "color": "0.75", "label": "_other" if crowd else "other methods", "zorder": 1}
            crowd += 1
        axis.plot(chosen["gflops"], chosen["share"], linewidth=0.8, markersize=3.5, **look)
    axis.set_xscale("log")
    axis.set_xlabel("language model, analytic GFLOPs a question: layers that a score reads, and prefill")
    axis.set_ylabel("share of full performance")
    percent_axis(axis.yaxis)
    axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return add_note(
        figure,
        f"{questions_asked(rows)}; band: 95 % bootstrap interval of {label(_OWN)}",
        f"coloured: ID-Selection, its controls and the front; grey: {crowd} others" if crowd else "",
        "what the image-text companion of CDPruner and TRIM costs is not counted"
        if {"cdpruner", "trim"} & set(shares["method"])
        else "",
        f"left out where their cost is not known: {', '.join(map(label, unknown))}" if unknown else "",
    )


def question_types_figure(rows: pd.DataFrame, budget: float, resamples: int = 2000) -> Figure:
    """Draw the accuracy of each method in each question type at one budget, best methods on top.

    Parameters
    ----------
    rows : DataFrame
        As for `ranking_figure`.
    budget : float
        Which budget; "full" is drawn beside it.
    resamples : int
        Bootstrap resamples of the intervals.

    Raises
    ------
    ValueError
        If no row has this budget.
    """
    listed = rows[(rows["budget"] == budget) | (rows["method"] == "full")]
    if set(listed["method"]) <= {"full"}:
        raise ValueError(f"no rows with {budget:g} tokens; there are {sorted(rows['budget'].unique())}")
    means = mean_scores(listed, ["question_type", "method"], resamples=resamples)
    wide = means.pivot_table(index="method", columns="question_type", values="mean")[
        list(dict.fromkeys(rows["question_type"]))
    ]
    order = apart(list(wide.mean(axis=1).sort_values(ascending=False).index))
    wide = wide.loc[order]
    figure, axis = plt.subplots(figsize=(PAGE, 0.8 + 0.22 * len(wide)), layout="constrained")
    sns.heatmap(
        100 * wide, annot=True, fmt=".0f", cmap="viridis", ax=axis, annot_kws={"size": 7}, cbar_kws={"label": "percent"}
    )
    _name_rows(axis, order)
    axis.set_xlabel(f"accuracy with {budget:g} tokens")
    note = f"{questions_asked(rows)}; sorted by the mean over question types"
    return add_note(figure, note, *ranking_notes(order))


def _name_rows(axis: Axes, methods: Sequence[str]) -> None:
    """Name the rows of a heat map, and draw a line above the methods that stand apart."""
    axis.grid(visible=False)
    axis.set_facecolor("0.96")
    axis.set_yticks(np.arange(len(methods)) + 0.5, [marked_label(method) for method in methods], rotation=0)
    axis.set_ylabel("")
    for tick, method in zip(axis.get_yticklabels(), methods, strict=True):
        tick.set_fontweight("bold" if method == _OWN else "normal")
    ranked = sum(not is_final(method) for method in methods)
    if 0 < ranked < len(methods):
        axis.axhline(ranked, color="black", linewidth=1.5)


def name_places(axis: Axes, methods: Sequence[str]) -> None:
    """Name the places 0, 1, ... from the bottom, and draw a line above those of the methods that stand apart."""
    axis.set_yticks(range(len(methods)), [marked_label(method) for method in methods])
    below = sum(map(is_final, methods))
    if 0 < below < len(methods):
        for one in axis.figure.axes:
            one.axhline(below - 0.5, color="black", linewidth=1)


def versus_each_figure(table: pd.DataFrame, budgets: Sequence[float], method: str = _OWN) -> Figure:
    """Draw how far a method lies above or below each other one, a panel a budget.

    Parameters
    ----------
    table : DataFrame
        What `versus_each` returned.
    budgets : sequence of float
        Which budgets to draw.
    method : str
        The method that `table` is about.
    """
    drawn = table[table["budget"].isin(budgets)]
    # From the bottom to the top: those that stand apart, then from the strongest rival to the weakest.
    order = apart(list(drawn.groupby("other")["mean"].mean().sort_values(ascending=False).index))[::-1]
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(PAGE, 0.9 + 0.2 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for budget, axis in zip(budgets, axes[0], strict=True):
        part = drawn[drawn["budget"] == budget]
        for outcome, color in _COLORS.items():
            chosen = part[part["outcome"] == outcome]
            place = [order.index(other) for other in chosen["other"]]
            errors = 100 * np.array([chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]])
            axis.errorbar(100 * chosen["mean"], place, xerr=errors, fmt="o", markersize=3.5, color=color, label=outcome)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_title(f"{budget:g} tokens")
        axis.set_xlabel("points of accuracy")
    name_places(axes[0, 0], order)
    title = f"accuracy of {label(method)} minus that of each other method"
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, title=title)
    return add_note(
        figure,
        f"{drawn['questions'].max():,} questions; bars: 95 % paired intervals; colours: Holm's correction",
        "sorted by the mean difference over the panels",
        *ranking_notes(order),
    )


def difficulty_figure(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> Figure:
    """Draw the accuracy of each method on easy and on hard questions, a panel a budget.

    Parameters
    ----------
    rows : DataFrame
        What `by_difficulty` returned.
    budgets : sequence of float
        Which budgets to draw.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    drawn = [
        mean_scores(part, ["method"], resamples=resamples).assign(budget=budget, difficulty=name)
        for budget in budgets
        for name in ("easy", "hard")
        if len(part := rows[(rows["budget"] == budget) & (rows["difficulty"] == name)])
    ]
    means = pd.concat(drawn)
    hard = means[means["difficulty"] == "hard"].groupby("method")["mean"].mean()
    order = apart(list(hard.sort_values(ascending=False).index))[::-1]
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(PAGE, 0.9 + 0.2 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for budget, axis in zip(budgets, axes[0], strict=True):
        for name, color in zip(("easy", "hard"), sns.color_palette("colorblind"), strict=False):
            chosen = means[(means["budget"] == budget) & (means["difficulty"] == name)]
            chosen = chosen.set_index("method").reindex(order)
            errors = [chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]]
            axis.errorbar(
                chosen["mean"], range(len(order)), xerr=errors, fmt="o", markersize=3.5, color=color, label=name
            )
        counts = rows[rows["budget"] == budget].drop_duplicates("question_id")["difficulty"].value_counts()
        axis.set_title(f"{budget:g} tokens: {counts.get('easy', 0)} easy, {counts.get('hard', 0)} hard", fontsize=8)
        percent_axis(axis.xaxis)
        axis.set_xlabel("accuracy")
    name_places(axes[0, 0], order)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return add_note(
        figure,
        f"{questions_asked(rows)}; all tokens answer each; easy: a smaller image does too; 95 % intervals",
        "sorted by the mean accuracy on hard questions",
        *ranking_notes(order),
    )
