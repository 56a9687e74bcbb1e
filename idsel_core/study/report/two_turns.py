"""What a second question loses where tokens were picked for the first one: table and sentences."""

from __future__ import annotations

import pandas as pd

from idsel_core.study.dataset import FULL
from idsel_core.study.report.bootstrap import Interval, bootstrap_mean, paired_difference, paired_scores
from idsel_core.study.report.theme import label
from idsel_core.study.report.wording import points, verdict
from idsel_core.study.two_turns import ALONE, ANEW, KEPT

SETTINGS = {"": "with the first turn", ALONE: "without the first turn"}
"""What prompts hold, by the end of the store's column `conversation`."""


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _all_tokens(rows: pd.DataFrame, left_out: str) -> pd.Series:
    return paired_scores(rows[rows["method"] == FULL], ["conversation"])[ANEW + left_out]


def two_turns_table(rows: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Return the accuracy of second questions in percent, and the paired differences, with 95 % intervals.

    Parameters
    ----------
    rows : DataFrame
        Rows of `ask_second_questions`, those of "full" among them.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        prompt, method, budget, kept (picks of the first question), anew (its own), all tokens, anew - kept.
    """
    lines = []
    for left_out, setting in SETTINGS.items():
        whole = bootstrap_mean(_all_tokens(rows, left_out), resamples=resamples)
        for (method, _), part in rows[rows["method"] != FULL].groupby(["method", "budget"], sort=False):
            scores = paired_scores(part, ["conversation"])
            kept, anew = scores[KEPT + left_out], scores[ANEW + left_out]
            lines.append(
                {
                    "prompt": setting,
                    "method": label(str(method)),
                    "budget": int(part["budget"].iloc[0]),
                    "picks of the first question": _percent(bootstrap_mean(kept, resamples=resamples)),
                    "picks of its own": _percent(bootstrap_mean(anew, resamples=resamples)),
                    "all tokens": _percent(whole),
                    "own above first": points(paired_difference(anew, kept, resamples=resamples)),
                }
            )
    return pd.DataFrame(lines)


def about_two_turns(rows: pd.DataFrame, resamples: int = 2000) -> str:
    """Say, for each budget and kind of prompt, for which methods a second question needs picks of its own."""
    lines = []
    for left_out, setting in SETTINGS.items():
        whole = _all_tokens(rows, left_out)
        lines.append(f"- **{setting[0].upper()}{setting[1:]}**: with all tokens {100 * whole.mean():.1f} % are right.")
        for budget, part in rows[rows["method"] != FULL].groupby("budget", sort=False):
            said: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
            for method, of_method in part.groupby("method", sort=False):
                scores = paired_scores(of_method, ["conversation"])
                gap = paired_difference(scores[ANEW + left_out], scores[KEPT + left_out], resamples=resamples)
                said[verdict(gap)].append(f"{label(str(method))} ({points(gap)})")
            found = "; ".join(f"{word} those of the first for {', '.join(who)}" for word, who in said.items() if who)
            lines.append(f"  - {budget:g} tokens: picks of its own are {found}.")
    return "\n".join(lines)
