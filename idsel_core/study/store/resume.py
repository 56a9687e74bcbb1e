"""Rows of a long evaluation, kept on disk while it runs, so that it resumes after a kill."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from idsel_core.study.store.files import write_atomically

EVERY: Final = 30.0
"""Seconds of work between two chunks: what a kill loses at most, beside the step that runs."""


class ResumableRows:
    """The rows of an evaluation's steps, in order, beginning with those of an earlier run that had the same key.

    Parameters
    ----------
    folder : Path or None
        Where chunks are kept, in a folder named by the key's hash; None keeps nothing on disk.
    key : Mapping
        Everything that the rows depend on, ready for JSON.
    every : float
        Seconds between two chunks.

    Attributes
    ----------
    done : int
        The number of steps that are done.

    Raises
    ------
    OSError
        If nothing can be written to the folder.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any], every: float = EVERY) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = None if folder is None else folder / name
        self.every = every
        self.done = 0
        self._stored: list[pd.DataFrame] = []
        self._fresh: list[pd.DataFrame] = []
        self._saved = time.monotonic()
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / "key.json", json.dumps(key, indent=1, sort_keys=True) + "\n")
            for steps, rows in self._chunks(self.folder):
                self.done += steps
                self._stored.append(rows)

    def _chunks(self, folder: Path) -> Iterator[tuple[int, pd.DataFrame]]:
        """Read chunks up to the first that is damaged or missing; that one and all after it are run again."""
        first = 0
        for path in sorted(folder.glob("[0-9]*.parquet")):
            start, end = map(int, path.stem.split("-"))
            try:
                table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
            except (OSError, pa.ArrowException):
                table = None
            if table is None or start != first:
                path.unlink()
                continue
            yield end - start, table.to_pandas()
            first = end

    def add(self, rows: pd.DataFrame) -> None:
        """Add the rows of the next step, and write a chunk if the last one is `every` seconds old."""
        self._fresh.append(rows)
        self.done += 1
        if self.folder is not None and time.monotonic() - self._saved >= self.every:
            chunk = pd.concat(self._fresh, ignore_index=True)
            name = f"{self.done - len(self._fresh):08}-{self.done:08}.parquet"
            # The job of a killed runner may live a moment longer, end, and delete the folder of its successor.
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / name, pa.Table.from_pandas(chunk, preserve_index=False))
            self._stored.append(chunk)
            self._fresh = []
            self._saved = time.monotonic()

    def rows(self) -> pd.DataFrame:
        """Return the rows of all steps that are done."""
        return pd.concat([*self._stored, *self._fresh], ignore_index=True)
