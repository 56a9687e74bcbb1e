"""The share of full performance on several backbones side by side."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from idsel_core.study.report import palette
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.settings import own_positions
from idsel_core.study.report.theme import (
    ENDS,
    PAGE,
    add_note,
    label,
    name_lines,
    percent_axis,
    plot_band,
    questions_asked,
    size,
    styles,
)
from idsel_core.study.store.results import Results

_WHO = ["backbone", "dataset", "split"]


def read_backbones(results: Results, job: str = "04_ablation_budget") -> pd.DataFrame:
    """Return the rows of a job for every backbone and data set that the store holds; none if there are none.

    Parameters
    ----------
    results : Results
        The store.
    job : str
        The job; that of another backbone has the same name with more behind it.
    """
    jobs = [name for name in results.jobs() if name == job or name.startswith(f"{job}-")]
    own = [own_positions(results.frame(name)) for name in jobs]
    return pd.concat(own, ignore_index=True) if own else pd.DataFrame()


def backbones_figure(rows: pd.DataFrame, resamples: int = 2000) -> Figure:
    """Draw the share of full performance against the share of visual tokens kept, a panel a backbone.

    Parameters
    ----------
    rows : DataFrame
        As `read_backbones` gives them.
    resamples : int
        Bootstrap resamples of the bands.

    Returns
    -------
    Figure
        The figure; a sentence, where no backbone has rows with all tokens.
    """
    if rows.empty or not (rows["method"] == "full").any():
        figure = plt.figure(figsize=(PAGE, 0.6))
        figure.set_label("An empty figure: the store holds no budgets of any backbone")
        figure.text(0.01, 0.5, "The store holds no budgets of any backbone yet: run 04_ablation_budget for some.")
        return figure
    groups = [(who, part) for who, part in rows.groupby(_WHO, sort=True) if (part["method"] == "full").any()]
    wide = size("column" if len(groups) == 1 else "page", 2.8)
    figure, axes = plt.subplots(1, len(groups), figsize=wide, sharey=True, squeeze=False, layout="constrained")
    figure.set_label("Share of full performance against the share of visual tokens kept, a panel a backbone")
    drawn = styles([method for method in rows["method"].unique() if method not in ENDS])
    for axis, ((backbone, dataset, split), part) in zip(axes[0], groups, strict=True):
        shares = share_of_full(part, ["method", "budget"], resamples=resamples)
        kept = part.groupby(["method", "budget"])[["tokens_average", "tokens_before"]].mean()
        kept = (kept["tokens_average"] / kept["tokens_before"]).rename("kept").reset_index()
        shares = shares.merge(kept, on=["method", "budget"]).sort_values("kept")
        for method, style in drawn.items():
            if method in set(shares["method"]):
                plot_band(axis, shares[shares["method"] == method], "kept", "share", label(method), **style)
        axis.axhline(1, color=palette.LINE, linestyle=":", label="_all tokens")
        axis.set_xscale("log")
        axis.set_xlabel("visual tokens kept")
        percent_axis(axis.xaxis)
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
        percent_axis(axis.yaxis)
        axis.set_title(f"{backbone}\n{dataset}, {split}")
    axes[0, 0].set_ylabel("share of full performance")
    if len(groups) == 1:
        name_lines(axes[0, 0])
    else:
        named = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=3)
    return add_note(figure, questions_asked(rows))
