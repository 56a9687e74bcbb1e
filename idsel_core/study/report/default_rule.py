"""The rule of docs/default.md, which chooses ID-Selection's defaults from rows of the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from idsel_core.methods import IDSelection
from idsel_core.study.knobs import instruction_knobs, knob_columns
from idsel_core.study.report.bootstrap import Array, interval_bounds, resampled_shares
from idsel_core.study.report.table_text import BEST
from idsel_core.study.report.wording import gamma_name

BY = ("update", "importance", "instruction", "gamma", "features")
"""Columns that tell the settings of ID-Selection apart."""
_READING = IDSelection.published(budget=1)
PUBLISHED = {
    "update": _READING.update,
    "gamma": gamma_name(knob_columns(_READING)["gamma"]),
    "features": _READING.features,
}
"""Knobs of the published reading, from which a default departs for a reason alone."""


@dataclass(frozen=True)
class Ranking:
    """Settings ranked by the rule.

    Parameters
    ----------
    table : DataFrame
        A row a setting, best first: the columns of `BY`, share of full performance at each budget, their mean,
        `layers` that the score reads; `gap`, `low`, `high`: the difference from the leader at equal FLOPs with its 95 %
        interval; `tied` with the leader; `departures` from the published reading; whether gamma is
        `scaled`, which "auto" is not.
    leader : int
        Row of the setting of highest measure.
    default : int
        Row of the setting that the rule makes the default.
    """

    table: pd.DataFrame
    leader: int
    default: int


def rank_settings(
    rows: pd.DataFrame, tokens: int, layers: int, companions: bool = True, resamples: int = 2000
) -> Ranking:
    """Rank the settings of ID-Selection, and choose the default among them.

    A score that reads the language model up to layer l has run l layers over all tokens. At budget K such a setting is
    compared with others at K plus l * tokens / layers tokens, by linear interpolation of their shares over the
    logarithm of the number of tokens.

    Parameters
    ----------
    rows : DataFrame
        Rows of the settings, each at the same budgets, and of all tokens.
    tokens, layers : int
        Visual tokens of an image, and layers of the language model on whose shapes FLOPs are compared.
    companions : bool
        Whether settings that need an image-text companion take part.
    resamples : int
        Bootstrap resamples of the intervals.

    Raises
    ------
    ValueError
        If there are no settings, or no rows of all tokens.
    """
    own = rows[rows["method"] == "idselection"]
    if not companions:
        own = own[~own["importance"].str.contains("relev")]
    if own.empty:
        raise ValueError("there are no settings of ID-Selection to rank")
    reads = own["importance"].str.startswith(("instruction", "unified"))
    own = own.assign(
        instruction=own["instruction"].where(reads, "-"), gamma=[gamma_name(gamma) for gamma in own["gamma"]]
    )
    known = pd.concat([own, rows[rows["method"] == "full"].drop_duplicates("question_id")], ignore_index=True)
    for name in BY:
        known[name] = known[name].astype(object).where(known["method"] == "idselection", "")
    scores, shares, drawn = resampled_shares(known, ["method", *BY, "budget"], resamples=resamples)
    known_columns: list[Any] = scores.columns.tolist()
    columns = pd.MultiIndex.from_tuples(known_columns, names=scores.columns.names)
    place = columns.get_level_values("method") == "idselection"
    budgets = sorted(columns[place].get_level_values("budget").unique(), reverse=True)
    settings = columns[place].droplevel(["method", "budget"]).unique()
    # (resamples + 1, settings, budgets); the first is not resampled.
    wanted = [("idselection", *setting, budget) for setting in settings.tolist() for budget in budgets]
    where = columns.get_indexer(pd.MultiIndex.from_tuples(wanted))
    table = np.vstack([shares, drawn])[:, where].reshape(len(drawn) + 1, len(settings), len(budgets))
    asks = [str(name) for name in settings.get_level_values("instruction")]
    depth = np.array([0 if name == "-" else instruction_knobs(name)["instruction_layer"] for name in asks])
    gaps = _gaps(table, depth, budgets, tokens, tokens / layers)
    leader = int(gaps[0].min(axis=1).argmax())
    against = gaps[:, :, leader]
    low, high = interval_bounds(against[1:], 0.95)
    found = settings.to_frame(index=False)
    found = found.assign(**{f"{budget:g}": table[0, :, number] for number, budget in enumerate(budgets)})
    found = found.assign(mean=table[0].mean(-1), layers=depth, gap=against[0], low=low, high=high, tied=high >= 0)
    found["departures"] = sum((found[name] != value).astype(int) for name, value in PUBLISHED.items())
    found["scaled"] = found["gamma"] != "auto"
    tied = found[found["tied"]].sort_values(
        ["layers", "departures", "scaled", "gap"], ascending=[True, True, True, False], kind="stable"
    )
    order = found.sort_values("mean", ascending=False, kind="stable").index
    places = {int(old): new for new, old in enumerate(order)}
    return Ranking(found.loc[order].reset_index(drop=True), places[leader], places[int(tied.index[0])])


def _gaps(table: Array, depth: Array, budgets: Sequence[float], tokens: int, of_a_layer: float) -> Array:
    """Return how far each setting is above each other at equal FLOPs, (resamples + 1, settings, settings)."""
    count = len(depth)
    known = np.log2(np.array([*reversed(budgets), tokens], dtype=np.float64))
    curves = np.concatenate([table[..., ::-1], np.ones((*table.shape[:2], 1))], axis=-1)
    gaps = np.zeros((len(table), count, count))
    for more in sorted(set((depth[:, None] - depth[None, :]).ravel()) - set(range(-int(depth.max()), 0))):
        wanted = np.log2(np.minimum(np.array(budgets) + more * of_a_layer, tokens))
        right = np.clip(np.searchsorted(known, wanted), 1, len(known) - 1)
        weight = (wanted - known[right - 1]) / (known[right] - known[right - 1])
        raised = (curves[..., right - 1] * (1 - weight) + curves[..., right] * weight).mean(-1)
        for deep, shallow in np.argwhere(depth[:, None] - depth[None, :] == more):
            gaps[:, deep, shallow] = table[:, deep].mean(-1) - raised[:, shallow]
            gaps[:, shallow, deep] = -gaps[:, deep, shallow]
    return gaps


def setting_names(table: pd.DataFrame) -> list[str]:
    """Return a name for each setting of a ranking's table: its knobs, in the order of `BY`."""
    return [", ".join(str(row[name]) for name in BY if row[name] != "-") for _, row in table.iterrows()]


