"""Figures and tables from the result store: one theme, one colour a method, intervals always."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter
from numpy.typing import ArrayLike
from PIL import Image

from idsel_core.statistics import mean_scores, share_of_full

COLUMN, PAGE = 3.4, 7.0
"""Widths of a text column and of a page, inches."""

LABELS = {
    "idselection": "ID-Selection",
    "topk": "top-K importance",
    "diversity": "diversity only",
    "random": "random",
    "uniform": "uniform grid",
    "downsample": "smaller image",
    "full": "all tokens",
    "no-image": "no image",
}
_LEADING = dict(zip(LABELS, [*sns.color_palette("colorblind", 6), "0.2", "0.6"], strict=True))
_MARKERS = "osD^vPXd<>ph*8H"


def use_theme() -> None:
    """Set the one theme of all figures."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 110, "savefig.dpi": 200, "savefig.bbox": "tight", "legend.frameon": False, "pdf.fonttype": 42}
    )


def label(method: str) -> str:
    """Return what figures call a method."""
    return LABELS.get(method, method)


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each method; those of the leading methods never change."""
    rest = [method for method in methods if method not in _LEADING]
    colours = {**_LEADING, **dict(zip(rest, sns.color_palette("husl", max(len(rest), 1)), strict=False))}
    known = [*_LEADING, *rest]
    return {m: {"color": colours[m], "marker": _MARKERS[known.index(m) % len(_MARKERS)]} for m in methods}


def plot_band(axes: Axes, table: pd.DataFrame, x: str, y: str, name: str, **style: Any) -> None:
    """Draw one line with its interval; `table` has the columns `x`, `y`, low and high."""
    table = table.sort_values(x)
    axes.plot(table[x], table[y], label=name, markersize=4, **style)
    axes.fill_between(table[x], table["low"], table["high"], color=style["color"], alpha=0.18, linewidth=0)


def _budget_axis(axes: Axes, budgets: ArrayLike) -> None:
    ticks = sorted(set(np.asarray(budgets, int).tolist()))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("visual tokens kept")


def _gamma_axis(axes: Axes, gammas: ArrayLike) -> None:
    ticks = sorted(set(np.asarray(gammas, float).tolist()))
    axes.set_xscale("symlog", linthresh=1, base=10)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelsize="small")
    axes.set_xlabel("gamma")


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
            plot_band(above, chosen, "gamma", "mean", update, color=color, marker="o")
            share = objects[(objects["budget"] == budget) & (objects["update"] == update)]
            below.plot(share["gamma"], share["on_objects"], color=color, marker="o", markersize=4)
        above.axhline(
            limit.at[budget, "mean"], color="0.4", linestyle="--", linewidth=1, label="top-K (gamma to infinity)"
        )
        above.set_title(f"{budget:g} tokens")
        above.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        below.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _gamma_axis(below, swept["gamma"])
    grid[0, 0].set_ylabel("accuracy")
    grid[1, 0].set_ylabel("kept tokens\non objects")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


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
            name = f"{features} features, {normalise}"
            axis.errorbar(chosen["mean"], place, xerr=errors, fmt="o", markersize=4, color=color, label=name)
        axis.set_title(f"{budget:g} tokens")
        axis.set_yticks(range(len(order)), order)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_xlabel("accuracy")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def named_importance(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `score`: the importance, and where its instruction attention was read if not at the default."""
    asks = rows["importance"].str.contains("instruction|unified") & (rows["instruction"] != "last@0")
    return rows.assign(score=rows["importance"].where(~asks, rows["importance"] + " (" + rows["instruction"] + ")"))


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
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylabel("share of full performance")
    _budget_axis(axis, rows.loc[~rows["method"].isin(["full", "no-image"]), "budget"])
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def family_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the accuracy in each question family against the tokens kept, for each method.

    Parameters
    ----------
    rows : DataFrame
        As for `budget_figure`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    means = mean_scores(rows, ["family", "method", "budget"], resamples=resamples)
    families = list(dict.fromkeys(rows["family"]))
    methods = [method for method in rows["method"].unique() if method not in ("full", "no-image")]
    figure, grid = plt.subplots(2, -(-(len(families) + 1) // 2), figsize=(PAGE, 3.8), sharex=True, layout="constrained")
    for family, axis in zip(families, grid.flat, strict=False):
        part = means[means["family"] == family]
        for method, style in styles(methods).items():
            plot_band(axis, part[part["method"] == method], "budget", "mean", label(method), **style)
        full = part.loc[part["method"] == "full", "mean"]
        axis.axhline(full.iloc[0], linestyle=":", color="0.2", label=label("full"))
        axis.axhline(rows.loc[rows["family"] == family, "chance"].mean(), color="0.6", linestyle="--", label="chance")
        axis.set_title(family)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _budget_axis(axis, [4, 16, 64, 288])
    for axis in list(grid.flat)[len(families) :]:
        axis.axis("off")
    handles = grid.flat[0].get_legend_handles_labels()
    grid.flat[len(families)].legend(*handles, loc="center", fontsize="small")
    return figure


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
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylabel("kept tokens on objects")
    _budget_axis(axis, rows["budget"])
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def training_figure(log: pd.DataFrame) -> Figure:
    """Draw the accuracy of the embedded backbone while it was trained.

    Parameters
    ----------
    log : DataFrame
        Lines of the training log: step, stage, and the accuracy on held-out scenes, in all and by family.
    """
    held_out = log.dropna(subset=["held_out"])
    curves = pd.DataFrame(held_out["held_out"].tolist(), index=held_out["step"])
    figure, axis = plt.subplots(figsize=(COLUMN * 1.3, 2.8), layout="constrained")
    for family in curves.drop(columns="all"):
        axis.plot(curves.index, curves[family], linewidth=1, label=family)
    axis.plot(curves.index, curves["all"], color="black", linewidth=2, label="all")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("training step")
    axis.set_ylabel("accuracy on held-out scenes")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_heat(axis: Axes, picture: Image.Image, scores: ArrayLike, rows: int, columns: int) -> None:
    """Lay a map of scores (rows x columns values in raster order) over a picture."""
    width, height = picture.size
    axis.imshow(picture.convert("L"), cmap="gray", alpha=0.9)
    field = np.asarray(scores, float).reshape(rows, columns)
    axis.imshow(field, cmap="magma", alpha=0.65, extent=(0, width, height, 0), interpolation="nearest")
    axis.set_axis_off()


def draw_kept(axis: Axes, picture: Image.Image, order: Sequence[int], rows: int, columns: int) -> None:
    """Dim the tokens of a picture that were not kept; the first pick's border is brightest, the last one's darkest."""
    width, height = picture.size
    cell_width, cell_height = width / columns, height / rows
    shade = np.full((rows * columns,), 0.78)
    shade[list(order)] = 0.0
    axis.imshow(picture)
    veil = np.zeros((rows, columns, 4))
    veil[..., 3] = shade.reshape(rows, columns)
    axis.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
    for color, token in zip(sns.color_palette("rocket_r", len(order)), order, strict=True):
        x, y = token % columns * cell_width, token // columns * cell_height
        axis.add_patch(Rectangle((x, y), cell_width, cell_height, fill=False, edgecolor=color, linewidth=0.8))
    axis.set_axis_off()


def method_table(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return accuracy by family and share of full performance with its interval, for the budgets named.

    Parameters
    ----------
    rows : DataFrame
        As for `budget_figure`.
    budgets : sequence of float
        Which budgets to list, beside "full" and "no-image".
    resamples : int
        Bootstrap resamples of the interval.
    """
    listed = rows[rows["budget"].isin(budgets) | rows["method"].isin(["full", "no-image"])]
    wide = listed.pivot_table(index=["method", "budget"], columns="family", values="correct", sort=False)
    wide = wide.mul(100).round(1)
    shares = share_of_full(listed, ["method", "budget"], resamples=resamples).set_index(["method", "budget"])
    percent = shares[["share", "low", "high"]].mul(100).round(1).astype(str)
    said = percent["share"] + " [" + percent["low"] + ", " + percent["high"] + "]"
    wide["share of full"] = said.loc[wide.index]
    wide = wide.reset_index().sort_values("budget", ascending=False, kind="stable")
    wide["budget"] = wide["budget"].astype(int)
    return wide.assign(method=wide["method"].map(label))


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy in percent of each part, method and budget, in all and by family, and the level of chance.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of any parts, methods and budgets.
    """
    by = ["part", "method", "budget"]
    chance = rows.drop_duplicates(["part", "question_id"])
    chance = chance.assign(method="chance", budget=0.0, correct=chance["chance"])
    rows = pd.concat([rows, chance], ignore_index=True)
    wide = rows.pivot_table(index=by, columns="family", values="correct", sort=False)
    wide.insert(0, "all", rows.groupby(by, sort=False)["correct"].mean())
    wide = wide.mul(100).round(1).sort_index(level="part", sort_remaining=False, ascending=False).reset_index()
    return wide.assign(method=wide["method"].map(label), budget=wide["budget"].astype(int))


def save(figure: Figure, folder: Path | str, name: str, origin: Mapping[str, Any]) -> None:
    """Write a figure as PNG and PDF, without the time of writing, so that equal figures are equal files.

    Parameters
    ----------
    figure : Figure
        The figure.
    folder, name
        Where it goes; the folder is made if need be.
    origin : Mapping
        What it was drawn from, see `Results.origin`; kept in the metadata of both files.
    """
    note = json.dumps(origin, sort_keys=True)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None, "Description": note})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Subject": note})


def save_table(table: pd.DataFrame, folder: Path | str, name: str) -> str:
    """Write a table as Markdown and return its text."""
    return save_text(table.to_markdown(index=False), folder, name)


def save_text(text: str, folder: Path | str, name: str) -> str:
    """Write Markdown beside the tables and return it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text + "\n")
    return text
