"""The store of rows: one row a question and run."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from idsel_core.study.store.base import Store
from idsel_core.study.store.rows import SCHEMA, validate


class Results(Store):
    """A folder of rows, one a question and run; see `Store`."""

    kind: ClassVar[str] = "rows"
    _validate = staticmethod(validate)

    def write(self, job: str, rows: pd.DataFrame, provenance: Mapping[str, Any]) -> Path:
        """Store the rows of a job as `Store.write` does, and delete what it had kept to resume from."""
        path = super().write(job, rows, provenance)
        shutil.rmtree(self.resume_folder(job), ignore_errors=True)
        with contextlib.suppress(OSError):
            self.resume_folder(job).parent.rmdir()
        return path

    def resume_folder(self, job: str) -> Path:
        """Return the folder where a job keeps its rows until `write` stores them all, for `Study.run`."""
        return self.root / ".resume" / job

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
            The job's name in the column `job`, then the columns of `SCHEMA`.

        Raises
        ------
        KeyError
            If there is no such job or column.
        ValueError
            If nothing is stored, no row is left by the filters, or two files hold the same question of the same run.
        CorruptResult
            If a file cannot be read, or holds other rows than the store wrote.
        """
        unknown = sorted(set(filters) - set(SCHEMA.names))
        if unknown:
            raise KeyError(f"unknown columns {unknown}; the store has {SCHEMA.names}")
        jobs = self.jobs() if job is None else [job]
        if not jobs:
            raise ValueError(f"no results in {self.root}; run `make figures` first")
        rows = pd.concat([self._read(name)[0].assign(job=name) for name in jobs], ignore_index=True)
        keys = ["run_id", "question_id"]
        twice = rows[rows.duplicated(keys, keep=False)].sort_values(keys, kind="stable").head(2)
        if len(twice):
            run, question = twice.iloc[0][keys]
            files = " and ".join(str(self.path(name)) for name in twice["job"])
            raise ValueError(f"run {run!r}, question {question!r} is stored twice, in {files}; delete one of them")
        for name, wanted in filters.items():
            kept = rows[rows[name].isin(wanted if isinstance(wanted, list | tuple | set) else [wanted])]
            if kept.empty:
                raise ValueError(f"no rows with {name} = {wanted!r}; there are {sorted(rows[name].dropna().unique())}")
            rows = kept
        return rows[["job", *SCHEMA.names]].reset_index(drop=True)
