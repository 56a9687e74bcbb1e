"""Tables of the efficiency study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from idsel_core.methods import get_method
from idsel_core.study.cost import flops_analytic, flops_paper, read_config
from idsel_core.study.dataset import FULL
from idsel_core.study.report.efficiency import PHASES, totals
from idsel_core.study.report.efficiency_sentences import about_efficiency
from idsel_core.study.report.table_text import to_markdown
from idsel_core.study.report.theme import label
from idsel_core.study.timing.records import END_TO_END, IDEAL, Timing, circumstances


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
    shown["faster without the tower"] = (full["after_encode"] / table["after_encode"]).map("{:.1f}x".format)
    shown["cache, KiB"] = (table["cache_bytes"] / 2**10).map("{:.0f}".format)
    return shown


def ideal_table(times: pd.DataFrame) -> pd.DataFrame:
    """Return the time of whole answers under a method as multiples of prompts cut by hand, and of full ones.

    Parameters
    ----------
    times : DataFrame
        Rows of `idsel_core.study.timing.ideal.time_ideal`.

    Returns
    -------
    DataFrame
        One row a budget. "low" and "high" are the 95 % interval of "over ideal", NaN for fewer than six turns.
        "FLOPs over ideal" is what "over ideal" would be if time went by FLOPs alone; NaN where they are not known.
    """
    whole = times[times["phase"] == END_TO_END]
    if whole.empty:
        return pd.DataFrame()
    named = whole[~whole["method"].isin([IDEAL, FULL])].set_index("budget")
    by_role = whole.assign(role=whole["method"].where(whole["method"].isin([IDEAL, FULL]), "method"))
    clock, flops = (
        by_role.pivot(index="budget", columns="role", values=values).loc[named.index].astype(float)
        for values in ("median_ms", "flops")
    )
    return pd.DataFrame(
        {
            "method": named["method"].map(label),
            "visual tokens": named["kept_tokens"],
            "answer, ms": clock["method"],
            "ideal, ms": clock[IDEAL],
            "all tokens, ms": clock[FULL],
            "over ideal": named["over_ideal"],
            "low": named["over_ideal_low"].astype(float),
            "high": named["over_ideal_high"].astype(float),
            "FLOPs over ideal": flops["method"] / flops[IDEAL],
            "over all tokens": named["over_full"],
        }
    ).reset_index(drop=True)


def claims_table(claims: Sequence[Sequence[Any]], text_tokens: int, method: str) -> pd.DataFrame:
    """Return what published claims of saved FLOPs come to, by the literature's formula and true to configurations.

    Parameters
    ----------
    claims : sequence
        Of each claim: a name of `list_architectures`, height and width of the image in pixels, all tokens as the paper
        counts them, and those kept.
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
        config, _ = read_config(Path(name))
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


def printed_claims(table: pd.DataFrame) -> pd.DataFrame:
    """Return `claims_table` as text."""
    shown = table.copy()
    for name in map(str, table):
        if name.endswith(", saved"):
            shown[name] = table[name].map("{:.2%}".format)
        elif name.endswith(", times fewer"):
            shown[name] = table[name].map("{:.2f}".format)
    return shown


def about_measured(times: pd.DataFrame, method: str = "idselection") -> str:
    """Say what the table of FLOPs and times says, and on what it was measured.

    Parameters
    ----------
    times : DataFrame
        As for `totals`.
    method : str
        Whose budgets are listed.
    """
    first = times[times["phase"] == "prefill"].iloc[0]
    timing = Timing(**{name: first[name] for name in Timing.__dataclass_fields__})
    return f"{about_efficiency(times, method)} Measured on {circumstances(timing)}."


def summary(times: pd.DataFrame, method: str = "idselection") -> str:
    """Return the table of FLOPs and times and what it says, as Markdown; arguments as of `about_measured`."""
    return f"{to_markdown(efficiency_table(times, method))}\n\n{about_measured(times, method)}"
