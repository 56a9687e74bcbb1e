"""The order of methods on several backbones that were asked the same questions: accuracies, ranks and their agreement.

Methods are ranked at a budget where every backbone reads it in the mean over its layers; a method that drops tokens
inside the language model cannot do that at every budget, as the layers before its drops read all tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import kendalltau, rankdata

from idsel_core.study.dataset import BLIND, FULL, OTHER
from idsel_core.study.report import palette, theme
from idsel_core.study.report.bootstrap import (
    Array,
    interval_bounds,
    mean_scores,
    paired_difference,
    paired_scores,
    resampled_means,
)
from idsel_core.study.report.comparison import by_title, is_final, marked_label, ranking_notes, versus_each
from idsel_core.study.report.theme import ENDS, label
from idsel_core.study.report.wording import points
from idsel_core.study.store.results import Results

JOB = "19_across_backbones"
_BY = ["method", "budget"]


def read_ranked(results: Results, job: str = JOB) -> pd.DataFrame:
    """Return the rows of a job that asked several backbones, methods with a final budget called so.

    Raises
    ------
    ValueError
        If a backbone was asked other questions than another.
    """
    rows = by_title(results.frame(job))
    asked = {str(name): set(part["question_id"]) for name, part in rows.groupby("backbone", sort=False)}
    first, *others = asked
    for other in others:
        if asked[other] != asked[first]:
            raise ValueError(
                f"{first} and {other} were asked {len(asked[first] ^ asked[other])} different questions, so their "
                "orders of methods cannot be compared"
            )
    return rows


def accuracies(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return the accuracy of each method and budget on each backbone over all questions, with intervals.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        backbone, then the columns of `mean_scores`.
    """
    parts = [
        mean_scores(part, _BY, resamples=resamples).assign(backbone=name)
        for name, part in rows.groupby("backbone", sort=False)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[["backbone", *table.columns.drop("backbone")]]


def ranked_methods(rows: pd.DataFrame, budget: float) -> list[str]:
    """Return the methods that every backbone was asked at a budget as the mean over its layers, in their order."""
    here = rows[(rows["budget"] == budget) & ~rows["method"].isin(list(ENDS))]
    counts = here.groupby("method", sort=False)["backbone"].nunique()
    return [str(name) for name in counts.index[counts == rows["backbone"].nunique()] if not is_final(str(name))]


def _resampled(rows: pd.DataFrame, budget: float, resamples: int) -> tuple[list[str], dict[str, Array]]:
    """Return the ranked methods, and of each backbone their accuracies (1 + resamples, methods), as they are first.

    All backbones and methods share the resamples of the questions.
    """
    methods = ranked_methods(rows, budget)
    if not methods:
        return methods, {}
    chosen = rows[(rows["budget"] == budget) & rows["method"].isin(methods)]
    scores = paired_scores(chosen, ["backbone", "method"])
    drawn = pd.DataFrame(
        np.vstack([scores.to_numpy().mean(0), resampled_means(scores, resamples)]).round(9), columns=scores.columns
    )
    return methods, {name: drawn[name][methods].to_numpy() for name in map(str, rows["backbone"].unique())}


def ranks(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return the rank of each method on each backbone, by accuracy, with the interval of the rank.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    resamples : int
        Bootstrap resamples of the questions; each has its own order.

    Returns
    -------
    DataFrame
        budget, backbone, method, accuracy (0 to 1), rank (1 is the highest accuracy, equal ones share the mean of their
        places), low, high, methods (how many were ranked).
    """
    lines = []
    for budget in budgets_of(rows):
        methods, drawn = _resampled(rows, budget, resamples)
        for backbone, values in drawn.items():
            places = rankdata(-values, axis=1)
            low, high = interval_bounds(places[1:], 0.95)
            found = zip(methods, values[0], places[0], low, high, strict=True)
            lines += [(budget, backbone, *one, len(methods)) for one in found]
    names = ["budget", "backbone", "method", "accuracy", "rank", "low", "high", "methods"]
    return pd.DataFrame(lines, columns=names)


def agreement(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return how far two backbones agree on the order of methods, at each budget.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    resamples : int
        Bootstrap resamples of the questions.

    Returns
    -------
    DataFrame
        budget, first, second (the backbones), methods (how many), tau, low, high: Kendall's tau-b, which is 1 for one
        order, -1 for opposite ones, about 0 for unrelated ones; NaN where all accuracies of a backbone are equal.
    """
    lines = []
    for budget in budgets_of(rows):
        methods, drawn = _resampled(rows, budget, resamples)
        for first, second in combinations(drawn, 2):
            pairs = zip(drawn[first], drawn[second], strict=True)
            taus = np.array([kendalltau(a, b).statistic if len(methods) > 1 else np.nan for a, b in pairs])
            told = taus[1:][np.isfinite(taus[1:])]
            low, high = interval_bounds(told, 0.95) if len(told) else (np.nan, np.nan)
            lines.append((budget, first, second, len(methods), taus[0], low, high))
    return pd.DataFrame(lines, columns=["budget", "first", "second", "methods", "tau", "low", "high"])


def budgets_of(rows: pd.DataFrame) -> list[float]:
    """Return the budgets of the methods, falling."""
    return sorted(rows.loc[~rows["method"].isin(list(ENDS)), "budget"].unique(), reverse=True)


def notes(rows: pd.DataFrame) -> list[str]:
    """Return what has to be said below a table or figure of these rows."""
    return ranking_notes(rows["method"].unique(), apart=False)


def accuracy_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw accuracy against budget, a panel a backbone, between all tokens and the answers without the right image.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    resamples : int
        Bootstrap resamples of the bands.
    """
    table, backbones = accuracies(rows, resamples), list(rows["backbone"].unique())
    methods = sorted((one for one in rows["method"].unique() if one not in ENDS), key=is_final)
    drawn = theme.styles(methods)
    figure, axes = plt.subplots(
        1, len(backbones), figsize=theme.size("page", 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    figure.set_label("Accuracy against the visual tokens kept, a panel a backbone")
    for axis, backbone in zip(axes[0], backbones, strict=True):
        part = table[table["backbone"] == backbone]
        for method, style in drawn.items():
            theme.plot_band(axis, part[part["method"] == method], "budget", "mean", label(method), **style)
        for end, line in ((FULL, "--"), (OTHER, "-."), (BLIND, ":")):
            for level in part.loc[part["method"] == end, "mean"]:
                axis.axhline(level, color=palette.LINE, linestyle=line, label=label(end))
        theme.budget_axis(axis, budgets_of(rows), room=1.45)
        axis.set_title(backbone)
    theme.percent_axis(axes[0, 0].yaxis)
    axes[0, 0].set_ylabel("accuracy")
    named = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4)
    return theme.add_note(figure, theme.questions_asked(rows), "bands are 95 % bootstrap intervals", *notes(rows))


def ranks_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the rank of each method on each backbone, a panel a budget, lines between the ranks of one method.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    table, backbones = ranks(rows, resamples), list(map(str, rows["backbone"].unique()))
    budgets = [budget for budget in budgets_of(rows) if budget in set(table["budget"])]
    methods = list(table["method"].unique())
    figure, axes = plt.subplots(
        1, max(len(budgets), 1), figsize=theme.size("page", 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    figure.set_label("Rank of each method by accuracy, a panel a budget, on each backbone")
    aside = dict(zip(methods, np.linspace(-0.16, 0.16, len(methods)), strict=True))
    for axis, budget in zip(axes[0], budgets, strict=False):
        for method, style in theme.styles(methods).items():
            part = table[(table["budget"] == budget) & (table["method"] == method)].set_index("backbone")
            if part.empty:
                continue
            part = part.loc[backbones]
            places = np.arange(len(backbones)) + aside[method]
            axis.vlines(places, part["low"], part["high"], color=style["color"], alpha=0.35)
            axis.plot(places, part["rank"], label=label(method), **style)
        axis.set_xticks(range(len(backbones)), backbones)
        axis.set_xlim(-0.4, len(backbones) - 0.6)
        axis.set_title(f"{budget:g} tokens")
    axes[0, 0].set_yticks(range(1, len(methods) + 1))
    axes[0, 0].set_ylim(len(methods) + 0.4, 0.6)
    axes[0, 0].set_ylabel("rank by accuracy")
    named = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4)
    note = "thin lines are 95 % bootstrap intervals; ranked where every backbone reads the budget in the mean"
    return theme.add_note(figure, theme.questions_asked(rows), note)


def budgets_table(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return accuracies in percent with intervals, a row a backbone and method, a column a budget."""
    table = accuracies(rows, resamples)
    table["text"] = [_percent(*values) for values in table[["mean", "low", "high"]].to_numpy()]
    methods = table[~table["method"].isin(list(ENDS))]
    lines = []
    for backbone in rows["backbone"].unique():
        part = methods[methods["backbone"] == backbone]
        wide = part.pivot(index="method", columns="budget", values="text")
        levels = part.pivot(index="method", columns="budget", values="mean")
        place = levels.sub(levels[[not is_final(str(one)) for one in levels.index]].mean()).mean(axis=1)
        order = sorted(wide.index, key=lambda method: (is_final(method), -place[method]))
        for method in order:
            cells = {f"{budget:g} tokens": wide.loc[method].get(budget) for budget in budgets_of(rows)}
            lines.append({"backbone": backbone, "method": marked_label(str(method)), **cells})
    return pd.DataFrame(lines).fillna("-")


def types_table(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return accuracies in percent with intervals by question type: the ends of the scale, and methods at some budgets.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    budgets : sequence of float
        Of the methods.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    listed = rows[rows["budget"].isin(budgets) | rows["method"].isin(list(ENDS))]
    lines = []
    for backbone, part in listed.groupby("backbone", sort=False):
        whole = mean_scores(part, _BY, resamples=resamples).assign(question_type="all")
        table = pd.concat([whole, mean_scores(part, [*_BY, "question_type"], resamples=resamples)], ignore_index=True)
        table["text"] = [_percent(*values) for values in table[["mean", "low", "high"]].to_numpy()]
        columns = ["all", *part["question_type"].unique()]
        wide = table.pivot(index=_BY, columns="question_type", values="text")[columns]
        listing = whole[["method", "budget", "mean"]].itertuples(index=False, name=None)
        for method, budget, _ in sorted(listing, key=lambda one: _place(*one)):
            tokens = "" if method in ENDS else f"{budget:g}"
            start = {"backbone": backbone, "tokens": tokens, "method": marked_label(method)}
            lines.append(start | wide.loc[(method, budget)].to_dict())
    return pd.DataFrame(lines)


def _place(method: str, budget: float, mean: float) -> tuple[float, ...]:
    """Return where a line of the table stands: the ends first, then budgets that fall, in each the best first."""
    if method in ENDS:
        return (0, float(list(ENDS).index(method)), 0, 0)
    return (1, -budget, float(is_final(method)), -mean)


def about_ranks(rows: pd.DataFrame, own: str = "idselection", resamples: int = 2000) -> str:
    """Say where a method loses, what each backbone sees, and how far the backbones agree on the order of methods.

    Parameters
    ----------
    rows : DataFrame
        As of `read_ranked`.
    own : str
        The method that is spoken of.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    parts = list(rows.groupby("backbone", sort=False))
    lines = [_about_losses(str(name), part, own, resamples) for name, part in parts]
    lines += [_about_sight(str(name), part, resamples) for name, part in parts]
    order = ranks(rows, resamples)
    for found in agreement(rows, resamples).to_dict("records"):
        here, pair = order[order["budget"] == found["budget"]], (found["first"], found["second"])
        best = [_highest(here[here["backbone"] == name]) for name in pair]
        highest = f"{best[0]} on {pair[0]}, {best[1]} on {pair[1]}"
        if best[0] == best[1]:
            highest = f"{best[0]} on both"
        said = "their agreement cannot be told"
        if np.isfinite(found["tau"]):
            said = f"Kendall's tau is {found['tau']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
        lines.append(f"- **{found['budget']:g} tokens**, {found['methods']} methods: highest is {highest}; {said}.")
    return "\n\n".join(["\n".join(lines), *notes(rows)])


def _about_losses(backbone: str, rows: pd.DataFrame, own: str, resamples: int) -> str:
    gaps = versus_each(rows, own, resamples)
    unequal = gaps["other"].map(is_final).astype(bool)
    kinds = {"at equal budgets": gaps[~unequal], "with methods that read more tokens †": gaps[unequal]}
    said = []
    for budget, part in gaps[gaps["outcome"] == "loss"].groupby("budget", sort=False):
        who = [
            f"{marked_label(other)} ({100 * mean:+.1f})"
            for other, mean in zip(part["other"], part["mean"], strict=True)
        ]
        said.append(f"{', '.join(who)} at {budget:g} tokens")
    below = f"below {'; '.join(said)}" if said else "below none"
    counted = [_counts(part, kind) for kind, part in kinds.items() if len(part)]
    return " ".join([f"- **{backbone}**: {label(own)} is {below}.", *counted])


def _counts(gaps: pd.DataFrame, kind: str) -> str:
    """Say how often comparisons of a kind end how."""
    count = gaps["outcome"].value_counts()
    of = "the comparison" if len(gaps) == 1 else f"{len(gaps)} comparisons"
    return (
        f"Of {of} {kind} it is below in {count.get('loss', 0)}, not told apart in "
        f"{count.get('tie', 0)}, above in {count.get('win', 0)}."
    )


def _about_sight(backbone: str, rows: pd.DataFrame, resamples: int) -> str:
    """Say what a backbone answers at the ends of the scale, and in which question types the image counts."""
    means = mean_scores(rows[rows["method"].isin(list(ENDS))], ["method"], resamples=resamples).set_index("method")
    ends = ", ".join(
        f"{_percent(*means.loc[end, ['mean', 'low', 'high']])} with {name}"
        for end, name in ENDS.items()
        if end in means.index
    )
    text = f"- **{backbone}** answers, in percent, {ends}."
    if not {FULL, OTHER} <= set(means.index):
        return text
    scores = paired_scores(rows[rows["method"].isin([FULL, OTHER])], ["method"])
    seen: list[str] = []
    unseen: list[str] = []
    for kind, part in scores.groupby(level="question_type", sort=False):
        gap = paired_difference(part[FULL], part[OTHER], resamples=resamples)
        (seen if gap.low > 0 else unseen).append(f"{kind} ({points(gap)})" if gap.low <= 0 else str(kind))
    text += f" All tokens are above another image in {', '.join(seen) or 'no question type'}"
    return f"{text}; not so in {', '.join(unseen)}." if unseen else f"{text}."


def _highest(order: pd.DataFrame) -> str:
    *others, last = [label(method) for method in order.loc[order["rank"] == order["rank"].min(), "method"]]
    return f"{', '.join(others)} and {last}" if others else last


def _percent(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
