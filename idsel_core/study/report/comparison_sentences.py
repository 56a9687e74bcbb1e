"""Sentences about the comparison, made from the numbers so that they are true of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from idsel_core.study.report.bootstrap import paired_difference, paired_scores
from idsel_core.study.report.comparison import is_final, marked_label, ranking_notes
from idsel_core.study.report.theme import label
from idsel_core.study.report.wording import points


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
        final = part["other"].map(is_final).astype(bool)
        asked = f"{part['questions'].iloc[0]:,} questions"
        line = f"- **{budget:g} tokens**, {asked}: {label(method)} is {_outcomes(part[~final])}."
        if final.any():
            line += f" Of methods that read more tokens than this, it is {_outcomes(part[final])}."
        lines.append(line)
    return "\n\n".join(["\n".join(lines), *ranking_notes(table["other"], apart=False)])


def _outcomes(part: pd.DataFrame) -> str:
    said = []
    for outcome, word in (("win", "above"), ("tie", "not told apart from"), ("loss", "below")):
        chosen = part[part["outcome"] == outcome].sort_values("mean", ascending=outcome == "loss")
        if len(chosen):
            pairs = zip(chosen["other"], chosen["mean"], strict=True)
            who = ", ".join(f"{marked_label(other)} ({100 * mean:+.1f})" for other, mean in pairs)
            said.append(f"{word} {len(chosen)}: {who}")
    return "; ".join(said)


def about_difficulty(
    rows: pd.DataFrame, budgets: Sequence[float], method: str = "idselection", resamples: int = 2000
) -> str:
    """Say how a method does on easy and on hard questions, and which one does best on the hard ones.

    Methods that read more tokens than their budget are left out.

    Parameters
    ----------
    rows : DataFrame
        What `by_difficulty` returned.
    budgets : sequence of float
        Which budgets to speak of.
    method : str
        The method to speak of.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    lines = []
    for budget in budgets:
        here = rows[(rows["budget"] == budget) & ~rows["method"].map(is_final).astype(bool)]
        if here["difficulty"].nunique() < 2:
            kinds = ", ".join(here["difficulty"].unique()) or "left out"
            lines.append(f"- **{budget:g} tokens**: all questions are {kinds}.")
            continue
        hard, easy = (paired_scores(here[here["difficulty"] == name], ["method"]) for name in ("hard", "easy"))
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
