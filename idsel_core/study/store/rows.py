"""The columns of the result store, and the checks of its rows."""

import hashlib
import json
from numbers import Real
from typing import Final

import pandas as pd
import pyarrow as pa

VERSION: Final = 3

_TEXT = ("backbone", "dataset", "split", "question_id", "image_id", "question_type", "method")
_KNOBS = ("importance", "normalise", "features", "update", "instruction")

SCHEMA: Final = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXT),
        *(pa.field(name, pa.string()) for name in _KNOBS),
        pa.field("gamma", pa.float64()),
        pa.field("positions", pa.string(), nullable=False),
        pa.field("budget", pa.float64(), nullable=False),
        pa.field("convention", pa.string()),
        pa.field("tokens_before", pa.int32(), nullable=False),
        pa.field("tokens_kept", pa.int32(), nullable=False),
        pa.field("tokens_average", pa.float64(), nullable=False),
        pa.field("prefill_gflops", pa.float64()),
        pa.field("on_objects", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("prediction", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("correct", pa.float64(), nullable=False),
        pa.field("chance", pa.float64(), nullable=False),
    ]
)
"""Columns of the store. A knob that a method lacks is null. `budget` is what was asked: a share where it is below 1.
`convention` says what a budget means for methods that drop tokens inside the language model. `tokens_kept` are left
after its last layer, `tokens_average` are read by a layer, on average; `prefill_gflops` is its analytic prefill.
`instruction` says whose attention was read, as tokens@layer; `on_objects` is the share of kept tokens on an object."""

CONFIGURATION: Final = (
    "backbone", "dataset", "split", "method", *_KNOBS, "gamma", "positions", "budget", "convention", "seed",
)  # fmt: skip
"""The columns that tell one run of a job from another."""


def _run_ids(job: str, rows: pd.DataFrame) -> pd.Series:
    groups = rows.groupby(list(CONFIGURATION), dropna=False, sort=False)
    names = []
    for key in groups.first().index:
        values = [None if pd.isna(value) else float(value) if isinstance(value, Real) else value for value in key]
        text = json.dumps(values)
        names.append(f"{job}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
    return groups.ngroup().map(dict(enumerate(names)))


def validate(job: str, rows: pd.DataFrame) -> pa.Table:
    """Check rows against the schema and convert them.

    Parameters
    ----------
    job : str
        Name of the job; a run id is made from it and the configuration where the rows carry none.
    rows : DataFrame
        One row a question and run, with the columns of `SCHEMA` (in any order).

    Returns
    -------
    Table
        The same rows with the columns, order and types of `SCHEMA`.

    Raises
    ------
    ValueError
        If columns are missing or unknown, a value has another type, is null or out of range, or a question appears
        twice in a run.
    """
    if rows.empty:
        raise ValueError(f"job {job!r} has no rows")
    missing = [name for name in SCHEMA.names if name not in rows and name != "run_id"]
    unknown = [str(name) for name in rows if name not in SCHEMA.names]
    if missing or unknown:
        raise ValueError(
            f"rows of job {job!r} do not fit the store: missing columns {missing}, unknown columns {unknown}; "
            f"allowed are {SCHEMA.names}"
        )
    if "run_id" not in rows:
        rows = rows.assign(run_id=_run_ids(job, rows))
    arrays = []
    for field in SCHEMA:
        column = rows[field.name]
        if field.name == "correct" and column.dtype == bool:
            column = column.astype(float)
        try:
            array = pa.array(column, type=field.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"column {field.name!r} of job {job!r} holds {column.dtype}, which is not {field.type}: {error}"
            ) from error
        if array.null_count and not field.nullable:
            raise ValueError(f"column {field.name!r} of job {job!r} lacks a value in {array.null_count} rows")
        arrays.append(array)
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    _check_values(job, table.to_pandas())
    return table


def _check_values(job: str, rows: pd.DataFrame) -> None:
    for name in ("correct", "chance", "on_objects"):
        bad = rows.loc[~rows[name].between(0, 1) & rows[name].notna(), name]
        if len(bad):
            raise ValueError(f"column {name!r} of job {job!r} holds {bad.iloc[0]}; allowed is 0 to 1")
    over = rows[~rows["tokens_kept"].between(0, rows["tokens_before"])]
    if len(over):
        first = over.iloc[0]
        raise ValueError(
            f"job {job!r}, question {first['question_id']!r}: tokens_kept is {first['tokens_kept']}; "
            f"allowed is 0 to tokens_before = {first['tokens_before']}"
        )
    twice = rows[rows.duplicated(["run_id", "question_id"])]
    if len(twice):
        first = twice.iloc[0]
        raise ValueError(f"job {job!r} has question {first['question_id']!r} twice in run {first['run_id']!r}")
