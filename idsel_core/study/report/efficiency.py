"""What fewer tokens save: figures, tables and sentences from stored times and from configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter

from idsel_core.methods import get_method
from idsel_core.study.cost import flops_analytic, flops_paper, full_budget, read_config
from idsel_core.study.dataset import FULL
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.comparison import ENDS, by_title
from idsel_core.study.report.theme import COLUMN, PAGE, label, styles
from idsel_core.study.store.times import SELECTION
from idsel_core.study.timing.records import END_TO_END, IDEAL, Timing, circumstances

PHASES = ("encode", "select", "prefill", "decode")
NAMES = {
    "encode": "encode (tower, projector)",
    "select": "select",
    "prefill": "prefill",
    "decode": "decode",
}


def totals(times: pd.DataFrame) -> pd.DataFrame:
    """Return milliseconds and FLOPs of each phase, of an answer, and of all but the tower pass, a row a method.

    Parameters
    ----------
    times : DataFrame
        Rows of the store of times, of one model and one batch.

    Returns
    -------
    DataFrame
        Columns method (with "(final)", see `by_title`), budget, kept_tokens, average_tokens, cache_bytes, encode,
        select, prefill, decode (of all new tokens), total and after_encode in milliseconds, and flops (NaN where a
        phase's are not known) and flops_language_model.
    """
    times = by_title(times[times["phase"].isin(PHASES)])
    new = np.where(times["phase"] == "decode", times["new_tokens"], 1)
    times = times.assign(
        ms=times["median_ms"] * new,
        flops=times["flops"] * new,
        budget=times["budget"].fillna(times["tokens_before"]),
    )
    inside = times["phase"].isin(["prefill", "decode"])
    times["inside"] = times["flops"].where(inside)
    keys = ["method", "budget"]
    groups = times.groupby(keys)
    wide = times.pivot(index=keys, columns="phase", values="ms").reindex(columns=list(PHASES)).fillna(0.0)
    wide["total"] = wide.sum(axis=1)
    wide["after_encode"] = wide["total"] - wide["encode"]
    wide["flops"] = groups["flops"].sum(min_count=1).where(groups["flops"].count() == groups.size())
    wide["flops_language_model"] = groups["inside"].sum(min_count=1)
    return groups[["kept_tokens", "average_tokens", "cache_bytes"]].first().join(wide).reset_index()


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
    figure, panels = plt.subplots(1, 2, figsize=(PAGE, 2.6), layout="constrained", sharey=True)
    colours = dict(zip(PHASES, sns.color_palette("colorblind"), strict=False))
    for axis, phases in zip(panels, (PHASES, PHASES[1:]), strict=True):
        left = np.zeros(len(table))
        for phase in phases:
            axis.barh(names, table[phase], left=left, color=colours[phase], label=NAMES[phase], height=0.7)
            left += table[phase].to_numpy()
        for place, width in enumerate(left):
            axis.annotate(f"{width:.0f}", (width, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
        axis.set_xlim(0, 1.15 * left.max())
        axis.set_xlabel("milliseconds of an answer" if phases is PHASES else "milliseconds behind the tower pass")
        axis.grid(axis="y", visible=False)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("visual tokens kept")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
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
    colours = sns.color_palette("colorblind", 2)
    figure, panels = plt.subplots(1, 2, figsize=(PAGE, 2.9), layout="constrained", sharey=True)
    parts = {"language model": ("flops_language_model", "language_model"), "whole answer": ("flops", "total")}
    for axis, (title, columns) in zip(panels, parts.items(), strict=True):
        full: Any = table[table["method"] == FULL].iloc[0]
        for column, name, colour, marker in zip(columns, ("FLOPs", "time"), colours, "os", strict=True):
            axis.plot(
                table["kept_tokens"],
                table[column] / full[column],
                color=colour,
                marker=marker,
                label=name,
                markersize=4,
            )
        axis.plot(
            table["kept_tokens"], table["kept_tokens"] / full["kept_tokens"], color="0.6", linestyle=":", label="tokens"
        )
        axis.set_title(title)
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_ylim(0, 1.05)
        axis.set_xlim(left=0)
        axis.set_xlabel("visual tokens kept")
    panels[0].set_ylabel("share of all tokens' cost")
    panels[0].legend()
    return figure


def _tokens_axis(axis: Axes, tokens: Sequence[float]) -> None:
    ticks = sorted({int(count) for count in tokens})
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_major_formatter(FixedFormatter([str(tick) for tick in ticks]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("visual tokens kept")


def accuracy_against_time(rows: pd.DataFrame, times: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Join the share of full performance with the measured time of each method and budget.

    Parameters
    ----------
    rows : DataFrame
        Rows as the store of results holds them, of one split, those of "full" among them.
    times : DataFrame
        As for `totals`.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        method, budget, share, low, high, total, after_encode, and front and front_after_encode: whether no other is
        both at least as fast and at least as good.

    Raises
    ------
    ValueError
        If methods are titled already.
    """
    shares = share_of_full(by_title(rows), ["method", "budget"], resamples=resamples)
    shares = shares[~shares["method"].isin(ENDS)]
    if rows["method"].str.endswith(")").any():
        raise ValueError("rows must be as stored: budgets left at last are told by `convention`, not in `method`")
    clock = totals(times)[["method", "budget", "total", "after_encode"]]
    both = shares.merge(clock, on=["method", "budget"])
    return both.assign(front=_front(both, "total"), front_after_encode=_front(both, "after_encode"))


def _front(table: pd.DataFrame, time: str) -> pd.Series:
    order = table.sort_values([time, "share"], ascending=[True, False])
    best = order["share"].cummax().shift(fill_value=-1.0)
    return (order["share"] > best).reindex(table.index)


def pareto_figure(table: pd.DataFrame) -> Figure:
    """Draw the share of full performance against measured time, and the front of what nothing beats in both.

    Parameters
    ----------
    table : DataFrame
        What `accuracy_against_time` returned.
    """
    figure, panels = plt.subplots(1, 2, figsize=(PAGE, 4.4), layout="constrained", sharey=True, width_ratios=[1, 1.6])
    drawn = styles(list(dict.fromkeys(table["method"])))
    for axis, time in zip(panels, ("total", "after_encode"), strict=True):
        for method, style in drawn.items():
            chosen = table[table["method"] == method]
            own = method == "idselection"
            axis.scatter(
                chosen[time],
                chosen["share"],
                label=label(method),
                s=34 if own else 16,
                zorder=3 if own else 2,
                alpha=0.9,
                linewidths=0,
                **style,
            )
        front = table[table["front" if time == "total" else "front_after_encode"]].sort_values(time)
        axis.step(front[time], front["share"], where="post", color="0.3", linewidth=1, label="front")
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_xlabel("milliseconds of an answer")
    panels[1].set_xlabel("milliseconds behind the tower pass")
    panels[0].set_ylabel("share of full performance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="x-small")
    return figure


def selection_figure(times: pd.DataFrame) -> Figure:
    """Draw the time of every method's selection against the number of tokens that it chooses from.

    Parameters
    ----------
    times : DataFrame
        Rows of the store of times, those of `SELECTION` among them.
    """
    table = times[times["phase"] == SELECTION]
    order = table[table["tokens_before"] == table["tokens_before"].max()].sort_values("median_ms", ascending=False)
    figure, axis = plt.subplots(figsize=(PAGE, 4.2), layout="constrained")
    drawn = styles(list(dict.fromkeys(table["method"])))
    methods = list(dict.fromkeys([*order["method"], *table["method"]]))
    for method in methods:
        chosen = table[table["method"] == method].sort_values("tokens_before")
        own = method == "idselection"
        axis.plot(
            chosen["tokens_before"],
            chosen["median_ms"],
            label=label(method),
            linewidth=2.5 if own else 0.9,
            markersize=5 if own else 3.5,
            zorder=3 if own else 2,
            **drawn[method],
        )
    axis.set_yscale("log")
    _tokens_axis(axis, table["tokens_before"].tolist())
    kept = table.drop_duplicates("tokens_before").sort_values("tokens_before")
    said = ", ".join(f"{row['kept_tokens']} of {row['tokens_before']}" for row in kept.to_dict("records"))
    axis.set_xlabel(f"visual tokens to choose from (kept: {said})")
    axis.set_ylabel("milliseconds of the selection alone")
    axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def model_costs(folder: Path | str, models: Mapping[str, Sequence[int]], text_tokens: int, method: str) -> pd.DataFrame:
    """Return what models of full size cost with fewer visual tokens, by their configurations.

    Parameters
    ----------
    folder : Path or str
        Of the configurations.
    models : Mapping[str, Sequence[int]]
        Height and width of the image, pixels, for each name of a configuration.
    text_tokens : int
        Tokens of the prompt that are not visual.
    method : str
        What selects.

    Returns
    -------
    DataFrame
        model, whole, kept, share (of tokens), and FLOPs: paper, language_model, encode, select, total.
    """
    rows = []
    for name, size in models.items():
        config, _ = read_config(Path(folder) / f"{name}.json")
        image_size = (int(size[0]), int(size[1]))
        whole = full_budget(config, image_size)
        for kept in [whole, *(2**power for power in range(int(np.log2(whole - 1)), 3, -1))]:
            acting = None if kept == whole else get_method(method, budget=kept)
            cost = flops_analytic(config, kept, text_tokens, image_size=image_size, method=acting)
            rows.append(
                {
                    "model": name,
                    "whole": whole,
                    "kept": kept,
                    "share": kept / whole,
                    "paper": flops_paper(config, kept),
                    "language_model": cost.language_model,
                    "encode": cost.encode,
                    "select": cost.select,
                    "total": cost.total,
                }
            )
    return pd.DataFrame(rows)


def models_figure(costs: pd.DataFrame) -> Figure:
    """Draw the FLOPs of full-size models against the tokens kept: of the language model, and of all of a prefill.

    Parameters
    ----------
    costs : DataFrame
        What `model_costs` returned.
    """
    figure, panels = plt.subplots(1, 3, figsize=(PAGE, 2.9), layout="constrained", sharey=True)
    titles = {"paper": "literature's formula", "language_model": "language model", "total": "whole prompt"}
    for axis, (column, title) in zip(panels, titles.items(), strict=True):
        for (name, chosen), colour, marker in zip(
            costs.groupby("model", sort=False), sns.color_palette("colorblind"), "osD^vPX", strict=False
        ):
            full = chosen[column].max()
            axis.plot(chosen["share"], chosen[column] / full, color=colour, marker=marker, label=name, markersize=3.5)
        least = costs["share"].min()
        axis.plot([least, 1], [least, 1], color="0.6", linestyle=":", label="tokens", zorder=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(title)
        for line in (axis.xaxis, axis.yaxis):
            line.set_major_locator(FixedLocator([0.01, 0.03, 0.1, 0.3, 1]))
            line.set_major_formatter(PercentFormatter(1, decimals=0))
            line.set_minor_locator(NullLocator())
        axis.set_xlabel("visual tokens kept")
    panels[0].set_ylabel("FLOPs of a prefill")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
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
    figure, axis = plt.subplots(figsize=(COLUMN * 1.4, 2.9), layout="constrained")
    gflops = table["flops"] / 1e9
    errors = [table["median_ms"] - table["low_ms"], table["high_ms"] - table["median_ms"]]
    axis.errorbar(gflops, table["median_ms"], yerr=errors, fmt="o", markersize=4, label="measured, quartiles")
    for row in table.to_dict("records"):
        place = (row["flops"] / 1e9, row["median_ms"])
        axis.annotate(f"{row['kept_tokens']}", place, (5, -9), textcoords="offset points", fontsize=7)
    line = np.linspace(0, gflops.max(), 2)
    axis.plot(line, fit.start + 1e3 * line / fit.speed, color="0.4", linewidth=1, label="straight line")
    axis.set_xlim(0, 1.1 * gflops.max())
    axis.set_ylim(bottom=0)
    axis.set_xlabel("analytic GFLOPs of the prefill (at points: visual tokens)")
    axis.set_ylabel("milliseconds")
    axis.legend(fontsize="small")
    return figure


def efficiency_table(times: pd.DataFrame, method: str = "idselection") -> pd.DataFrame:
    """Return FLOPs, milliseconds by phase and the cache of all tokens and of each budget of a method.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose budgets are listed.
    """
    table = totals(times)
    table = table[table["method"].isin([FULL, method])].sort_values("kept_tokens", ascending=False)
    full: Any = table[table["method"] == FULL].iloc[0]
    shown = pd.DataFrame({"visual tokens": table["kept_tokens"].astype(str)})
    shown["GFLOP"] = (table["flops"] / 1e9).map("{:.2f}".format)
    shown["of them language model"] = (table["flops_language_model"] / 1e9).map("{:.2f}".format)
    for phase in PHASES:
        shown[f"{phase}, ms"] = table[phase].map("{:.1f}".format)
    shown["answer, ms"] = table["total"].map("{:.0f}".format)
    shown["faster"] = (full["total"] / table["total"]).map("{:.2f}x".format)
    shown["faster behind the tower"] = (full["after_encode"] / table["after_encode"]).map("{:.1f}x".format)
    shown["cache, KiB"] = (table["cache_bytes"] / 2**10).map("{:.0f}".format)
    return shown


def ideal_table(times: pd.DataFrame) -> pd.DataFrame:
    """Return the time of whole answers under a method as multiples of prompts cut by hand, and of full ones.

    Parameters
    ----------
    times : DataFrame
        Rows of `idsel_core.study.timing.ideal.time_ideal`.
    """
    whole = times[times["phase"] == END_TO_END]
    if whole.empty:
        return pd.DataFrame()
    clock = whole.assign(role=whole["method"].where(whole["method"].isin([IDEAL, FULL]), "method")).pivot(
        index="budget", columns="role", values="median_ms"
    )
    named = whole[~whole["method"].isin([IDEAL, FULL])].set_index("budget")
    clock = clock.loc[named.index]
    return pd.DataFrame(
        {
            "method": named["method"].map(label),
            "visual tokens": named["kept_tokens"],
            "answer, ms": clock["method"],
            "ideal, ms": clock[IDEAL],
            "all tokens, ms": clock[FULL],
            "over ideal": named["over_ideal"],
            "over all tokens": named["over_full"],
        }
    ).reset_index(drop=True)


def claims_table(folder: Path | str, claims: Sequence[Sequence[Any]], text_tokens: int, method: str) -> pd.DataFrame:
    """Return what published claims of saved FLOPs come to, by the literature's formula and true to configurations.

    Parameters
    ----------
    folder : Path or str
        Of the configurations.
    claims : sequence
        Name of a configuration, height and width of the image in pixels, all tokens as the paper counts them, and those
        kept, of each claim.
    text_tokens : int
        Tokens of the prompt that are not visual.
    method : str
        What selects.

    Returns
    -------
    DataFrame
        model, tokens ("kept of all"), and for the literature's formula, the language model and the whole prefill with
        tower and selection: the share of FLOPs saved, and how many times fewer.
    """
    rows = []
    for name, height, width, whole, kept in claims:
        config, _ = read_config(Path(folder) / f"{name}.json")
        full, few = (
            flops_analytic(config, tokens, text_tokens, image_size=(height, width), method=acting)
            for tokens, acting in ((whole, None), (kept, get_method(method, budget=kept)))
        )
        paper = (flops_paper(config, whole), flops_paper(config, kept))
        row: dict[str, Any] = {"model": name, "tokens": f"{kept} of {whole}"}
        for what, (before, after) in {
            "literature's formula": paper,
            "language model": (full.language_model, few.language_model),
            "whole prefill": (full.total, few.total),
        }.items():
            row[f"{what}, saved"] = 1 - after / before
            row[f"{what}, times fewer"] = before / after
        rows.append(row)
    return pd.DataFrame(rows)


def about_efficiency(times: pd.DataFrame, method: str = "idselection") -> str:
    """Say whether the clock follows the tokens.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose fewest tokens are spoken of.
    """
    table = totals(times)
    full: Any = table[table["method"] == FULL].iloc[0]
    few: Any = table[table["method"] == method].sort_values("kept_tokens").iloc[0]
    return (
        f"With {few['kept_tokens']:g} of {full['kept_tokens']:g} visual tokens "
        f"({few['kept_tokens'] / full['kept_tokens']:.1%}), the language model needs "
        f"{few['flops_language_model'] / full['flops_language_model']:.1%} of its FLOPs, and its prefill "
        f"{few['prefill'] / full['prefill']:.1%} of its time ({full['prefill'] / few['prefill']:.1f} times faster). "
        f"With the selection, which takes {few['select']:.1f} ms, all that follows the tower pass is "
        f"{full['after_encode'] / few['after_encode']:.1f} times faster; with the tower pass, which is "
        f"{full['encode'] / full['total']:.0%} of an answer with all tokens, an answer is "
        f"{full['total'] / few['total']:.2f} times faster."
    )


def about_ideal(table: pd.DataFrame) -> str:
    """Say how near pruned answers come to prompts cut by hand.

    Parameters
    ----------
    table : DataFrame
        What `ideal_table` returned.
    """
    worst: Any = table.sort_values("over ideal").iloc[-1]
    return (
        f"At most {worst['over ideal']:.3f} times the ideal, with {worst['visual tokens']} tokens (median "
        f"over turns of the ratio within a turn)."
    )


def about_front(table: pd.DataFrame) -> str:
    """Name the methods and budgets that nothing beats in both accuracy and time.

    Parameters
    ----------
    table : DataFrame
        What `accuracy_against_time` returned.
    """
    lines = []
    for time, column, words in (
        ("total", "front", "whole answers"),
        ("after_encode", "front_after_encode", "behind the tower pass"),
    ):
        front = table[table[column]].sort_values(time)
        said = ", ".join(
            f"{label(row['method'])} at {row['budget']:g} ({row[time]:.3g} ms, {row['share']:.1%})"
            for row in front.to_dict("records")
        )
        lines.append(f"- **{words}**: {said}.")
    return "\n".join(lines)


def prefills(times: pd.DataFrame) -> pd.DataFrame:
    """Return the prefills among stored times, fewest tokens first."""
    return times[times["phase"] == "prefill"].sort_values("kept_tokens").reset_index(drop=True)


@dataclass(frozen=True)
class Fit:
    """A straight line through the times of prefills.

    Attributes
    ----------
    start : float
        Milliseconds that do not depend on FLOPs.
    speed : float
        GFLOPs a second.
    worst : float
        The largest relative deviation of a measured time from the line.
    """

    start: float
    speed: float
    worst: float

    def sentence(self) -> str:
        """Say what the line is."""
        return (
            f"A prefill takes {self.start:.2f} ms and its FLOPs at {self.speed:.1f} GFLOPs a second; no measured time "
            f"is further than {self.worst:.0%} from this line."
        )


def fit_of(table: pd.DataFrame) -> Fit:
    """Fit a straight line to the median times of prefills, by least squares of the relative deviations.

    Parameters
    ----------
    table : DataFrame
        What `prefills` returned; two rows of different FLOPs or more.
    """
    gflops, ms = table["flops"].to_numpy() / 1e9, table["median_ms"].to_numpy()
    slope, start = np.polyfit(gflops, ms, 1, w=1 / ms)
    deviation = np.abs(start + slope * gflops - ms) / ms
    return Fit(float(start), float(1e3 / slope), float(deviation.max()))


def printed_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return `claims_table` as text."""
    shown = table.copy()
    for name in map(str, table):
        if name.endswith(", saved"):
            shown[name] = table[name].map("{:.2%}".format)
        elif name.endswith(", times fewer"):
            shown[name] = table[name].map("{:.2f}".format)
    return shown


def summary(times: pd.DataFrame, method: str = "idselection") -> str:
    """Return the table of FLOPs and times, what it says, and on what it was measured, as Markdown.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose budgets are listed.
    """
    first = times[times["phase"] == "prefill"].iloc[0]
    timing = Timing(**{name: first[name] for name in Timing.__dataclass_fields__})
    table = efficiency_table(times, method).to_markdown(index=False)
    return f"{table}\n\n{about_efficiency(times, method)} Measured on {circumstances(timing)}."
