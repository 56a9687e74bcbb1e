"""Figures of the ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsel_core.study.report import palette
from idsel_core.study.report.bootstrap import mean_scores, share_of_full
from idsel_core.study.report.theme import (
    ENDS,
    add_note,
    budget_axis,
    gamma_axis,
    label,
    name_lines,
    percent_axis,
    plot_band,
    points,
    questions_asked,
    row_points,
    size,
    size_for_rows,
    styles,
)
from idsel_core.visual_tokens import INSTRUCTION

BANDS = "bands: 95 % bootstrap intervals over questions"
BARS = "bars: 95 % bootstrap intervals over questions"


def gamma_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw accuracy, and the share of kept tokens that lie on objects, against gamma, for each update and budget.

    Parameters
    ----------
    rows : DataFrame
        Rows of the gamma ablation; those of top-K are its limit for gamma to infinity.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    swept = rows[rows["method"] == "idselection"]
    limit = mean_scores(rows[rows["method"] == "topk"], ["budget"], resamples=resamples).set_index("budget")
    means = mean_scores(swept, ["update", "gamma", "budget"], resamples=resamples)
    objects = on_objects(swept, ["update", "gamma", "budget"], resamples)
    budgets = sorted(swept["budget"].unique(), reverse=True)
    figure, grid = plt.subplots(
        2, len(budgets), figsize=size("page", 3.6), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    figure.set_label("Accuracy, and the share of kept tokens on objects, against gamma for each update and budget")
    looks = palette.of_series(sorted(swept["update"].unique()))
    for budget, (above, below) in zip(budgets, grid.T, strict=True):
        for update, look in looks.items():
            for axis, table in ((above, means), (below, objects)):
                chosen = table[(table["budget"] == budget) & (table["update"] == update)]
                plot_by_gamma(axis, chosen, update, **look)
        above.axhline(limit.at[budget, "mean"], color=palette.LINE, linestyle="--", label="top-K (gamma to infinity)")
        above.set_title(f"{budget:g} tokens")
        percent_axis(above.yaxis)
        percent_axis(below.yaxis)
        gamma_axis(below, swept["gamma"])
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("kept tokens\non objects")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return add_note(figure, f"{questions_asked(rows)}; {BANDS}")


def on_objects(rows: pd.DataFrame, by: Sequence[str], resamples: int = 2000) -> pd.DataFrame:
    """Return the mean share of kept tokens that lie on objects, with its interval, as `mean_scores` returns means."""
    return mean_scores(rows.assign(correct=rows["on_objects"]), by, resamples=resamples)


def plot_by_gamma(axes: Axes, means: pd.DataFrame, name: str, **style: Any) -> None:
    """Draw means with their intervals against fixed gammas, and as a dotted line for gamma "auto"."""
    fixed, auto = means[means["gamma"] >= 0], means[means["gamma"] < 0]
    line = plot_band(axes, fixed, "gamma", "mean", name, **{"marker": "o", **style})
    for height in auto["mean"]:
        axes.axhline(height, color=line.get_color(), linestyle=":", label=f"{name}, gamma auto")


def importance_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the accuracy of each importance score, for each budget, feature space and normalisation.

    Parameters
    ----------
    rows : DataFrame
        Rows of the importance ablation.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    swept = named_importance(rows[rows["method"] == "idselection"])
    knobs = ["score", "normalise", "features", "budget"]
    means = mean_scores(swept, knobs, resamples=resamples)
    order = means.groupby("score")["mean"].mean().sort_values().index
    budgets = sorted(swept["budget"].unique(), reverse=True)
    variants = list(means[["features", "normalise"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = plt.subplots(
        1,
        len(budgets),
        figsize=size_for_rows(len(order), 0.08 * max(2, len(variants)), 1.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    figure.set_label("Accuracy of each importance score, for each budget, feature space and normalisation")
    named = [f"{features} features, {_NORMALISE.get(normalise, normalise)}" for features, normalise in variants]
    looks = palette.of_series(named)
    offsets = np.linspace(-0.3, 0.3, len(variants)) if len(variants) > 1 else [0.0]
    for budget, axis in zip(budgets, axes[0], strict=True):
        for (features, normalise), offset, (name, look) in zip(variants, offsets, looks.items(), strict=True):
            chosen = means[
                (means["budget"] == budget) & (means["features"] == features) & (means["normalise"] == normalise)
            ].set_index("score")
            chosen = chosen.reindex([score for score in order if score in chosen.index])
            place = [list(order).index(score) + offset for score in chosen.index]
            errors = [chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]]
            axis.errorbar(chosen["mean"], place, xerr=errors, linestyle="", label=name, **look)
        axis.set_title(f"{budget:g} tokens")
        axis.set_yticks(range(len(order)), order, fontsize=row_points(figure, len(order), 1.4))
        axis.grid(axis="y", visible=False)
        for between in range(1, len(order)):
            axis.axhline(between - 0.5, color=palette.GRID, linewidth=0.6, label="_between")
        percent_axis(axis.xaxis)
        axis.set_xlabel("accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=points(0.8))
    return add_note(
        figure, f"{questions_asked(rows)}; {BARS}", "scores sorted by their mean accuracy over the variants"
    )


_NORMALISE = {"minmax": "min-max", "raw": "raw scores"}


def named_importance(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `score`: the importance, and where its instruction attention was read if not at the default."""
    layer, which = INSTRUCTION
    reads = rows["importance"].str.contains("instruction|unified") & (rows["instruction"] != f"{which}@{layer}")
    where = rows["instruction"].fillna("").str.replace("words@", "words of the question, layer ")
    where = where.str.replace("last@", "last token, layer ")
    return rows.assign(score=rows["importance"].where(~reads, rows["importance"] + " (" + where + ")"))


