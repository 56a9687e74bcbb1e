"""The checks of a job's rows, one a question and run."""

import hashlib
import json
from numbers import Real
from typing import Final

import pandas as pd
import pyarrow as pa

from idsel_core.study.store.schema import SCHEMAS, conform

SCHEMA: Final = SCHEMAS["rows"]
CONFIGURATION: Final = (
    "backbone", "revision", "dtype", "template", "dataset", "split", "method", "importance", "normalise", "features",
    "update", "instruction", "gamma", "positions", "budget", "convention", "knobs", "conversation", "seed",
)  # fmt: skip
"""The columns that tell one run of a job from another."""


def _run_ids(job: str, rows: pd.DataFrame) -> pd.Series:
    groups = rows.groupby(list(CONFIGURATION), dropna=False, sort=False)
    names = []
    for key in groups.first().index:
        values = [None if pd.isna(value) else float(value) if isinstance(value, Real) else value for value in key]
        names.append(f"{job}-{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}")
    return groups.ngroup().map(dict(enumerate(names)))


def validate(job: str, rows: pd.DataFrame) -> pa.Table:
    """Check rows against the schema and convert them.

    Parameters
    ----------
    job : str
        Name of the job; where the rows carry no `run_id`, it is made from the name and `CONFIGURATION`.
    rows : DataFrame
        One row a question and run; a column that allows null may be missing.

    Returns
    -------
    Table
        The same rows with the columns, order and types of `SCHEMA`.

    Raises
    ------
    ValueError
        If there are no rows, columns are missing or unknown, a value has another type, is null or out of range, or a
        question appears twice in a run.
    """
    if "run_id" not in rows:
        rows = rows.assign(run_id=_run_ids(job, rows.reindex(columns=list(CONFIGURATION))))
    if "correct" in rows and rows["correct"].dtype == bool:
        rows = rows.assign(correct=rows["correct"].astype(float))
    table = conform(job, rows, "rows")
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