def shown_table(ranking: Ranking) -> pd.DataFrame:
    """Return the table of a ranking as pages show it, in percent."""
    table = ranking.table
    budgets = [name for name in table if str(name).isdigit()]
    shown = pd.DataFrame({"setting": setting_names(table), "layers read": table["layers"]})
    for name in (*budgets, "mean"):
        shown[name] = (100 * table[name]).map("{:.1f}".format)
    gaps = zip(100 * table["gap"], 100 * table["low"], 100 * table["high"], strict=True)
    shown["gap"] = [f"{gap:+.1f} [{low:+.1f}, {high:+.1f}]" for gap, low, high in gaps]
    return shown.assign(tied=table["tied"].map({True: "yes", False: ""}))


def mark_default(ranking: Ranking, shown: pd.DataFrame) -> pd.DataFrame:
    """Return the marks of what `shown_table` returned, for `save_table`: the default is in bold."""
    marks = pd.DataFrame("", index=shown.index, columns=shown.columns)
    marks.loc[ranking.default, "setting"] = BEST
    return marks


def about_choice(ranking: Ranking) -> str:
    """Say in a sentence which setting is best, how many are tied with it, and which the rule takes."""
    names, table = setting_names(ranking.table), ranking.table
    tied = int(table["tied"].sum()) - 1
    return (
        f"of {len(table)} settings *{names[ranking.leader]}* is best at equal FLOPs and {tied} "
        f"{'is' if tied == 1 else 'are'} tied with it; the rule takes *{names[ranking.default]}*, which keeps "
        f"{100 * table['mean'][ranking.default]:.1f} % of full performance in the mean."
    )
