"""Two ways of asking the same questions, side by side: means, the paired difference, and who is above whom."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from idsel_core.study.report.bootstrap import bootstrap_mean, paired_difference, paired_scores
from idsel_core.study.report.significance import holm, sign_flip_test


def paired_table(
    rows: pd.DataFrame, by: Sequence[str], column: str, first: str, second: str, resamples: int = 2000
) -> pd.DataFrame:
    """Compare two values of a column on the same questions, in each setting.

    Parameters
    ----------
    rows : DataFrame
        Rows of the store, or others with question_type, question_id, correct, `by` and `column`.
    by : sequence of str
        The columns that tell settings apart.
    column, first, second : str
        The column, and the two of its values that are compared.
    resamples : int
        Bootstrap resamples of the intervals.

    Returns
    -------
    DataFrame
        `by`, questions, the accuracy of both in percent with 95 % intervals, difference (second less first, in points,
        with its paired interval), and outcome: "above" or "below" where the p-value of the paired test, after Holm's
        correction over the table, is under 0.05, else "tie".

    Raises
    ------
    ValueError
        If a setting lacks one of the two, or some of its questions.
    """
    lines, p_values, means = [], [], []
    for key, part in rows.groupby(list(by), sort=False, dropna=False):
        scores = paired_scores(part, [column])
        lacking = [value for value in (first, second) if value not in scores]
        if lacking:
            raise ValueError(f"{dict(zip(by, key, strict=True))} has no rows with {column} {lacking[0]!r}")
        gap = paired_difference(scores[second], scores[first], resamples=resamples)
        line = dict(zip(by, key, strict=True)) | {"questions": len(scores)}
        for value in (first, second):
            mean = bootstrap_mean(scores[value], resamples=resamples)
            line[value] = f"{100 * mean.mean:.1f} [{100 * mean.low:.1f}, {100 * mean.high:.1f}]"
        line["difference"] = f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        lines.append(line)
        means.append(gap.mean)
        p_values.append(sign_flip_test(scores[second] - scores[first]))
    outcome = [
        "tie" if p >= 0.05 else "above" if mean > 0 else "below" for p, mean in zip(holm(p_values), means, strict=True)
    ]
    return pd.DataFrame(lines).assign(outcome=outcome)
