"""The result store: one parquet file a job, one row a question, and where the numbers came from."""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Real
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

VERSION: Final = 2

_TEXT = ("backbone", "dataset", "part", "question_id", "image_id", "family", "method")
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
    "backbone", "dataset", "part", "method", *_KNOBS, "gamma", "positions", "budget", "convention", "seed",
)  # fmt: skip
"""The columns that tell one run of a job from another."""

_PACKAGES = ("idsel_core", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow", "papermill")


class CorruptResult(ValueError):
    """A file of the store that cannot be read, or does not hold what the store writes."""


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


def _replace(path: Path, content: pa.Table | str) -> None:
    """Write a file that is there whole or not at all, also after a power cut."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, str):
                file.write(content.encode())
            else:
                pq.write_table(content, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Results:
    """A folder of results: `<job>.parquet` with the rows and `<job>.json` with their provenance.

    Parameters
    ----------
    root : str or Path
        The folder; made by the first `write`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def write(self, job: str, rows: pd.DataFrame, provenance: Mapping[str, Any]) -> Path:
        """Store the rows of a job in place of what it had stored before.

        Nothing is written unless all of it is valid, and a reader sees either the old rows or the new ones.

        Parameters
        ----------
        job : str
            Name of the job: letters, digits, `_`, `-`.
        rows : DataFrame
            One row a question and run, see `validate`.
        provenance : Mapping
            What `provenance` returns.

        Returns
        -------
        Path
            The parquet file.

        Raises
        ------
        ValueError
            If the name or the rows are not valid.
        TypeError
            If the provenance cannot be written as JSON.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", job):
            raise ValueError(f"{job!r} is no name for a job; allowed are letters, digits, '_' and '-'")
        table = validate(job, rows)
        note = json.dumps({"schema": VERSION, "rows": len(table), **provenance}, indent=1, sort_keys=True)
        # The provenance travels inside the parquet file as well, so that rows and origin change in one step.
        table = table.replace_schema_metadata({"idsel_schema": str(VERSION), "idsel_provenance": note})
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{job}.parquet"
        _replace(path, table)
        _replace(path.with_suffix(".json"), note + "\n")
        return path

    def jobs(self) -> list[str]:
        """Return the names of the stored jobs, sorted."""
        return sorted(path.stem for path in self.root.glob("*.parquet") if not path.name.startswith("."))

    def _read(self, job: str) -> pa.Table:
        if job not in self.jobs():
            raise KeyError(f"no job {job!r} in {self.root}; stored are {self.jobs()}")
        path = self.root / f"{job}.parquet"
        remedy = f"delete {path} and run `make figures` to build it again"
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise CorruptResult(f"{path} cannot be read ({error}); {remedy}") from error
        found = (table.schema.metadata or {}).get(b"idsel_schema", b"none").decode()
        if found != str(VERSION) or not table.schema.equals(SCHEMA):
            raise CorruptResult(f"{path} has schema version {found}, this code reads {VERSION}; {remedy}")
        return table

    def provenance(self, job: str) -> dict[str, Any]:
        """Return where the rows of a job came from.

        Parameters
        ----------
        job : str
            Name of a stored job.

        Returns
        -------
        dict
            What was given to `write`, with the schema version and the number of rows.

        Raises
        ------
        KeyError
            If there is no such job.
        CorruptResult
            If its file cannot be read.
        """
        return json.loads(self._read(job).schema.metadata[b"idsel_provenance"])

    def frame(self, job: str | None = None, **filters: Any) -> pd.DataFrame:
        """Return stored rows as one tidy table.

        Parameters
        ----------
        job : str, optional
            The job to read; all of them by default.
        **filters
            Column = value, or column = list of values, that the rows must have.

        Returns
        -------
        DataFrame
            The columns of `SCHEMA` and, first, `job`.

        Raises
        ------
        KeyError
            If there is no such job or column.
        ValueError
            If nothing is stored, no row is left by the filters, or two files hold the same question of the same run.
        CorruptResult
            If a file cannot be read.
        """
        unknown = sorted(set(filters) - set(SCHEMA.names))
        if unknown:
            raise KeyError(f"unknown columns {unknown}; the store has {SCHEMA.names}")
        jobs = self.jobs() if job is None else [job]
        if not jobs:
            raise ValueError(f"no results in {self.root}; run `make figures` first")
        rows = pd.concat([self._read(name).to_pandas().assign(job=name) for name in jobs], ignore_index=True)
        keys = ["run_id", "question_id"]
        twice = rows[rows.duplicated(keys, keep=False)].sort_values(keys, kind="stable").head(2)
        if len(twice):
            run, question = twice.iloc[0][keys]
            files = " and ".join(str(self.root / f"{name}.parquet") for name in twice["job"])
            raise ValueError(f"run {run!r}, question {question!r} is stored twice, in {files}; delete one of them")
        for name, wanted in filters.items():
            kept = rows[rows[name].isin(wanted if isinstance(wanted, list | tuple | set) else [wanted])]
            if kept.empty:
                raise ValueError(f"no rows with {name} = {wanted!r}; there are {sorted(rows[name].dropna().unique())}")
            rows = kept
        return rows[["job", *SCHEMA.names]].reset_index(drop=True)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance(
    parameters: Mapping[str, Any],
    files: Iterable[str | Path] = (),
    *,
    device: str = "cpu",
    seed: int = 0,
    started: float | None = None,
) -> dict[str, Any]:
    """Describe how rows are being made, for `Results.write`.

    Parameters
    ----------
    parameters : Mapping
        The parameters of the notebook or command.
    files : iterable of str or Path
        Weights and data that the rows depend on; their SHA-256 is noted.
    device : str
        What the model ran on, e.g. "cpu" or the name of the GPU.
    seed : int
        Seed of the job.
    started : float, optional
        `time.perf_counter()` at the job's start, for the wall time.

    Returns
    -------
    dict
        Ready for JSON. `dirty` tells of uncommitted changes, those to figures, tables, results and README apart,
        and is None outside a git checkout, as is `commit`.

    Raises
    ------
    FileNotFoundError
        If one of the files is not there.
    """
    outputs = [f":(top,exclude){name}" for name in ("figures", "tables", "results", "README.md")]
    changed = _git("status", "--porcelain", "--", ":(top)", *outputs)
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "parameters": dict(parameters),
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "seed": seed,
        "files": {Path(path).name: sha256(path) for path in files},
        "seconds": None if started is None else round(time.perf_counter() - started, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
