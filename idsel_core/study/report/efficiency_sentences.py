"""Sentences about efficiency, made from the numbers so that they are true of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from idsel_core.study.dataset import FULL
from idsel_core.study.report.comparison import marked_label, ranking_notes
from idsel_core.study.report.efficiency import totals


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
    interval = f", 95 % interval {worst['low']:.3f} to {worst['high']:.3f}" if np.isfinite(worst["low"]) else ""
    said = (
        f"At most {worst['over ideal']:.3f} times the ideal, with {worst['visual tokens']} tokens (median "
        f"over turns of the ratio within a turn{interval})."
    )
    if table["FLOPs over ideal"].isna().any():
        return said
    least = ", ".join(
        f"{share:.3f} with {tokens} tokens"
        for tokens, share in zip(table["visual tokens"], table["FLOPs over ideal"], strict=True)
    )
    return f"{said} If time went by FLOPs alone, scores and selection would make it {least}."


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
        ("after_encode", "front_after_encode", "without the tower pass"),
    ):
        front = table[table[column]].sort_values(time)
        said = ", ".join(
            f"{marked_label(row['method'])} at {row['budget']:g} ({row[time]:.3g} ms, {row['share']:.1%})"
            for row in front.to_dict("records")
        )
        lines.append(f"- **{words}**: {said}.")
    named = table.loc[table["front"] | table["front_after_encode"], "method"]
    return "\n\n".join(["\n".join(lines), *ranking_notes(named, apart=False)])
