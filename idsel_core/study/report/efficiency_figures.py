"""Figures of the efficiency study, from stored times and from configurations."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from idsel_core.study.dataset import FULL
from idsel_core.study.report import palette
from idsel_core.study.report.comparison import marked_label, ranking_notes
from idsel_core.study.report.efficiency import PHASES, Fit, totals
from idsel_core.study.report.theme import (
    add_note,
    budget_axis,
    label,
    name_lines,
    name_points,
    number_ticks,
    percent_axis,
    points,
    size,
    styles,
)
from idsel_core.study.store.times import SELECTION

NAMES = {
    "encode": "encode (tower, projector)",
    "select": "select",
    "prefill": "prefill",
    "decode": "decode",
}
"""What figures call the phases."""


def phases_figure(times: pd.DataFrame, method: str = "idselection") -> Figure:
    """Draw the time of an answer by phase, for all tokens and for each budget of a method.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose budgets are drawn.
    """
    table = totals(times)
    table = table[table["method"].isin([FULL, method])].sort_values("kept_tokens", ascending=False)
    names = [("all " if name == FULL else "") + str(kept) for name, kept in table[["method", "kept_tokens"]].to_numpy()]
    figure, panels = plt.subplots(1, 2, figsize=size("page", 2.4), layout="constrained", sharey=True)
    figure.set_label("Time of an answer by phase, for all visual tokens and for fewer")
    looks = palette.of_series(PHASES)
    for axis, phases in zip(panels, (PHASES, PHASES[1:]), strict=True):
        left = np.zeros(len(table))
        for phase in phases:
            axis.barh(names, table[phase], left=left, color=looks[phase]["color"], label=NAMES[phase], height=0.7)
            left += table[phase].to_numpy()
        for place, width in enumerate(left):
            axis.annotate(
                f"{width:.0f}", (width, place), (3, 0), textcoords="offset points", va="center", fontsize=points(0.85)
            )
        axis.set_xlim(0, 1.15 * left.max())
        axis.set_xlabel("milliseconds of an answer" if phases is PHASES else "milliseconds after the tower pass")
        axis.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("visual tokens kept")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def scaling_figure(times: pd.DataFrame, method: str = "idselection") -> Figure:
    """Draw FLOPs and time against the tokens kept, both as shares of those with all tokens.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose budgets are drawn.
    """
    table = totals(times)
    table = table[table["method"].isin([FULL, method])].sort_values("kept_tokens")
    table["language_model"] = table["prefill"] + table["decode"]
    looks = palette.of_series(("FLOPs", "time"))
    figure, panels = plt.subplots(1, 2, figsize=size("page", 2.6), layout="constrained", sharey=True)
    figure.set_label("FLOPs and time against the visual tokens kept, as shares of those with all tokens")
    parts = {"language model": ("flops_language_model", "language_model"), "whole answer": ("flops", "total")}
    for axis, (title, columns) in zip(panels, parts.items(), strict=True):
        full: Any = table[table["method"] == FULL].iloc[0]
        for column, (name, look) in zip(columns, looks.items(), strict=True):
            axis.plot(table["kept_tokens"], table[column] / full[column], label=name, **look)
        tokens = table["kept_tokens"] / full["kept_tokens"]
        axis.plot(table["kept_tokens"], tokens, color=palette.FAINT, linestyle=":", label="tokens")
        axis.set_title(title)
        percent_axis(axis.yaxis)
        axis.set_ylim(0, 1.05)
        axis.set_xlim(left=0)
        axis.set_xlabel("visual tokens kept")
    panels[0].set_ylabel("share of all tokens' cost")
    panels[0].legend()
    return figure


def pareto_figure(table: pd.DataFrame) -> Figure:
    """Draw the share of full performance against measured time, and the front of what nothing beats in both.

    Parameters
    ----------
    table : DataFrame
        What `accuracy_against_time` returned.
    """
    figure, panels = plt.subplots(1, 2, figsize=size("page", 3.6), layout="constrained", sharey=True)
    figure.set_label("Share of full performance against measured time, and the front of what nothing beats in both")
    own, unit = table["method"] == "idselection", plt.rcParams["lines.markersize"] ** 2
    style = styles(["idselection"])["idselection"]
    for axis, time in zip(panels, ("total", "after_encode"), strict=True):
        front = table["front" if time == "total" else "front_after_encode"]
        crowd = table[~own & ~front]
        axis.scatter(crowd[time], crowd["share"], color=palette.CROWD, s=0.5 * unit, linewidths=0, label="others")
        axis.scatter(table[time][own], table["share"][own], s=1.6 * unit, label=label("idselection"), zorder=3, **style)
        best = table[front].sort_values(time)
        axis.step(best[time], best["share"], where="post", color=palette.LINE, zorder=2, label="_front")
        axis.scatter(
            best[time], best["share"], color=palette.INK, s=unit, label="the front: nothing is faster and better"
        )
        axis.set_xscale("log")
        left = best[time].min()
        axis.set_xlim(left=left * max(axis.get_xlim()[1] / left, 1.5) ** -0.75)
        number_ticks(axis.xaxis)
        percent_axis(axis.yaxis)
    panels[0].set_xlabel("milliseconds of an answer")
    panels[1].set_xlabel("milliseconds after the tower pass")
    panels[0].set_ylabel("share of full performance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    named = table.loc[table["front"] | table["front_after_encode"], "method"]
    add_note(
        figure,
        f"{table['questions'].max():,} questions; times of one question; at the front: method and tokens kept",
        *ranking_notes(named, apart=False),
    )
    for axis, time in zip(panels, ("total", "after_encode"), strict=True):
        best = table[table["front" if time == "total" else "front_after_encode"]].sort_values(time)
        ends = [
            (row[time], row["share"], f"{marked_label(row['method'])} {row['budget']:g}", palette.INK)
            for row in best.to_dict("records")
        ]
        name_points(axis, ends, "left", 0.4)
    return figure


def selection_figure(times: pd.DataFrame) -> Figure:
    """Draw the time of every method's selection against the number of tokens that it chooses from.

    Parameters
    ----------
    times : DataFrame
        Rows of the store of times, those of `SELECTION` among them. Where several budgets were chosen from as many
        tokens, the one nearest to a ninth of them is drawn.
    """
    table = times[times["phase"] == SELECTION]
    far = (9 * table["kept_tokens"] / table["tokens_before"] - 1).abs()
    table = table[far == far.groupby(table["tokens_before"]).transform("min")]
    order = table[table["tokens_before"] == table["tokens_before"].max()].sort_values("median_ms", ascending=False)
    figure, axis = plt.subplots(figsize=size("page", 4.2), layout="constrained")
    figure.set_label("Time of every method's selection alone against the number of tokens that it chooses from")
    wide = plt.rcParams["lines.linewidth"]
    drawn = styles(list(dict.fromkeys(table["method"])))
    methods = list(dict.fromkeys([*order["method"], *table["method"]]))
    for method in methods:
        chosen = table[table["method"] == method].sort_values("tokens_before")
        own = method == "idselection"
        axis.plot(
            chosen["tokens_before"],
            chosen["median_ms"],
            label=label(method),
            linewidth=(2 if own else 0.7) * wide,
            zorder=3 if own else 2,
            **drawn[method],
        )
    axis.set_yscale("log")
    budget_axis(axis, table["tokens_before"])
    kept = table.drop_duplicates("tokens_before").sort_values("tokens_before")
    said = ", ".join(f"{row['kept_tokens']} of {row['tokens_before']}" for row in kept.to_dict("records"))
    axis.set_xlabel(f"visual tokens to choose from (kept: {said})")
    axis.set_ylabel("milliseconds of the selection alone")
    name_lines(axis)
    return figure


def models_figure(costs: pd.DataFrame) -> Figure:
    """Draw the FLOPs of full-size models against the tokens kept: of the language model, and of all of a prefill.

    Parameters
    ----------
    costs : DataFrame
        What `model_costs` returned.
    """
    figure, panels = plt.subplots(1, 3, figsize=size("page", 2.7), layout="constrained", sharey=True)
    figure.set_label("FLOPs of a prefill of models of full size against the share of visual tokens kept")
    looks = palette.of_series(costs["model"].unique())
    titles = {"paper": "literature's formula", "language_model": "language model", "total": "whole prompt"}
    for axis, (column, title) in zip(panels, titles.items(), strict=True):
        for name, look in looks.items():
            chosen = costs[costs["model"] == name]
            axis.plot(chosen["share"], chosen[column] / chosen[column].max(), label=name, **look)
        least = costs["share"].min()
        axis.plot([least, 1], [least, 1], color=palette.FAINT, linestyle=":", label="tokens", zorder=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(title)
        for line in (axis.xaxis, axis.yaxis):
            line.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1]))
            line.set_major_formatter(PercentFormatter(1, decimals=0))
            line.set_minor_locator(NullLocator())
        axis.set_xlabel("visual tokens kept")
    panels[0].set_ylabel("FLOPs of a prefill")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def fit_figure(table: pd.DataFrame, fit: Fit) -> Figure:
    """Draw the measured time of prefills against their FLOPs, with the straight line that fits.

    Parameters
    ----------
    table : DataFrame
        What `prefills` returned.
    fit : Fit
        What `fit_of` returned.
    """
    figure, axis = plt.subplots(figsize=size("column", 2.5), layout="constrained")
    figure.set_label("Measured time of prefills against their FLOPs, with the straight line that fits")
    look = palette.of_series(["measured"])["measured"]
    gflops = table["flops"] / 1e9
    errors = [table["median_ms"] - table["low_ms"], table["high_ms"] - table["median_ms"]]
    axis.errorbar(gflops, table["median_ms"], yerr=errors, linestyle="", label="measured, quartiles", **look)
    for row in table.to_dict("records"):
        place = (row["flops"] / 1e9, row["median_ms"])
        axis.annotate(f"{row['kept_tokens']}", place, (5, -9), textcoords="offset points", fontsize=points(0.85))
    line = np.linspace(0, gflops.max(), 2)
    axis.plot(line, fit.start + 1e3 * line / fit.speed, color=palette.LINE, label="straight line")
    axis.set_xlim(0, 1.1 * gflops.max())
    axis.set_ylim(bottom=0)
    axis.set_xlabel("analytic GFLOPs of the prefill (at points: visual tokens)")
    axis.set_ylabel("milliseconds")
    axis.legend(loc="upper left")
    return figure
