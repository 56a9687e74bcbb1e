"""The figure of the rule that chooses ID-Selection's defaults."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from idsel_core.study.report import palette
from idsel_core.study.report.default_rule import Ranking, setting_names
from idsel_core.study.report.theme import add_note, questions_asked, row_points, size_for_rows

_REST = 0.9


def default_figure(ranking: Ranking, rows: pd.DataFrame) -> Figure:
    """Draw how far each setting is from the best one at equal FLOPs, with its interval, the best on top.

    Parameters
    ----------
    ranking : Ranking
        What `rank_settings` returned.
    rows : DataFrame
        The rows that it ranked, which tell how many questions were asked.
    """
    table = ranking.table.iloc[::-1].reset_index(drop=True)
    figure, axis = plt.subplots(figsize=size_for_rows(len(table), 0.15, _REST), layout="constrained")
    figure.set_label("Settings of ID-Selection by their difference from the best one at equal FLOPs, in points")
    place = np.arange(len(table))
    for tied, name, colour, marker in (
        (True, "tied with the best", palette.TIED, "o"),
        (False, "not tied", palette.APART, "s"),
    ):
        shown = 100 * table.loc[table["tied"] == tied, ["gap", "low", "high"]]
        if len(shown):
            errors = [shown["gap"] - shown["low"], shown["high"] - shown["gap"]]
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "label": name}
            axis.errorbar(shown["gap"], place[shown.index], xerr=np.maximum(errors, 0), **look)
    axis.axvline(0, color=palette.LINE, linewidth=0.8, label="_best")
    font = row_points(figure, len(table), _REST)
    axis.set_yticks(place, setting_names(table), fontsize=font)
    for tick, row in zip(axis.get_yticklabels(), reversed(range(len(table))), strict=True):
        tick.set_fontweight("bold" if row == ranking.default else "normal")
    axis.set_ylim(-0.7, len(table) - 0.3)
    axis.set_xlabel("points of the mean share of full performance above the best setting, at equal FLOPs")
    figure.legend(loc="outside upper center", ncols=2)
    return add_note(figure, f"{questions_asked(rows)}; bars: 95 % bootstrap intervals; bold: the default")
