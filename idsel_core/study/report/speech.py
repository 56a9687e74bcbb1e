"""Word error rates of transcripts from a part of a clip's tokens: intervals, figure, table and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from idsel_core.study.dataset import FULL
from idsel_core.study.metrics.word_errors import normalised_words, word_errors
from idsel_core.study.report import palette, theme
from idsel_core.study.report.bootstrap import interval_bounds, resampled_means

GENERATED = "espeak-ng"
_SETTING = ["method", "budget", "silence"]


def word_error_rates(rows: pd.DataFrame, resamples: int = 2000, level: float = 0.95) -> pd.DataFrame:
    """Return the word error rate of each setting, and how far it lies from that of the uniform grid.

    The rate is the number of errors in all clips over the number of words in all clips. Clips are resampled together
    for all settings of a model, so differences are paired.

    Parameters
    ----------
    rows : DataFrame
        Rows of `transcribe`, of one or several models and kinds of speech.
    resamples : int
        Bootstrap resamples of clips.
    level : float
        Coverage of the intervals.

    Returns
    -------
    DataFrame
        backbone, split, method, budget, silence; rate, low, high; gap, gap_low, gap_high: rate minus that of the
        uniform grid at the same share and silence, NaN where there is none; clips, words.
    """
    texts = rows[["answer", "prediction"]].drop_duplicates()
    counted = {(answer, said): word_errors(answer, said) for answer, said in texts.itertuples(index=False, name=None)}
    silence = rows["knobs"].fillna("").str.extract(r"silence='(\w+)'", expand=False).fillna("thinned")
    errors = [counted[pair] for pair in zip(rows["answer"], rows["prediction"], strict=True)]
    rows = rows.assign(errors=errors, silence=silence)
    words = {answer: len(normalised_words(answer).split()) for answer in rows["answer"].unique()}
    parts = []
    for (backbone, split), part in rows.groupby(["backbone", "split"], sort=False):
        rates = _rates(part, words, resamples, level)
        rates["backbone"], rates["split"] = str(backbone), str(split)
        parts.append(rates)
    return pd.concat(parts, ignore_index=True)


def _rates(rows: pd.DataFrame, words: dict[str, int], resamples: int, level: float) -> pd.DataFrame:
    table = rows.pivot(index="question_id", columns=_SETTING, values="errors")
    if table.isna().any(axis=None):
        raise ValueError("settings were asked about different clips, so they cannot be paired")
    count = rows.drop_duplicates("question_id").set_index("question_id")["answer"].map(words).loc[table.index]
    means = resampled_means(np.column_stack([table.to_numpy(), count.to_numpy()]), resamples)
    drawn = means[:, :-1] / means[:, -1:]
    rate = table.to_numpy().sum(0) / count.sum()
    low, high = interval_bounds(drawn, level)
    settings: list[Any] = list(table.columns)
    lines: list[dict[str, Any]] = []
    for place, (method, budget, silence) in enumerate(settings):
        line: dict[str, Any] = {"method": method, "budget": budget, "silence": silence}
        line |= {"rate": rate[place], "low": low[place], "high": high[place], "clips": len(table), "words": count.sum()}
        other = ("uniform", budget, silence)
        if other in settings and method != "uniform":
            at = settings.index(other)
            bounds = interval_bounds(drawn[:, [place]] - drawn[:, [at]], level)[:, 0]
            line |= {"gap": rate[place] - rate[at], "gap_low": bounds[0], "gap_high": bounds[1]}
        lines.append(line)
    return pd.DataFrame(lines).reindex(
        columns=[*_SETTING, "rate", "low", "high", "gap", "gap_low", "gap_high", "clips", "words"]
    )


def speech_figure(rates: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw the word error rate against the share of a clip's tokens that is kept, one panel a model.

    Parameters
    ----------
    rates : DataFrame
        As of `word_error_rates`; the generated speech is drawn.
    methods : sequence of str
        Which methods.
    """
    rates = rates[(rates["split"] == GENERATED) & (rates["silence"] == "thinned")]
    models, styles = list(rates["backbone"].unique()), theme.styles(methods)
    figure, axes = plt.subplots(
        1, len(models), figsize=(theme.PAGE, 3.0), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, model in zip(axes[0], models, strict=True):
        part = rates[rates["backbone"] == model]
        whole = part[part["method"] == FULL]
        axis.axhline(whole["rate"].item(), color=palette.FAINT, linestyle="--", label=theme.label(FULL))
        axis.axhspan(whole["low"].item(), whole["high"].item(), color=palette.FAINT, alpha=0.12, linewidth=0)
        for method in methods:
            theme.plot_band(
                axis, part[part["method"] == method], "budget", "rate", theme.label(method), **styles[method]
            )
        shares = sorted(part.loc[part["method"] != FULL, "budget"].unique())
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(shares))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))
        axis.set_title(model, fontsize=9)
        axis.set_xlabel("share of a clip's tokens kept")
    theme.percent_axis(axes[0, 0].yaxis)
    axes[0, 0].set_ylabel("word error rate")
    axes[0, 0].set_ylim(bottom=0)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(methods) + 1)
    asked = rates.iloc[0]
    figure.set_label("Word error rate against the audio tokens kept, a panel a model")
    theme.add_note(
        figure,
        f"{asked['clips']} sentences said by {GENERATED}, {asked['words']:g} words; 95 % intervals over sentences",
    )
    return figure


