"""The store of times: one row a phase of a method."""

from __future__ import annotations

from typing import ClassVar, Final

import pandas as pd
import pyarrow as pa

from idsel_core.study.store.base import Store
from idsel_core.study.store.schema import conform

SELECTION: Final = "select alone"
"""Phase of times of a selection on random tokens, without a model."""


def validate(job: str, rows: pd.DataFrame) -> pa.Table:
    """Check times against the schema and convert them.

    Raises
    ------
    ValueError
        If there are none, columns are missing or unknown, a value has another type or is null where it may not be, or
        quartiles are out of order.
    """
    table = conform(job, rows, "times")
    wrong = rows[~rows["median_ms"].between(rows["low_ms"], rows["high_ms"]) | (rows["low_ms"] < 0)]
    if len(wrong):
        first = wrong.iloc[0]
        raise ValueError(
            f"job {job!r}, {first['method']} {first['phase']}: quartiles must rise from 0 or more, not "
            f"{first['low_ms']:g}, {first['median_ms']:g}, {first['high_ms']:g}"
        )
    return table


class Times(Store):
    """A folder of times, one row a phase of a method; see `Store`."""

    kind: ClassVar[str] = "times"
    _validate = staticmethod(validate)


def selection_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return times of ``benchmarks/peers.py`` as rows of the store of times; methods that were left out have none.

    Parameters
    ----------
    table : DataFrame
        What it wrote with ``--out``.
    """
    table = table[table["left_out"] == ""]
    return pd.DataFrame(
        {
            "backbone": "random tokens",
            "method": table["method"],
            "budget": table["budget"].astype(float),
            "phase": SELECTION,
            "median_ms": table["ms"],
            "low_ms": table["low"],
            "high_ms": table["high"],
            "runs": table["rounds"],
            "warmup": 1,
            "batch": 1,
            "images": 1,
            "tokens_before": table["tokens"],
            "kept_tokens": table["budget"],
            "prompt_tokens": 0,
            "average_tokens": table["budget"].astype(float),
            "new_tokens": 0,
            "attention": "none",
            "device": table["device"],
            "dtype": "float32",
            "threads": table["threads"],
            "torch": table["torch"],
            "transformers": table["transformers"],
        }
    )
