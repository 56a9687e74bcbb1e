"""Methods against each other on the same questions: who wins, who ties, and on which questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from idsel_core.study.report.ablation_sentences import points, verdict
from idsel_core.study.report.bootstrap import mean_scores, paired_difference, paired_scores, share_of_full
from idsel_core.study.report.theme import PAGE, label, plot_band, styles

ENDS = ("full", "no-image")
_OUTCOMES = {"above": "win", "not told apart from": "tie", "below": "loss"}
_COLORS = {"win": "#0173b2", "tie": "0.55", "loss": "#d55e00"}


def by_title(rows: pd.DataFrame) -> pd.DataFrame:
    """Call methods whose budget is what is left at last, not a mean over layers, "name (final)" in `method`."""
    final = rows["convention"] == "final"
    return rows.assign(method=rows["method"].where(~final, rows["method"] + " (final)"))


def versus_each(rows: pd.DataFrame, method: str = "idselection", resamples: int = 2000) -> pd.DataFrame:
    """Compare one method with every other at each budget, question by question.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split; all methods answered the same questions.
    method : str
        The method that is compared.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        budget, other, mean, low, high (the method's accuracy less the other's, 95 % interval) and outcome: "win" or
        "loss" where the interval leaves out zero, else "tie". No correction is made for the number of comparisons.

    Raises
    ------
    ValueError
        If the method has no rows.
    """
    rows = rows[~rows["method"].isin(ENDS)]
    budgets = rows.loc[rows["method"] == method, "budget"].unique()
    if not len(budgets):
        raise ValueError(f"no rows of method {method!r}; there are {sorted(rows['method'].unique())}")
    found = []
    for budget in sorted(budgets, reverse=True):
        scores = paired_scores(rows[rows["budget"] == budget], ["method"])
        for other in scores.columns.drop(method):
            gap = paired_difference(scores[method], scores[other], resamples=resamples)
            outcome = _OUTCOMES[verdict(gap)]
            found.append(
                {
                    "budget": budget,
                    "other": other,
                    "mean": gap.mean,
                    "low": gap.low,
                    "high": gap.high,
                    "outcome": outcome,
                }
            )
    return pd.DataFrame(found, columns=["budget", "other", "mean", "low", "high", "outcome"])


def split_by_downsampling(rows: pd.DataFrame, easy: str = "downsample") -> pd.DataFrame:
    """Keep the questions that all tokens answer, and call those easy that a smaller image answers at the same budget.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split, those of "full" and of `easy` among them.
    easy : str
        The method that tells easy questions from hard ones.

    Returns
    -------
    DataFrame
        The rows of the other methods with a new column `split`, "easy" or "hard".

    Raises
    ------
    ValueError
        If "full" or `easy` has no rows.

    Notes
    -----
    Liao et al., "Are we using the right benchmark", VTC-Bench: samples that plain down-sampling answers cannot tell
    methods apart.
    """
    for needed in ("full", easy):
        if needed not in set(rows["method"]):
            raise ValueError(f"no rows of method {needed!r}; there are {sorted(rows['method'].unique())}")
    answered = rows.loc[(rows["method"] == "full") & (rows["correct"] == 1), "question_id"]
    rows = rows[rows["question_id"].isin(answered)]
    small = rows.loc[rows["method"] == easy, ["question_id", "budget", "correct"]]
    rows = rows[~rows["method"].isin([*ENDS, easy])].merge(
        small, on=["question_id", "budget"], suffixes=("", "_small"), validate="many_to_one"
    )
    split = np.where(rows["correct_small"] == 1, "easy", "hard")
    return rows.drop(columns="correct_small").assign(split=split)


def ranking_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance of each method at each budget, best methods on top.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of one split, those of "full" among them.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    shares = share_of_full(rows, ["method", "budget"], resamples=resamples)
    shares = shares[~shares["method"].isin(ENDS)]
    shares["half width"] = (shares["high"] - shares["low"]) / 2
    means, widths = (
        shares.pivot_table(index="method", columns="budget", values=value).sort_index(axis=1, ascending=False)
        for value in ("share", "half width")
    )
    # Those that cannot run at small budgets have means of the large ones alone: they go last.
    order = pd.DataFrame({"budgets": means.notna().sum(axis=1), "mean": means.mean(axis=1)})
    means = means.loc[order.sort_values(["budgets", "mean"], ascending=False).index]
    widths = widths.loc[means.index]
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
    _name_methods(axis, list(means.index))
    axis.set_xticklabels([f"{budget:g}" for budget in means.columns])
    axis.set_xlabel("visual tokens kept")
    return figure


def cost_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance of each method against the FLOPs of the language model's prefill.

    Parameters
    ----------
    rows : DataFrame
        As for `ranking_figure`.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    by = ["method", "budget"]
    shares = share_of_full(rows, by, resamples=resamples)
    cost = rows.groupby(by, as_index=False)["prefill_gflops"].mean()
    shares = shares[~shares["method"].isin(ENDS)].merge(cost, on=by)
    figure, axis = plt.subplots(figsize=(PAGE, 4.2), layout="constrained")
    for method, style in styles(list(dict.fromkeys(shares["method"]))).items():
        chosen = shares[shares["method"] == method].sort_values("prefill_gflops")
        if method == "idselection":
            plot_band(axis, chosen, "prefill_gflops", "share", label(method), linewidth=2.5, zorder=3, **style)
        else:
            axis.plot(
                chosen["prefill_gflops"],
                chosen["share"],
                label=label(method),
                linewidth=0.8,
                markersize=3.5,
                alpha=0.8,
                **style,
            )
    axis.set_xscale("log")
    axis.set_xlabel("prefill of the language model, analytic GFLOPs a question")
    axis.set_ylabel("share of full performance")
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


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
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    figure, axis = plt.subplots(figsize=(PAGE, 0.8 + 0.22 * len(wide)), layout="constrained")
    sns.heatmap(
        100 * wide, annot=True, fmt=".0f", cmap="viridis", ax=axis, annot_kws={"size": 7}, cbar_kws={"label": "percent"}
    )
    _name_methods(axis, list(wide.index))
    axis.set_xlabel(f"accuracy with {budget:g} tokens")
    return figure


def _name_methods(axis: Axes, methods: Sequence[str]) -> None:
    axis.set_yticklabels([label(method) for method in methods], rotation=0)
    axis.set_ylabel("")
    for tick, method in zip(axis.get_yticklabels(), methods, strict=True):
        tick.set_fontweight("bold" if method == "idselection" else "normal")


def versus_each_figure(table: pd.DataFrame, budgets: Sequence[float], method: str = "idselection") -> Figure:
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
    order = drawn.groupby("other")["mean"].mean().sort_values().index
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(PAGE, 0.9 + 0.2 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for budget, axis in zip(budgets, axes[0], strict=True):
        part = drawn[drawn["budget"] == budget]
        for outcome, color in _COLORS.items():
            chosen = part[part["outcome"] == outcome]
            place = [order.get_loc(other) for other in chosen["other"]]
            errors = 100 * np.array([chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]])
            axis.errorbar(100 * chosen["mean"], place, xerr=errors, fmt="o", markersize=3.5, color=color, label=outcome)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_title(f"{budget:g} tokens")
        axis.set_xlabel("points of accuracy")
    axes[0, 0].set_yticks(range(len(order)), [label(other) for other in order])
    figure.suptitle(f"{label(method)} less ...", fontsize="medium", x=0.02, ha="left")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def split_figure(split: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> Figure:
    """Draw the accuracy of each method on easy and on hard questions, a panel a budget.

    Parameters
    ----------
    split : DataFrame
        What `split_by_downsampling` returned.
    budgets : sequence of float
        Which budgets to draw.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    drawn = [
        mean_scores(part, ["method"], resamples=resamples).assign(budget=budget, split=name)
        for budget in budgets
        for name in ("easy", "hard")
        if len(part := split[(split["budget"] == budget) & (split["split"] == name)])
    ]
    means = pd.concat(drawn)
    order = means[means["split"] == "hard"].groupby("method")["mean"].mean().sort_values().index
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(PAGE, 0.9 + 0.2 * len(order)), sharey=True, squeeze=False, layout="constrained"
    )
    for budget, axis in zip(budgets, axes[0], strict=True):
        for name, color in zip(("easy", "hard"), sns.color_palette("colorblind"), strict=False):
            chosen = means[(means["budget"] == budget) & (means["split"] == name)].set_index("method").reindex(order)
            errors = [chosen["mean"] - chosen["low"], chosen["high"] - chosen["mean"]]
            axis.errorbar(
                chosen["mean"], range(len(order)), xerr=errors, fmt="o", markersize=3.5, color=color, label=name
            )
        counts = split[split["budget"] == budget].drop_duplicates("question_id")["split"].value_counts()
        axis.set_title(f"{budget:g} tokens: {counts.get('easy', 0)} easy, {counts.get('hard', 0)} hard", fontsize=8)
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.set_xlabel("accuracy")
    axes[0, 0].set_yticks(range(len(order)), [label(method) for method in order])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def comparison_table(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return the table in the layout of the literature: budgets in blocks, a row a method, question_types, mean and share.

    Parameters
    ----------
    rows : DataFrame
        As for `ranking_figure`.
    budgets : sequence of float
        Which budgets to list, beside "full".
    resamples : int
        Bootstrap resamples of the intervals.
    """
    listed = rows[rows["budget"].isin(budgets) | (rows["method"] == "full")]
    by = ["method", "budget"]
    wide = listed.pivot_table(index=by, columns="question_type", values="correct", sort=False).mul(100)
    wide["mean"] = wide.mean(axis=1)
    shares = share_of_full(listed, by, resamples=resamples).set_index(by)[["share", "low", "high"]].mul(100)
    wide = wide.map("{:.1f}".format)
    wide["share of full"] = [f"{s:.1f} [{low:.1f}, {high:.1f}]" for s, low, high in shares.loc[wide.index].to_numpy()]
    wide["tokens a layer"] = listed.groupby(by)["tokens_average"].mean().loc[wide.index].map("{:.0f}".format)
    wide["order"] = shares.loc[wide.index, "share"]
    wide = wide.reset_index().sort_values(["budget", "order"], ascending=False, kind="stable")
    wide = wide.assign(budget=wide["budget"].astype(int).astype(str), method=wide["method"].map(label))
    return wide[["budget", "method", "tokens a layer", *dict.fromkeys(rows["question_type"]), "mean", "share of full"]]


def shares_table(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return the share of full performance with its interval, a row a method, a column a budget, in percent.

    Parameters
    ----------
    rows : DataFrame
        As for `ranking_figure`.
    budgets : sequence of float
        Which budgets to show; the last one sorts the rows.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    listed = rows[rows["budget"].isin(budgets) | (rows["method"] == "full")]
    shares = share_of_full(listed, ["method", "budget"], resamples=resamples)
    order = shares[shares["budget"] == budgets[-1]].set_index("method")["share"].sort_values(ascending=False)
    shares = shares[shares["budget"].isin(budgets)].set_index(["method", "budget"])[["share", "low", "high"]].mul(100)
    text = [f"{share:.1f} [{low:.1f}, {high:.1f}]" for share, low, high in shares.to_numpy()]
    wide = shares.assign(text=text)["text"].unstack("budget").reindex(index=order.index, columns=list(budgets))
    wide.columns = [f"{budget:g} tokens" for budget in budgets]
    return wide.fillna("").rename(index=label).rename_axis("method").reset_index()


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


def about_comparison(table: pd.DataFrame, method: str = "idselection") -> str:
    """Say, for each budget, whom a method beats, ties with and loses to.

    Parameters
    ----------
    table : DataFrame
        What `versus_each` returned.
    method : str
        The method that `table` is about.
    """
    lines = []
    for budget, part in table.groupby("budget", sort=False):
        said = []
        for outcome, word in (("win", "above"), ("tie", "not told apart from"), ("loss", "below")):
            chosen = part[part["outcome"] == outcome].sort_values("mean", ascending=outcome == "loss")
            if len(chosen):
                pairs = zip(chosen["other"], chosen["mean"], strict=True)
                who = ", ".join(f"{label(other)} ({100 * mean:+.1f})" for other, mean in pairs)
                said.append(f"{word} {len(chosen)}: {who}")
        lines.append(f"- **{budget:g} tokens**: {label(method)} is {'; '.join(said)}.")
    return "\n".join(lines)


def about_split(
    split: pd.DataFrame, budgets: Sequence[float], method: str = "idselection", resamples: int = 2000
) -> str:
    """Say how a method does on easy and on hard questions, and which one does best on the hard ones.

    Parameters
    ----------
    split : DataFrame
        What `split_by_downsampling` returned.
    budgets : sequence of float
        Which budgets to speak of.
    method : str
        The method to speak of.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    lines = []
    for budget in budgets:
        here = split[split["budget"] == budget]
        if here["split"].nunique() < 2:
            lines.append(
                f"- **{budget:g} tokens**: all questions are {', '.join(here['split'].unique()) or 'left out'}."
            )
            continue
        hard, easy = (paired_scores(here[here["split"] == name], ["method"]) for name in ("hard", "easy"))
        best = str(hard.mean().idxmax())
        line = (
            f"- **{budget:g} tokens**: a smaller image answers {len(easy)} of {len(easy) + len(hard)} questions. "
            f"{label(method)} answers {100 * easy[method].mean():.1f} % of these and {100 * hard[method].mean():.1f} % "
            f"of the others"
        )
        if best != method:
            gap = paired_difference(hard[method], hard[best], resamples=resamples)
            line += f"; best on those is {label(best)} with {100 * hard[best].mean():.1f} %, {points(gap)}"
        lines.append(f"{line}.")
    return "\n".join(lines)