def speech_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Return word error rates in percent with intervals: a line a setting, a column a model and kind of speech."""
    rates = rates.assign(
        said=[_percent(*values) for values in rates[["rate", "low", "high"]].to_numpy()],
        asked=rates["backbone"] + ", " + rates["split"],
    )
    order = list(dict.fromkeys(zip(rates["method"], rates["budget"], rates["silence"], strict=True)))
    order.sort(key=lambda one: (one[0] != FULL, one[2] != "thinned", -one[1]))
    wide = rates.pivot(index=_SETTING, columns="asked", values="said").loc[order, list(rates["asked"].unique())]
    wide = wide.reset_index()
    wide["silence"] = [
        "all kept" if method == FULL else rule for method, rule in zip(wide["method"], wide["silence"], strict=True)
    ]
    wide["method"] = wide["method"].map(theme.label)
    wide["budget"] = [f"{100 * share:.4g} %" for share in wide["budget"]]
    wide.columns.name = None
    return wide.rename(columns={"budget": "tokens kept", "silence": "silence behind the clip"})


def about_speech(rates: pd.DataFrame) -> str:
    """Say, for each model and share, which method makes fewest errors on generated speech, and how it compares."""
    lines = []
    shown = rates[(rates["split"] == GENERATED) & (rates["silence"] == "thinned")]
    for model, part in shown.groupby("backbone", sort=False):
        whole = part[part["method"] == FULL].iloc[0]
        lines.append(f"- **{model}**: {_percent(whole['rate'], whole['low'], whole['high'])} with all tokens.")
        for _, here in part[part["method"] != FULL].groupby("budget", sort=False):
            best = here.sort_values("rate", kind="stable").iloc[0]
            kept, name = f"{100 * best['budget']:.4g} % kept", theme.label(best["method"])
            text = f"  - {kept}: {name} has the lowest rate, {100 * best['rate']:.1f} %."
            ours = here[here["method"] == "idselection"]
            if len(ours) and ours["gap"].notna().all():
                one = ours.iloc[0]
                text += (
                    f" ID-Selection has {100 * one['rate']:.1f} %, {_verdict(one)} uniform "
                    f"({100 * one['gap']:+.1f} points [{100 * one['gap_low']:+.1f}, {100 * one['gap_high']:+.1f}])."
                )
            lines.append(text)
    return "\n".join(lines)


def _verdict(line: pd.Series) -> str:
    if line["gap_high"] < 0:
        return "fewer errors than"
    return "more errors than" if line["gap_low"] > 0 else "not told apart from"


def _percent(rate: float, low: float, high: float) -> str:
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
