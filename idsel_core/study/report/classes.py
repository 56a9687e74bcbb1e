"""Methods in classes by what they need before they select, and the ID-Selection of each class beside the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.stats import norm

from idsel_core.methods import METHODS, IDSelection, Method, get_method
from idsel_core.study.knobs import knob_columns
from idsel_core.study.report.bootstrap import interval_bounds, resampled_shares, share_of_full
from idsel_core.study.report.comparison import versus_each, with_others
from idsel_core.study.report.settings import own_positions
from idsel_core.study.report.significance import holm
from idsel_core.study.report.theme import ENDS, label
from idsel_core.study.store.results import Results

BEFORE: Final = "before the language model"
COMPANION: Final = "with a companion"
PASS: Final = "after a pass"
INSIDE: Final = "inside the language model"
CLASSES: Final = (BEFORE, COMPANION, PASS, INSIDE)
COMPANIONED: Final = ("cdpruner", "trim")
"""Methods that need an image-text companion whatever their knobs are."""
_NAMED: Final = ("importance", "instruction", "update", "gamma", "knobs")
"""The knobs that a setting is called by."""


def class_of(method: Method) -> str:
    """Return the class that a method is in, one of this module's."""
    row = pd.DataFrame([{"method": method.name, **knob_columns(method)}])
    return str(by_setting(row)["class"].iloc[0])


def read_settings(results: Results, job: str, beside: str = "") -> pd.DataFrame:
    """Return the rows of a comparison as `by_setting` does, with those of a job that asked the same questions.

    Parameters
    ----------
    results : Results
        The store.
    job : str
        The comparison.
    beside : str
        The job that asked the rest; of its rows those of other questions and splits, of further seeds and of settings
        that the comparison asked itself are left out. "" for none.

    Raises
    ------
    ValueError
        If that job is not in the store, or asked some of the questions alone.
    """
    rows = by_setting(own_positions(results.frame(job)))
    if not beside:
        return rows
    if beside not in results.jobs():
        raise ValueError(f"no rows of {beside!r}: run it first, or set beside to ''")
    return with_others(rows, by_setting(own_positions(results.frame(beside))), job, beside)


def by_setting(rows: pd.DataFrame) -> pd.DataFrame:
    """Call settings by the knobs in which they depart from the defaults, and say which class each is in.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store.

    Returns
    -------
    DataFrame
        The rows with "name, knobs" in `method`, and the new columns `class`, one of this module's, and `layers`, how
        many layers of the language model the score read over all tokens.
    """
    keys = ["method", "importance", "instruction", "update", "gamma", "convention", "knobs"]
    known = rows[keys].drop_duplicates().reset_index(drop=True)
    scores = known["importance"].fillna("").astype(str)
    reads = scores.str.startswith(("instruction", "unified"))
    depth = known["instruction"].fillna("").astype(str).str.extract(r"@(\d+)$", expand=False).where(reads).fillna("0")
    depth = depth.astype(int)
    companion = known["method"].isin(COMPANIONED) | scores.str.contains("relev")
    kind = np.select([known["convention"].notna(), depth > 0, companion], [INSIDE, PASS, COMPANION], BEFORE)
    named = known.assign(named=[_name(row) for _, row in known.iterrows()], layers=depth)
    named["class"] = kind
    found = rows.merge(named, on=keys, how="left", validate="many_to_one")
    return found.assign(method=found["named"]).drop(columns="named")


def _name(row: pd.Series) -> str:
    """Return the name of a setting: that of its method, and the knobs in which it departs from its defaults."""
    name = str(row["method"])
    if name not in METHODS:
        return name
    plain = knob_columns(get_method(name, budget=1))
    if name == IDSelection.name and _alike(row, knob_columns(IDSelection.published(1))):
        return f"{name}, published reading"
    texts = [f"{row[knob]:g}" if knob == "gamma" else str(row[knob]) for knob in _NAMED if not _same(row, plain, knob)]
    return ", ".join([name, *texts])


def _same(row: pd.Series, knobs: Mapping[str, Any], knob: str) -> bool:
    return bool(row[knob] == knobs[knob]) or (pd.isna(row[knob]) and bool(pd.isna(knobs[knob])))


def _alike(row: pd.Series, knobs: Mapping[str, Any]) -> bool:
    return all(_same(row, knobs, knob) for knob in _NAMED)


