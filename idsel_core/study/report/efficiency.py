"""Numbers of the efficiency study: what fewer tokens save, by stored times and by configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from idsel_core.methods import get_method
from idsel_core.study.cost import flops_analytic, flops_paper, full_budget, read_config
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.comparison import by_title, on_front
from idsel_core.study.report.theme import ENDS

PHASES = ("encode", "select", "prefill", "decode")
"""Phases of an answer, in order."""


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
    shares = shares[~shares["method"].isin(list(ENDS))]
    if rows["method"].str.endswith(")").any():
        raise ValueError("rows must be as stored: budgets left at last are told by `convention`, not in `method`")
    clock = totals(times)[["method", "budget", "total", "after_encode"]]
    both = shares.merge(clock, on=["method", "budget"])
    return both.assign(front=on_front(both, "total"), front_after_encode=on_front(both, "after_encode"))


def model_costs(models: Mapping[str, Sequence[int]], text_tokens: int, method: str) -> pd.DataFrame:
    """Return what models of full size cost with fewer visual tokens, by their configurations.

    Parameters
    ----------
    models : Mapping[str, Sequence[int]]
        Height and width of the image, pixels, for each name of `list_architectures`.
    text_tokens : int
        Tokens of the prompt that are not visual.
    method : str
        What selects.

    Returns
    -------
    DataFrame
        model, whole, kept, share (of tokens), and FLOPs: paper, language_model, encode, select, total.

    Raises
    ------
    ValueError
        If no model is named.
    """
    if not models:
        raise ValueError("models names no model: give height and width of the image in pixels for one at least")
    rows = []
    for name, size in models.items():
        config, _ = read_config(Path(name))
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
