"""The result store: one parquet file a job, one row a question, and where the numbers came from.

Tell what a figure was drawn from, and whether the store still holds the same rows; or bring a store of an older version
up to the present one:

    python -m idsel_core.results explain figures/gamma.png
    python -m idsel_core.results migrate results
"""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from idsel_core.provenance import read_origin

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


def replace(path: Path, content: pa.Table | str | bytes) -> None:
    """Write a file that is there whole or not at all, also after a power cut, and whoever else writes it.

    Parameters
    ----------
    path : Path
        The file, in a folder that exists.
    content : Table, str or bytes
        Rows for a parquet file, or what else to write.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is untouched.
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        if _abandoned(leftover):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with temporary.open("xb") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if isinstance(content, str | bytes):
                file.write(content.encode() if isinstance(content, str) else content)
            else:
                pq.write_table(content, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; what was stored before is untouched", str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _abandoned(temporary: Path) -> bool:
    """Tell whether the process that wrote a temporary file is gone; a living one holds a lock on it."""
    try:
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _from_1(table: pa.Table) -> pa.Table:
    """Add what version 1 lacked: it had no methods inside the language model, so that all layers read what is kept."""
    known = {"tokens_average": table["tokens_kept"].cast(pa.float64())}
    lacking = {
        name: pa.nulls(len(table), SCHEMA.field(name).type) for name in SCHEMA.names if name not in table.schema.names
    }
    columns = {**lacking, **{name: table[name] for name in table.schema.names}, **known}
    return pa.Table.from_arrays(
        [columns[name] for name in SCHEMA.names], schema=SCHEMA.with_metadata(table.schema.metadata)
    )


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise CorruptResult(
            f"{path} cannot be read ({error}); delete {path} and run `make figures` or `make sweep` again"
        ) from error


def _encoded(batch: pa.RecordBatch) -> pa.Table:
    """Encode texts as dictionaries, which keeps millions of rows small."""
    arrays = [column.dictionary_encode() if pa.types.is_string(column.type) else column for column in batch.columns]
    return pa.Table.from_arrays(arrays, names=batch.schema.names)


def _runs(path: Path) -> list[str]:
    column = pq.read_table(path, columns=["run_id"], read_dictionary=["run_id"], partitioning=None)["run_id"]
    return column.unique().to_pylist()


def _questions(path: Path, run: str) -> list[str]:
    return (
        ds.dataset(path).to_table(columns=["question_id"], filter=ds.field("run_id") == run)["question_id"].to_pylist()
    )


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

        Nothing is written unless all of it is valid, and a reader sees either the old rows or the new ones. The job's
        checkpoints are deleted.

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
        OSError
            If a file cannot be written.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", job):
            raise ValueError(f"{job!r} is no name for a job; allowed are letters, digits, '_' and '-'")
        table, path = validate(job, rows), self.root / f"{job}.parquet"
        write_table(path, table, {"schema": VERSION, "rows": len(table), **provenance}, idsel_schema=str(VERSION))
        self._forget(job)
        return path

    def checkpoint(self, job: str) -> Path:
        """Return the folder where a job keeps its rows until `write` stores them all, for `Study.run`."""
        return self.root / ".checkpoints" / job

    def _forget(self, job: str) -> None:
        shutil.rmtree(self.checkpoint(job), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.checkpoint(job).parent.rmdir()

    def jobs(self) -> list[str]:
        """Return the names of the stored jobs, sorted."""
        return sorted(path.stem for path in self.root.glob("*.parquet") if not path.name.startswith("."))

    def check(self, *jobs: str) -> None:
        """See whether rows could be written, and whether a crash left damaged files; all of them are read.

        Parameters
        ----------
        *jobs : str
            The jobs; those that are not stored are left out.

        Raises
        ------
        CorruptResult
            If files cannot be read; names all of them.
        PermissionError
            If the folder, or where it would be made, cannot be written to.
        """
        folder = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        if not os.access(folder, os.W_OK):
            raise PermissionError(
                errno.EACCES, "rows could not be stored: the folder cannot be written to", str(folder)
            )
        damaged = []
        for job in sorted(set(jobs) & set(self.jobs())):
            try:
                self._read(job)
            except CorruptResult as error:
                damaged.append((job, error))
        if damaged:
            paths = " ".join(str(self.root / f"{job}.parquet") for job, _ in damaged)
            raise CorruptResult(f"{damaged[0][1]}; all damaged files: {paths}" if len(damaged) > 1 else damaged[0][1])

    def _read(self, job: str) -> pa.Table:
        if job not in self.jobs():
            raise KeyError(f"no job {job!r} in {self.root}; stored are {self.jobs()}")
        path = self.root / f"{job}.parquet"
        remedy = f"delete {path} and run `make figures` or `make sweep` again"
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise CorruptResult(f"{path} cannot be read ({error}); {remedy}") from error
        found = (table.schema.metadata or {}).get(b"idsel_schema", b"none").decode()
        if found == "1":
            table = _from_1(table)
        if found not in ("1", str(VERSION)) or not table.schema.equals(SCHEMA):
            raise CorruptResult(f"{path} has schema version {found}, this code reads {VERSION}; {remedy}")
        return table

    def migrate(self) -> list[Path]:
        """Write files of an older schema version anew, in the present one.

        Returns
        -------
        list of Path
            The files that were old.

        Raises
        ------
        CorruptResult
            If a file cannot be read; those before it are migrated.
        """
        paths = [self.root / f"{job}.parquet" for job in self.jobs()]
        tables = {path: self._read(path.stem) for path in paths if _schema(path) != SCHEMA}
        for path, table in tables.items():
            note = json.loads(table.schema.metadata[b"idsel_provenance"]) | {"schema": VERSION}
            write_table(path, table, note, idsel_schema=str(VERSION))
        return list(tables)

    def dataset(self, *jobs: str) -> ds.Dataset:
        """Return stored rows without reading them, for queries that filter and choose columns.

        Parameters
        ----------
        *jobs : str
            The jobs; all of them by default.

        Raises
        ------
        KeyError, ValueError, CorruptResult
            As for `frame`.
        """
        names = list(jobs) or self.jobs()
        if not names:
            raise ValueError(f"no results in {self.root}; run `make figures` first")
        lost = sorted(set(names) - set(self.jobs()))
        if lost:
            raise KeyError(f"no job {lost[0]!r} in {self.root}; stored are {self.jobs()}")
        paths = [self.root / f"{name}.parquet" for name in names]
        present = [path for path in paths if _schema(path) == SCHEMA]
        parts = [ds.dataset(self._read(path.stem)) for path in paths if path not in present]
        parts += [ds.dataset(present, schema=SCHEMA)] if present else []
        self._refuse_twice(paths)
        return ds.dataset(parts) if len(parts) > 1 else parts[0]

    def _refuse_twice(self, paths: Sequence[Path]) -> None:
        """Look for questions that two files hold for the same run; `write` sees to it that one file does not."""
        owner: dict[str, Path] = {}
        for path in paths:
            for run in _runs(path):
                if run in owner:
                    both = [set(_questions(file, run)) for file in (owner[run], path)]
                    twice = sorted(both[0] & both[1])
                    if twice:
                        raise ValueError(
                            f"run {run!r}, question {twice[0]!r} is stored twice, in {owner[run]} and {path}; "
                            "delete one of them"
                        )
                owner[run] = path

    def select(self, columns: Sequence[str], *jobs: str, **filters: Any) -> pd.DataFrame:
        """Return some columns of the rows that fit; the others are never read, and texts come as categories.

        Parameters
        ----------
        columns : sequence of str
            Which columns of `SCHEMA`.
        *jobs, **filters
            As for `dataset` and `frame`.

        Raises
        ------
        KeyError, ValueError, CorruptResult
            As for `frame`.
        """
        unknown = sorted({*columns, *filters} - set(SCHEMA.names))
        if unknown:
            raise KeyError(f"unknown columns {unknown}; the store has {SCHEMA.names}")
        chosen = None
        for name, wanted in filters.items():
            one = ds.field(name).isin(list(wanted) if isinstance(wanted, list | tuple | set) else [wanted])
            chosen = one if chosen is None else chosen & one
        try:
            batches = [
                _encoded(b) for b in self.dataset(*jobs).to_batches(columns=list(columns), filter=chosen) if len(b)
            ]
        except (OSError, pa.ArrowInvalid) as error:
            raise CorruptResult(f"a file in {self.root} cannot be read: {error}") from error
        if not batches:
            raise ValueError(f"no rows with {filters}" if filters else f"no rows in {self.root}")
        return pa.concat_tables(batches).unify_dictionaries().to_pandas()

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

    def origin(self, *jobs: str, **parameters: Any) -> dict[str, Any]:
        """Describe what a figure is drawn from, for `figures.save`.

        Parameters
        ----------
        *jobs : str
            The jobs whose rows are drawn.
        **parameters
            The parameters of the drawing.

        Returns
        -------
        dict
            Of each job the number and the hash of its rows, with commit, parameters and files; free of times, so that
            equal rows have equal origins.

        Raises
        ------
        KeyError, CorruptResult
            As for `provenance`.
        """
        return {"parameters": parameters, "results": {job: self._origin(job) for job in jobs}}

    def _origin(self, job: str) -> dict[str, Any]:
        table = self._read(job)
        note = json.loads(table.schema.metadata[b"idsel_provenance"])
        known = {name: note[name] for name in ("commit", "dirty", "parameters", "files", "device") if name in note}
        return {"rows": len(table), "sha256": digest(table), **known}

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


def digest(table: pa.Table) -> str:
    """Return a hash of rows, whatever their order, as hexadecimal digits."""
    hashes = pd.util.hash_pandas_object(table.to_pandas(), index=False)
    return hashlib.sha256(np.sort(hashes.to_numpy()).tobytes()).hexdigest()


def write_table(path: Path, table: pa.Table, provenance: Mapping[str, Any], **metadata: str) -> None:
    """Write rows as parquet and where they come from as JSON beside it, each file whole or not at all.

    Parameters
    ----------
    path : Path
        The parquet file; its folder is made.
    table : Table
        The rows.
    provenance : Mapping
        What to say of them.
    metadata
        Further metadata of the parquet file.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    note = json.dumps(provenance, indent=1, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The provenance travels inside the parquet file as well, so that rows and origin change in one step.
    replace(path, table.replace_schema_metadata({**metadata, "idsel_provenance": note}))
    replace(path.with_suffix(".json"), note + "\n")


def explain(figure: str | Path, store: Results) -> str:
    """Say what a figure was drawn from, and whether a store still holds the same rows.

    Parameters
    ----------
    figure, store
        As for `read_origin`; the store to compare with.
    """
    note = read_origin(figure)
    lines = [f"{figure} was drawn from", yaml.safe_dump(note, sort_keys=False, width=120).rstrip()]
    for job, source in note.get("results", {}).items():
        now = store.root / f"{job}.parquet"
        if not now.is_file():
            lines.append(f"{now} is not there")
        else:
            # Times lie in a folder of the store and are of one version.
            table = pq.read_table(now, partitioning=None) if "/" in job else store._read(job)
            same = digest(table) == source["sha256"]
            lines.append(f"{now} holds {'the same' if same else 'other'} rows")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    explaining = commands.add_parser("explain", help="tell what figures were drawn from")
    explaining.add_argument("figures", nargs="+", type=Path, metavar="FIGURE", help="a PNG or PDF file")
    explaining.add_argument("--results", type=Path, default=Path("results"), help="the store (default: %(default)s)")
    migrating = commands.add_parser("migrate", help="write files of an older schema version anew, in the present one")
    migrating.add_argument("results", nargs="?", type=Path, default=Path("results"), help="the store (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        if given.command == "migrate":
            migrated = Results(given.results).migrate()
            print("\n".join(map(str, migrated)) or "nothing to migrate")
            return 0
        for figure in given.figures:
            print(explain(figure, Results(given.results)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
