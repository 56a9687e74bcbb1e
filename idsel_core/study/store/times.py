"""The store of times: one parquet file a job, one row a phase of a method, beside the results of questions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsel_core.study.store.files import CorruptResult, digest, write_table

FOLDER: Final = "times"
"""Folder of the times within a result store."""

SELECTION: Final = "select alone"
"""Phase of times of a selection on random tokens, without a model."""

SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("backbone", "method")),
        pa.field("budget", pa.float64()),
        pa.field("convention", pa.string()),
        pa.field("phase", pa.string(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in ("median_ms", "low_ms", "high_ms")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("runs", "warmup", "batch", "images")),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("tokens_before", "kept_tokens", "prompt_tokens")),
        pa.field("average_tokens", pa.float64(), nullable=False),
        pa.field("new_tokens", pa.int64(), nullable=False),
        pa.field("flops", pa.float64()),
        pa.field("cache_bytes", pa.int64()),
        pa.field("peak_bytes", pa.int64()),
        pa.field("over_ideal", pa.float64()),
        pa.field("over_full", pa.float64()),
        *(pa.field(name, pa.string(), nullable=False) for name in ("attention", "device", "dtype")),
        pa.field("threads", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("torch", "transformers")),
    ]
)
"""Columns of a job's times; what they mean tells `idsel_core.study.timing.records.Timing`. `flops` and `budget` are null where they
are not known, `peak_bytes` where the device does not say it."""


class Times:
    """The times of a result store: ``times/<job>.parquet`` with rows, ``times/<job>.json`` with their provenance.

    Parameters
    ----------
    root : str or Path
        The folder of the result store; made by the first `write`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root) / FOLDER

    def write(self, job: str, rows: pd.DataFrame, provenance: Mapping[str, Any]) -> Path:
        """Store the rows of a job in place of what it had stored before; all of them or none.

        Parameters
        ----------
        job : str
            Name of the job: letters, digits, `_`, `-`.
        rows : DataFrame
            With the columns of `SCHEMA`; those that may be null may be missing.
        provenance : Mapping
            What `idsel_core.study.store.provenance.provenance` returns.

        Raises
        ------
        ValueError
            If the name or the rows are not valid.
        OSError
            If a file cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", job):
            raise ValueError(f"{job!r} is no name for a job; allowed are letters, digits, '_' and '-'")
        table, path = validate(job, rows), self.root / f"{job}.parquet"
        write_table(path, table, {"rows": len(table), **provenance})
        return path

    def jobs(self) -> list[str]:
        """Return the names of the stored jobs, sorted."""
        return sorted(path.stem for path in self.root.glob("*.parquet") if not path.name.startswith("."))

    def frame(self, job: str) -> pd.DataFrame:
        """Return the rows of a job.

        Raises
        ------
        KeyError
            If there is no such job.
        CorruptResult
            If its file cannot be read.
        """
        frame: pd.DataFrame = self._read(job).to_pandas()
        return frame

    def provenance(self, job: str) -> dict[str, Any]:
        """Return what was given to `write`, with the number of rows; raises as `frame`."""
        note: dict[str, Any] = json.loads(self._read(job).schema.metadata[b"idsel_provenance"])
        return note

    def origin(self, *jobs: str, **parameters: Any) -> dict[str, Any]:
        """Describe what a figure is drawn from, for `figures.save`, as `Results.origin` does; raises as `frame`."""
        return {"parameters": parameters, "results": {f"{FOLDER}/{job}": self._origin(job) for job in jobs}}

    def _origin(self, job: str) -> dict[str, Any]:
        table = self._read(job)
        note = json.loads(table.schema.metadata[b"idsel_provenance"])
        known = {name: note[name] for name in ("commit", "dirty", "parameters", "files", "device") if name in note}
        return {"rows": len(table), "sha256": digest(table), **known}

    def _read(self, job: str) -> pa.Table:
        if job not in self.jobs():
            raise KeyError(f"no times of job {job!r} in {self.root}; stored are {self.jobs()}")
        path = self.root / f"{job}.parquet"
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise CorruptResult(f"{path} cannot be read ({error}); delete it and measure again") from error
        if not table.schema.equals(SCHEMA):
            raise CorruptResult(f"{path} has other columns than this code reads; delete it and measure again")
        return table


def validate(job: str, rows: pd.DataFrame) -> pa.Table:
    """Check times against `SCHEMA` and convert them.

    Raises
    ------
    ValueError
        If there are none, columns are missing or unknown, a value has another type or is null where it may not be, or
        quartiles are out of order.
    """
    if rows.empty:
        raise ValueError(f"job {job!r} has no times")
    missing = [field.name for field in SCHEMA if field.name not in rows and not field.nullable]
    unknown = [str(name) for name in rows if name not in SCHEMA.names]
    if missing or unknown:
        raise ValueError(
            f"times of job {job!r} do not fit the store: missing columns {missing}, unknown columns {unknown}; "
            f"allowed are {SCHEMA.names}"
        )
    arrays = []
    for field in SCHEMA:
        column = rows[field.name] if field.name in rows else pd.Series([None] * len(rows), dtype=object)
        try:
            array = pa.array(column, type=field.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"column {field.name!r} of job {job!r} is not {field.type}: {error}") from error
        if array.null_count and not field.nullable:
            raise ValueError(f"column {field.name!r} of job {job!r} lacks a value in {array.null_count} rows")
        arrays.append(array)
    wrong = rows[~rows["median_ms"].between(rows["low_ms"], rows["high_ms"]) | (rows["low_ms"] < 0)]
    if len(wrong):
        first = wrong.iloc[0]
        raise ValueError(
            f"job {job!r}, {first['method']} {first['phase']}: quartiles must rise from 0 or more, not "
            f"{first['low_ms']:g}, {first['median_ms']:g}, {first['high_ms']:g}"
        )
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


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
