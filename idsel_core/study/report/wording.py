"""How differences of accuracy are put into words: what their intervals allow, and no more."""

from __future__ import annotations

from idsel_core.study.report.bootstrap import Interval


def points(interval: Interval) -> str:
    """Say a difference of accuracies in percentage points, with its interval."""
    return f"{100 * interval.mean:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def verdict(interval: Interval) -> str:
    """Say which way a difference points: its interval decides."""
    if interval.low > 0:
        return "above"
    return "below" if interval.high < 0 else "not told apart from"


def gamma_name(gamma: float) -> str:
    """Return a gamma as it is written in the code; rows hold -1 for "auto"."""
    return "auto" if gamma < 0 else f"{gamma:g}"
