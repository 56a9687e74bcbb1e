"""Figures of the comparison. Each has one order of its rows, and says which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsel_core.study.report import palette
from idsel_core.study.report.bootstrap import mean_scores, share_of_full
from idsel_core.study.report.comparison import is_final, marked_label, on_front, ranking_notes
from idsel_core.study.report.theme import (
    CONTROLS,
    ENDS,
    add_note,
    label,
    name_lines,
    number_ticks,
    percent_axis,
    plot_band,
    points,
    questions_asked,
    row_points,
    size,
    size_for_rows,
    styles,
)

_OWN = "idselection"
_REST: Final = 1.3
"""Height of a figure beside its rows, inches in a paper."""


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
    figure, axis = plt.subplots(figsize=size_for_rows(len(means), 0.2, _REST), layout="constrained")
    figure.set_label("Share of full performance of each method at each budget, in percent, best methods on top")
    sns.heatmap(
        100 * means,
        annot=said.where(means.notna(), ""),
        fmt="",
        cmap=palette.SHARES,
        ax=axis,
        annot_kws={"size": row_points(figure, len(means), _REST)},
        cbar_kws={"label": "share of full performance, percent", "pad": 0.01, "aspect": 40},
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
    figure, axis = plt.subplots(figsize=size("page", 3.9), layout="constrained")
    figure.set_label("Share of full performance of each method against the FLOPs of the language model")
    crowd, lines, wide = 0, [], 2 * plt.rcParams["lines.linewidth"]
    for method, style in styles(list(dict.fromkeys(shares["method"]))).items():
        chosen = shares[shares["method"] == method].sort_values("gflops")
        if method == _OWN:
            lines.append(plot_band(axis, chosen, "gflops", "share", label(method), linewidth=wide, zorder=3, **style))
        elif method in named:
            lines += axis.plot(chosen["gflops"], chosen["share"], label=label(method), zorder=2, **style)
        else:
            look: dict[str, Any] = {**style, "color": palette.CROWD, "linewidth": 0.4 * wide, "zorder": 1}
            axis.plot(chosen["gflops"], chosen["share"], label="_other", **{**look, "marker": "."})
            crowd += 1
    axis.set_xscale("log")
    number_ticks(axis.xaxis)
    axis.set_xlabel("GFLOPs of the language model for a question, analytic: layers that a score reads, and prefill")
    axis.set_ylabel("share of full performance")
    percent_axis(axis.yaxis)
    name_lines(axis, lines)
    return add_note(
        figure,
        f"{questions_asked(rows)}; band: 95 % bootstrap interval of {label(_OWN)}",
        f"named: ID-Selection, its controls and the front; grey: {crowd} others" if crowd else "",
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
    figure, axis = plt.subplots(figsize=size_for_rows(len(wide), 0.19, _REST), layout="constrained")
    figure.set_label(f"Accuracy of each method in each question type with {budget:g} tokens, in percent")
    sns.heatmap(
        100 * wide,
        annot=True,
        fmt=".0f",
        cmap=palette.SHARES,
        ax=axis,
        annot_kws={"size": row_points(figure, len(wide), _REST)},
        cbar_kws={"label": "percent", "pad": 0.01, "aspect": 40},
    )
    _name_rows(axis, order)
    axis.set_xlabel(f"accuracy with {budget:g} tokens")
    note = f"{questions_asked(rows)}; sorted by the mean over question types"
    return add_note(figure, note, *ranking_notes(order))


def _figure(axis: Axes) -> Figure:
    figure = axis.get_figure(root=True)
    assert figure is not None
    return figure


def _name_rows(axis: Axes, methods: Sequence[str]) -> None:
    """Name the rows of a heat map, and draw a line above the methods that stand apart."""
    axis.grid(visible=False)
    axis.set_facecolor(palette.EMPTY)
    names, font = [marked_label(method) for method in methods], row_points(_figure(axis), len(methods), _REST)
    axis.set_yticks(np.arange(len(methods)) + 0.5, names, rotation=0, fontsize=font)
    axis.tick_params(length=0)
    axis.set_ylabel("")
    for tick, method in zip(axis.get_yticklabels(), methods, strict=True):
        tick.set_fontweight("bold" if method == _OWN else "normal")
    ranked = sum(not is_final(method) for method in methods)
    if 0 < ranked < len(methods):
        axis.axhline(ranked, color=palette.INK, label="_apart")


def name_places(axis: Axes, methods: Sequence[str]) -> None:
    """Name the places 0, 1, ... from the bottom, and draw a line above those of the methods that stand apart."""
    names, font = [marked_label(method) for method in methods], row_points(_figure(axis), len(methods), _REST)
    axis.set_yticks(range(len(methods)), names, fontsize=font)
    axis.set_ylim(-0.7, len(methods) - 0.3)
    for tick, method in zip(axis.get_yticklabels(), methods, strict=True):
        tick.set_fontweight("bold" if method == _OWN else "normal")
    below = sum(map(is_final, methods))
    if 0 < below < len(methods):
        for one in axis.figure.axes:
            one.axhline(below - 0.5, color=palette.INK, linewidth=0.8, label="_apart")


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
        1,
        len(budgets),
        figsize=size_for_rows(len(order), 0.175, _REST),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.set_label(f"Accuracy of {label(method)} minus that of each other method, a panel a budget")
    for budget, axis in zip(budgets, axes[0], strict=True):
        part = drawn[drawn["budget"] == budget]
        for outcome, (color, marker) in palette.OUTCOMES.items():
            chosen = part[part["outcome"] == outcome]
            place = [order.index(other) for other in chosen["other"]]
            errors = 100 * np.array([chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]])
            look = {"color": color, "marker": marker, "linestyle": "", "label": outcome}
            axis.errorbar(100 * chosen["mean"], place, xerr=errors, **look)
        axis.axvline(0, color=palette.LINE, linewidth=0.8, label="_equal")
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
        1,
        len(budgets),
        figsize=size_for_rows(len(order), 0.175, _REST),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.set_label("Accuracy of each method on easy and on hard questions, a panel a budget")
    for budget, axis in zip(budgets, axes[0], strict=True):
        for name, look in palette.of_series(("easy", "hard")).items():
            chosen = means[(means["budget"] == budget) & (means["difficulty"] == name)]
            chosen = chosen.set_index("method").reindex(order)
            errors = [chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]]
            axis.errorbar(chosen["mean"], range(len(order)), xerr=errors, linestyle="", label=name, **look)
        counts = rows[rows["budget"] == budget].drop_duplicates("question_id")["difficulty"].value_counts()
        axis.set_title(
            f"{budget:g} tokens: {counts.get('easy', 0)} easy, {counts.get('hard', 0)} hard", fontsize=points(0.95)
        )
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
