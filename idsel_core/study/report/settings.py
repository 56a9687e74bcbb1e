"""Which rows of a store stand for one setting of a method, so that means do not mix several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from idsel_core.study.report.theme import ENDS

_ASKED: Final = ["backbone", "dataset", "split"]
_KNOBS: Final = (
    "revision", "dtype", "template", "importance", "normalise", "features", "update", "instruction", "gamma",
    "positions", "convention", "knobs", "conversation",
)  # fmt: skip
"""The columns that tell settings apart beside method and budget; seeds of one setting are averaged."""


def own_positions(rows: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows in which tokens have the position ids that are the default of the backbone's family.

    A family whose positions have several axes keeps them and has no compact ones, so compact ones are the default
    wherever there are any.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of any backbones.

    Raises
    ------
    ValueError
        If a method was asked at a budget with other positions alone, as its rows would be lost.
    """
    ends = rows["method"].isin(list(ENDS))
    default = rows.loc[~ends & (rows["positions"] == "compact"), "backbone"].unique()
    other = ~ends & (rows["positions"] == "keep") & rows["backbone"].isin(default)
    key = [*_ASKED, "method", "budget"]
    kept, left_out = (pd.MultiIndex.from_frame(rows.loc[chosen, key]).unique() for chosen in (~other, other))
    lost = left_out.difference(kept)
    if len(lost):
        backbone, dataset, split, method, budget = lost[0]
        raise ValueError(
            f"{method} at {budget:g} on {dataset}, {split}, was asked of {backbone} with positions 'keep' alone, and "
            "other methods with 'compact', its default: choose rows of one kind, for example those of one job"
        )
    return rows[~other]


def check_one_setting(rows: pd.DataFrame, by: Sequence[str] = ("method", "budget")) -> None:
    """Refuse rows in which a method has several settings of its knobs, weights or prompts.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, of any backbones and data sets.
    by : sequence of str
        The columns that may tell settings of one backbone and split apart.

    Raises
    ------
    ValueError
        Names the first such method, and what its settings are.
    """
    knobs = [name for name in _KNOBS if name in rows and name not in by]
    settings = rows[[*_ASKED, *by, *knobs]].drop_duplicates()
    if "positions" in knobs:  # those of all tokens and of no image say nothing
        settings.loc[settings["method"].isin(list(ENDS)), "positions"] = "any"
    for key, part in settings.groupby([*_ASKED, *by], dropna=False, sort=False):
        several = [name for name in knobs if part[name].nunique(dropna=False) > 1]
        if several:
            backbone, dataset, split, *rest = key
            where = ", ".join(f"{name} {value}" for name, value in zip(by, rest, strict=True))
            said = "; ".join(f"{name}: {', '.join(map(str, part[name].unique()))}" for name in several)
            raise ValueError(
                f"{where} of {backbone} on {dataset}, {split}, has rows of several settings ({said}); a mean over them "
                "is of none: choose the rows of one, for example those of one job"
            )
