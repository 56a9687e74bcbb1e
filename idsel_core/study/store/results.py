"""The result store: one parquet file a job, one row a question, and where the numbers came from.

Tell what a figure was drawn from, and whether the store still holds the same rows:

    idsel explain results/figures/gamma.png
"""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from idsel_core.study.store.files import CorruptResult, digest, write_table
from idsel_core.study.store.rows import SCHEMA, VERSION, validate


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
        splits = [ds.dataset(self._read(path.stem)) for path in paths if path not in present]
        splits += [ds.dataset(present, schema=SCHEMA)] if present else []
        self._refuse_twice(paths)
        return ds.dataset(splits) if len(splits) > 1 else splits[0]

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
