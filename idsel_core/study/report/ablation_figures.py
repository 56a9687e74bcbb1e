"""Figures of the ablations."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from idsel_core.study.report.bootstrap import mean_scores, share_of_full
from idsel_core.study.report.theme import (
    COLUMN,
    PAGE,
    add_note,
    budget_axis,
    gamma_axis,
    label,
    percent_axis,
    plot_band,
    questions_asked,
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
    objects = swept.groupby(["update", "gamma", "budget"], as_index=False)["on_objects"].mean()
    budgets = sorted(swept["budget"].unique(), reverse=True)
    figure, grid = plt.subplots(
        2, len(budgets), figsize=(PAGE, 3.6), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    palette = dict(zip(sorted(swept["update"].unique()), sns.color_palette("colorblind"), strict=False))
    for budget, (above, below) in zip(budgets, grid.T, strict=True):
        for update, color in palette.items():
            chosen = means[(means["budget"] == budget) & (means["update"] == update)]
            plot_by_gamma(above, chosen, update, color=color)
            share = objects[(objects["budget"] == budget) & (objects["update"] == update)]
            fixed = share[share["gamma"] >= 0]
            below.plot(fixed["gamma"], fixed["on_objects"], color=color, marker="o", markersize=4)
            for height in share.loc[share["gamma"] < 0, "on_objects"]:
                below.axhline(height, color=color, linestyle=":", linewidth=1)
        above.axhline(
            limit.at[budget, "mean"], color="0.4", linestyle="--", linewidth=1, label="top-K (gamma to infinity)"
        )
        above.set_title(f"{budget:g} tokens")
        percent_axis(above.yaxis)
        percent_axis(below.yaxis)
        gamma_axis(below, swept["gamma"])
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("kept tokens\non objects")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return add_note(figure, f"{questions_asked(rows)}; {BANDS}")


def plot_by_gamma(axes: Axes, means: pd.DataFrame, name: str, **style: Any) -> None:
    """Draw means with their intervals against fixed gammas, and as a dotted line for gamma "auto"."""
    fixed, auto = means[means["gamma"] >= 0], means[means["gamma"] < 0]
    line = plot_band(axes, fixed, "gamma", "mean", name, marker="o", **style)
    for height in auto["mean"]:
        axes.axhline(height, color=line.get_color(), linestyle=":", linewidth=1, label=f"{name}, gamma auto")


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
    height = 0.6 + 0.09 * len(order) * max(2, len(variants))
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(PAGE, height + 1), sharey=True, squeeze=False, layout="constrained"
    )
    offsets = np.linspace(-0.3, 0.3, len(variants)) if len(variants) > 1 else [0.0]
    for budget, axis in zip(budgets, axes[0], strict=True):
        for variant, offset, color in zip(variants, offsets, sns.color_palette("colorblind"), strict=False):
            features, normalise = variant
            chosen = means[
                (means["budget"] == budget) & (means["features"] == features) & (means["normalise"] == normalise)
            ].set_index("score")
            chosen = chosen.reindex([score for score in order if score in chosen.index])
            place = [list(order).index(score) + offset for score in chosen.index]
            errors = [chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]]
            name = f"{features} features, {_NORMALISE.get(normalise, normalise)}"
            axis.errorbar(chosen["mean"], place, xerr=errors, fmt="o", markersize=4, color=color, label=name)
        axis.set_title(f"{budget:g} tokens")
        axis.set_yticks(range(len(order)), order)
        percent_axis(axis.xaxis)
        axis.set_xlabel("accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
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
    figure, axis = plt.subplots(figsize=(COLUMN * 1.5, 3.4), layout="constrained")
    methods = [method for method in shares["method"].unique() if method not in ("full", "no-image")]
    for method, style in styles(methods).items():
        plot_band(axis, shares[shares["method"] == method], "kept", "share", label(method), **style)
    for end in ("full", "no-image"):
        level = shares.loc[shares["method"] == end, "share"]
        axis.axhline(level.iloc[0], linestyle=":", label=label(end), color=styles([end])[end]["color"])
    percent_axis(axis.yaxis)
    axis.set_ylabel("share of full performance")
    budget_axis(axis, rows.loc[~rows["method"].isin(["full", "no-image"]), "budget"])
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return add_note(figure, f"{questions_asked(rows)}; {BANDS}")


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
    figure, grid = plt.subplots(
        2, -(-(len(question_types) + 1) // 2), figsize=(PAGE, 3.8), sharex=True, layout="constrained"
    )
    for question_type, axis in zip(question_types, grid.flat, strict=False):
        part = means[means["question_type"] == question_type]
        for method, style in styles(methods).items():
            plot_band(axis, part[part["method"] == method], "budget", "mean", label(method), **style)
        full = part.loc[part["method"] == "full", "mean"]
        axis.axhline(full.iloc[0], linestyle=":", color="0.2", label=label("full"))
        axis.axhline(
            rows.loc[rows["question_type"] == question_type, "chance"].mean(),
            color="0.6",
            linestyle="--",
            label="chance",
        )
        axis.set_title(question_type)
        percent_axis(axis.yaxis)
        budget_axis(axis, [4, 16, 64, 288])
    for axis in list(grid.flat)[len(question_types) :]:
        axis.axis("off")
    handles = grid.flat[0].get_legend_handles_labels()
    grid.flat[len(question_types)].legend(*handles, loc="center", fontsize="small")
    return add_note(figure, f"{questions_asked(rows)}; {BANDS}")


def objects_figure(rows: pd.DataFrame) -> Figure:
    """Draw how large a share of the kept tokens lies on objects, against the tokens kept, for each method.

    Parameters
    ----------
    rows : DataFrame
        As for `budget_figure`.
    """
    rows = rows[~rows["method"].isin(["full", "no-image"])]
    figure, axis = plt.subplots(figsize=(COLUMN * 1.3, 2.8), layout="constrained")
    means = rows.groupby(["method", "budget"], as_index=False)["on_objects"].mean()
    for method, style in styles(list(rows["method"].unique())).items():
        chosen = means[means["method"] == method]
        axis.plot(chosen["budget"], chosen["on_objects"], label=label(method), markersize=4, **style)
    percent_axis(axis.yaxis)
    axis.set_ylabel("kept tokens on objects")
    budget_axis(axis, rows["budget"])
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return add_note(figure, questions_asked(rows))


def training_figure(log: pd.DataFrame) -> Figure:
    """Draw the accuracy of the embedded backbone while it was trained.

    Parameters
    ----------
    log : DataFrame
        Lines of the training log: step, stage, and the accuracy on held-out scenes, in all and by question type.
    """
    held_out = log.dropna(subset=["held_out"])
    curves = pd.DataFrame(held_out["held_out"].tolist(), index=held_out["step"])
    figure, axis = plt.subplots(figsize=(COLUMN * 1.3, 2.8), layout="constrained")
    for question_type in curves.drop(columns="all"):
        axis.plot(curves.index, curves[question_type], linewidth=1, label=question_type)
    axis.plot(curves.index, curves["all"], color="black", linewidth=2, label="all")
    percent_axis(axis.yaxis)
    axis.set_xlabel("training step")
    axis.set_ylabel("accuracy on held-out scenes")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return add_note(figure, "questions about 40 held-out scenes")