def at_equal_flops(rows: pd.DataFrame, tokens: int, model_layers: int) -> pd.DataFrame:
    """Return rows of `by_setting` whose budget counts what the score had read: l layers over all tokens.

    Parameters
    ----------
    rows : DataFrame
        Rows of `by_setting`.
    tokens : int
        Visual tokens of an image.
    model_layers : int
        Layers of the language model on whose shapes FLOPs are equal.
    """
    return rows.assign(budget=rows["budget"] + rows["layers"] * tokens / model_layers)


def class_gaps(rows: pd.DataFrame, budgets: Sequence[float], model_layers: int, resamples: int = 2000) -> pd.DataFrame:
    """Compare the ID-Selection of each class with the methods of its class, question by question.

    A setting that reads layers of the language model first is compared twice: with others that read as many, and, at
    equal FLOPs, with those that read none.

    Parameters
    ----------
    rows : DataFrame
        Rows of `by_setting`, of one split; those of methods with a final budget are left out.
    budgets : sequence of float
        The budgets to compare at.
    model_layers : int
        As for `at_equal_flops`.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        class, own (the setting of ID-Selection), and the columns of `versus_each`; Holm's correction is over a class.
    """
    full = rows[rows["method"] == "full"]
    ranked = rows[(rows["convention"] != "final") & ~rows["method"].isin(list(ENDS))]
    tokens = int(full["tokens_before"].max())
    equal = ranked[ranked["class"].isin([BEFORE, PASS])]
    parts = [(name, ranked[ranked["class"] == name]) for name in CLASSES]
    parts.append((f"{PASS}, at equal FLOPs", at_equal_flops(equal, tokens, model_layers)))
    found = []
    for name, part in parts:
        part = part[part["budget"].isin(budgets)]
        wanted = PASS if name.startswith(PASS) else name
        own = part[(part["class"] == wanted) & part["method"].str.startswith("idselection")]
        if own.empty:
            continue
        setting = own["method"].iloc[0]
        if name.endswith("FLOPs"):
            part = part[(part["class"] == BEFORE) | (part["method"] == setting)]
        if part["method"].nunique() > 1:
            found.append(versus_each(part, setting, resamples).assign(**{"class": name, "own": setting}))
    columns = ["class", "own", "budget", "other", "mean", "low", "high", "questions", "p", "corrected", "outcome"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def classes_table(gaps: pd.DataFrame) -> pd.DataFrame:
    """Return a row a class and budget: whom its ID-Selection is below, whom it is not told apart from and above.

    Parameters
    ----------
    gaps : DataFrame
        What `class_gaps` returned.
    """
    lines = []
    for (name, own, budget), part in gaps.groupby(["class", "own", "budget"], sort=False):
        line = {"class": name, "setting": label(str(own)), "tokens": f"{budget:g}"}
        for outcome, title in (("loss", "below"), ("tie", "not told apart from"), ("win", "above")):
            chosen = part[part["outcome"] == outcome].sort_values("mean")
            pairs = zip(chosen["other"], chosen["mean"], strict=True)
            line[title] = ", ".join(f"{label(other)} ({100 * mean:+.1f})" for other, mean in pairs)
        lines.append(line)
    return pd.DataFrame(lines)


def about_classes(gaps: pd.DataFrame) -> str:
    """Say of each class at which budgets its ID-Selection is below another method, above or tied with all of them."""
    lines = []
    for (name, own), part in gaps.groupby(["class", "own"], sort=False):
        at = {budget: part.loc[part["budget"] == budget, "outcome"] == "loss" for budget in part["budget"].unique()}
        lost = [f"{loss.sum()} of {len(loss)} others at {budget:g} tokens" for budget, loss in at.items() if loss.any()]
        held = [budget for budget, loss in at.items() if not loss.any()]
        said = [
            f"below {', '.join(lost)}" if lost else "",
            f"above each of them or not told apart from it at {_numbers(held)}" if held else "",
        ]
        lines.append(f"- **{name}**: {label(str(own))} is {', '.join(filter(None, said))}.")
    return "\n".join(lines)


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def inside_table(rows: pd.DataFrame, method: str = "idselection", resamples: int = 2000) -> pd.DataFrame:
    """Compare methods inside the language model with one before it, at equal FLOPs of scores and prefill.

    The share of the one before is interpolated over the logarithm of its FLOPs, in each resample of the questions. What
    costs less or more than it ever does is not compared.

    Parameters
    ----------
    rows : DataFrame
        Rows of `by_setting`, those of "full" among them.
    method : str
        The method before the language model.
    resamples : int
        Bootstrap resamples.

    Returns
    -------
    DataFrame
        method, budget, counted as (the convention), tokens a layer, GFLOPs, share of full, the other one's share at as
        many GFLOPs, the difference with its interval, and outcome: of a normal test with the spread of the resampled
        differences, after Holm's correction over the table.
    """
    own = (rows["method"] == method) | (rows["method"] == "full")
    rows = rows[own | (rows["class"] == INSIDE)].assign(convention=lambda one: one["convention"].fillna(""))
    by = ["method", "convention", "budget"]
    scores, shares, drawn = resampled_shares(rows, by, resamples=resamples)
    spent = rows.assign(gflops=rows["prefill_gflops"] + rows["scoring_gflops"].fillna(0))
    cost = spent.groupby(by)[["gflops", "tokens_average"]].mean().loc[scores.columns]
    settings = scores.columns.to_frame(index=False)
    is_own = settings["method"].isin([method, "full"]).to_numpy()
    spends = np.log2(cost["gflops"].to_numpy())
    place = np.flatnonzero(is_own)[np.argsort(spends[is_own])]
    table = np.vstack([shares, drawn])  # (resamples + 1, settings); the first is not resampled
    lines: list[tuple[float, dict[str, str]]] = []
    p_values: list[tuple[int, float, float]] = []
    for number in np.flatnonzero(~is_own).tolist():
        line = {
            "method": label(settings["method"][number]),
            "budget": f"{settings['budget'][number]:g}",
            "counted as": {"average": "mean", "final": "left at last"}[settings["convention"][number]],
            "tokens a layer": f"{cost['tokens_average'].iloc[number]:.0f}",
            "GFLOPs": f"{cost['gflops'].iloc[number]:.2f}",
            "share of full": f"{100 * shares[number]:.1f}",
        }
        known = spends[place]
        if known[0] <= spends[number] <= known[-1]:
            right = min(max(int(np.searchsorted(known, spends[number])), 1), len(place) - 1)
            weight = (spends[number] - known[right - 1]) / (known[right] - known[right - 1])
            other = table[:, place[right - 1]] * (1 - weight) + table[:, place[right]] * weight
            gap = table[:, number] - other
            low, high = interval_bounds(gap[1:, None], 0.95)[:, 0]
            line["at as many FLOPs"] = f"{100 * other[0]:.1f}"
            line["difference"] = f"{100 * gap[0]:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
            spread = float(gap[1:].std())
            p_value = 2 * float(norm.sf(abs(gap[0]) / spread)) if spread else float(gap[0] == 0)
            p_values.append((len(lines), gap[0], p_value))
        lines.append((cost["gflops"].iloc[number], line))
    if p_values:
        for (line_number, mean, _), value in zip(p_values, holm([p for _, _, p in p_values]), strict=True):
            lines[line_number][1]["outcome"] = "tie" if value >= 0.05 else "above" if mean > 0 else "below"
    ordered = [line for _, line in sorted(lines, key=lambda one: -one[0])]
    return pd.DataFrame(ordered).fillna("-").rename(columns={"at as many FLOPs": f"{label(method)} at as many FLOPs"})


def shares_by_setting(rows: pd.DataFrame, budgets: Sequence[float], resamples: int = 2000) -> pd.DataFrame:
    """Return the share of full performance with its interval, a row a setting under its class, in percent.

    Parameters
    ----------
    rows : DataFrame
        Rows of `by_setting`, those of "full" among them; those of methods with a final budget are left out.
    budgets : sequence of float
        Which budgets to show; a class falls by the mean over them.
    resamples : int
        Bootstrap resamples of the intervals.
    """
    chosen = rows["budget"].isin(budgets) & (rows["convention"] != "final")
    listed = rows[(chosen | (rows["method"] == "full")) & (rows["method"] != "no-image")]
    shares = share_of_full(listed, ["class", "method", "budget"], resamples=resamples)
    shares = shares[shares["method"] != "full"].set_index(["class", "method", "budget"])[["share", "low", "high"]] * 100
    text = [f"{share:.1f} [{low:.1f}, {high:.1f}]" for share, low, high in shares.to_numpy()]
    wide = shares.assign(text=text)["text"].unstack("budget")[list(budgets)]
    order = shares["share"].unstack("budget").sub(shares["share"].groupby("budget").mean()).mean(axis=1)
    ranks = [(CLASSES.index(str(kind)), -order[kind, method], (kind, method)) for kind, method in wide.index]
    wide = wide.loc[[key for _, _, key in sorted(ranks)]].fillna("-")
    wide.columns = [f"{budget:g} tokens" for budget in budgets]
    return wide.rename(index=label, level="method").reset_index()