def budget_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance against the tokens kept, for each method.

    Parameters
    ----------
    rows : DataFrame
        Rows of the budget ablation with compact positions, those of "full" and "no-image" among them.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    shares = share_of_full(rows, ["method", "budget"], resamples=resamples)
    kept = rows.groupby(["method", "budget"])["tokens_kept"].mean().rename("kept").reset_index()
    shares = shares.merge(kept, on=["method", "budget"])
    figure, axis = plt.subplots(figsize=size("column", 2.9), layout="constrained")
    figure.set_label("Share of full performance against the visual tokens kept, for ID-Selection and its controls")
    methods = [method for method in shares["method"].unique() if method not in ("full", "no-image")]
    for method, style in styles(methods).items():
        plot_band(axis, shares[shares["method"] == method], "kept", "share", label(method), **style)
    for end in ("full", "no-image"):
        level = shares.loc[shares["method"] == end, "share"]
        axis.axhline(level.iloc[0], linestyle=":", label=label(end), color=styles([end])[end]["color"])
    percent_axis(axis.yaxis)
    axis.set_ylabel("share of full performance")
    budget_axis(axis, rows.loc[~rows["method"].isin(["full", "no-image"]), "budget"])
    name_lines(axis)
    return add_note(figure, questions_asked(rows), BANDS)


def question_types_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the accuracy in each question type against the tokens kept, for each method.

    Parameters
    ----------
    rows : DataFrame
        As for `budget_figure`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    means = mean_scores(rows, ["question_type", "method", "budget"], resamples=resamples)
    question_types = list(dict.fromkeys(rows["question_type"]))
    methods = [method for method in rows["method"].unique() if method not in ("full", "no-image")]
    columns = -(-(len(question_types) + 1) // 2)
    figure, grid = plt.subplots(2, columns, figsize=size("page", 3.5), layout="constrained", squeeze=False)
    figure.set_label("Accuracy in each question type against the visual tokens kept, for ID-Selection and its controls")
    for question_type, axis in zip(question_types, grid.flat, strict=False):
        part = means[means["question_type"] == question_type]
        for method, style in styles(methods).items():
            plot_band(axis, part[part["method"] == method], "budget", "mean", label(method), **style)
        full = part.loc[part["method"] == "full", "mean"]
        axis.axhline(full.iloc[0], linestyle=":", color=palette.INK, label=label("full"))
        chance = rows.loc[rows["question_type"] == question_type, "chance"].mean()
        axis.axhline(chance, color=palette.FAINT, linestyle="--", label="chance")
        axis.set_title(question_type)
        percent_axis(axis.yaxis)
        budget_axis(axis, part.loc[part["method"].isin(methods), "budget"], "", room=3.0)
    for axis in list(grid.flat)[len(question_types) :]:
        axis.axis("off")
    for axis in grid[:, 0]:
        axis.set_ylabel("accuracy")
    for axis in grid[1]:
        axis.set_xlabel("visual tokens kept")
    grid.flat[len(question_types)].legend(*grid.flat[0].get_legend_handles_labels(), loc="center")
    return add_note(figure, f"{questions_asked(rows)}; {BANDS}")


def objects_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw how large a share of the kept tokens lies on objects, against the tokens kept, for each method.

    Parameters
    ----------
    rows : DataFrame
        As for `budget_figure`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    rows = rows[~rows["method"].isin(["full", "no-image"])]
    figure, axis = plt.subplots(figsize=size("column", 2.6), layout="constrained")
    figure.set_label("Share of the kept tokens that lie on objects, against the visual tokens kept")
    means = on_objects(rows, ["method", "budget"], resamples)
    for method, style in styles(list(rows["method"].unique())).items():
        plot_band(axis, means[means["method"] == method], "budget", "mean", label(method), **style)
    percent_axis(axis.yaxis)
    axis.set_ylabel("kept tokens on objects")
    budget_axis(axis, rows["budget"])
    name_lines(axis)
    return add_note(figure, questions_asked(rows), BANDS)


def training_figure(log: pd.DataFrame, name: str = "the embedded backbone") -> Figure:
    """Draw the accuracy of a backbone while it was trained.

    Parameters
    ----------
    log : DataFrame
        Lines of the training log: step, and the accuracy on held-out scenes, in all, by question type and, where the
        log has it, with another image ("blind").
    name : str
        What was trained, as the figure's description names it.
    """
    held_out = log.dropna(subset=["held_out"])
    curves = pd.DataFrame(held_out["held_out"].tolist(), index=held_out["step"])
    figure, axis = plt.subplots(figsize=size("column", 2.6), layout="constrained")
    figure.set_label(f"Accuracy of {name} on held-out scenes while it was trained")
    for question_type, look in palette.of_series(curves.drop(columns=["all", "blind"], errors="ignore")).items():
        axis.plot(curves.index, curves[question_type], label=question_type, color=look["color"])
    if "blind" in curves:
        axis.plot(curves.index, curves["blind"], color=palette.FAINT, linestyle="--", label=ENDS["other-image"])
    axis.plot(
        curves.index, curves["all"], color=palette.INK, linewidth=2 * plt.rcParams["lines.linewidth"], label="all"
    )
    percent_axis(axis.yaxis)
    axis.set_xlabel("training step")
    axis.set_ylabel("accuracy on held-out scenes")
    name_lines(axis)
    return add_note(figure, "questions about 40 held-out scenes")
