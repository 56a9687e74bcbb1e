"""A store: a folder of parquet files, one a job, each with what its rows were made from."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsel_core.study.store.files import CorruptResult, digest, write_table
from idsel_core.study.store.schema import SCHEMAS, differences


class Store:
    """A folder of tables: `<job>.parquet` with rows, and `_provenance/<job>.json` with what they were made from.

    ``pandas.read_parquet(root)`` reads all jobs at once, without the checks of `frame`.

    Parameters
    ----------
    root : str or Path
        The folder; made by the first `write`.
    """

    kind: ClassVar[str]
    """What the rows are: "rows" of questions, or "times"."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @staticmethod
    def _validate(job: str, rows: pd.DataFrame) -> pa.Table:
        raise NotImplementedError

    def path(self, job: str) -> Path:
        """Return the parquet file of a job, which need not be there."""
        return self.root / f"{job}.parquet"

    def jobs(self) -> list[str]:
        """Return the names of the stored jobs, sorted."""
        return sorted(path.stem for path in self.root.glob("[!.]*.parquet"))

    def write(self, job: str, rows: pd.DataFrame, provenance: Mapping[str, Any]) -> Path:
        """Store the rows of a job in place of what it had stored before.

        Nothing is written unless all of it is valid, and a reader sees either the old rows or the new ones.

        Parameters
        ----------
        job : str
            Name of the job: letters, digits, `_`, `-`.
        rows : DataFrame
            With the columns of `idsel_core.study.store.schema`; one that allows null may be missing.
        provenance : Mapping
            What `idsel_core.study.store.provenance.provenance` returns.

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
        write_table(self.path(job), self._validate(job, rows), provenance)
        return self.path(job)

    def check(self, *jobs: str) -> None:
        """Check that the folder can be written to and that the files of jobs are whole.

        Parameters
        ----------
        *jobs : str
            The jobs; those that are not stored are left out.

        Raises
        ------
        CorruptResult
            If files are damaged; names all of them.
        PermissionError
            If the folder, or where it would be made, cannot be written to.
        """
        folder = next(folder for folder in (self.root, *self.root.absolute().parents) if folder.exists())
        if not os.access(folder, os.W_OK):
            reason = f"{self.kind} could not be stored: the folder cannot be written to"
            raise PermissionError(errno.EACCES, reason, str(folder))
        damaged = {}
        for job in sorted(set(jobs) & set(self.jobs())):
            try:
                self._read(job)
            except CorruptResult as error:
                damaged[job] = str(error)
        if damaged:
            paths = " ".join(str(self.path(job)) for job in damaged)
            first = next(iter(damaged.values()))
            raise CorruptResult(f"{first}; all damaged files: {paths}" if len(damaged) > 1 else first)

    def frame(self, job: str) -> pd.DataFrame:
        """Return the rows of a job.

        Raises
        ------
        KeyError
            If there is no such job.
        CorruptResult
            If its file cannot be read, or holds other rows than the store wrote.
        """
        return self._read(job)[0]

    def provenance(self, job: str) -> dict[str, Any]:
        """Return what was given to `write`, with the number and the hash of the rows; raises as `frame`."""
        return self._read(job)[1]

    def origin(self, *jobs: str, **parameters: Any) -> dict[str, Any]:
        """Describe what a figure is drawn from, for its metadata; raises as `frame`.

        Parameters
        ----------
        *jobs : str
            The jobs whose rows are drawn.
        **parameters
            The parameters of the drawing.

        Returns
        -------
        dict
            The parameters, and under `kind`/job the number and the hash of its rows, with commit, parameters, files
            and device; free of times, so that equal rows have equal origins.
        """
        names = ("rows", "sha256", "commit", "dirty", "parameters", "files", "device")
        notes = {f"{self.kind}/{job}": self.provenance(job) for job in jobs}
        results = {job: {name: note[name] for name in names if name in note} for job, note in notes.items()}
        return {"parameters": parameters, "results": results}

    def _read(self, job: str) -> tuple[pd.DataFrame, dict[str, Any]]:
        if job not in self.jobs():
            raise KeyError(f"no {self.kind} of job {job!r} in {self.root}; stored are {self.jobs()}")
        path = self.path(job)
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            differing = differences(table.schema, self.kind)
            fault = f"has other columns than this code reads ({differing})" if differing else ""
        except (OSError, pa.ArrowException) as error:
            fault = f"cannot be read ({error})"
        if not fault:
            rows = table.select(SCHEMAS[self.kind].names).to_pandas()
            note = json.loads((table.schema.metadata or {}).get(b"idsel_provenance", b"{}"))
            if note.get("rows") == len(rows) and note.get("sha256") == digest(rows):
                return rows, note
            fault = f"holds {len(rows)} rows that are not the {note.get('rows', 0)} that the store wrote"
        raise CorruptResult(f"{path} {fault}; delete {path} and run `make figures` or what else wrote it again")
