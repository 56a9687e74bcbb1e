"""Files that are written whole or not at all."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

PROVENANCE = "_provenance"
"""Folder, beside the parquet files, of what they were made from; readers of a folder of parquet files leave it out."""


class CorruptResult(ValueError):
    """A file of the store that cannot be read, or does not hold what the store wrote."""


def write_atomically(path: Path, content: pa.Table | str | bytes) -> None:
    """Write a file whole or not at all, whatever is killed, and whoever else writes it.

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
        # A living writer holds a lock on its temporary file.
        with contextlib.suppress(OSError), FileLock(leftover, blocking=False):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        with FileLock(temporary), temporary.open("wb") as file:
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


def digest(rows: pd.DataFrame) -> str:
    """Return a hash of rows, whatever their order, as hexadecimal digits."""
    hashes = pd.util.hash_pandas_object(rows, index=False)
    return hashlib.sha256(np.sort(hashes.to_numpy()).tobytes()).hexdigest()


def write_table(path: Path, rows: pa.Table | pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write rows as parquet, and what they were made from into the file and as JSON into `PROVENANCE` beside it.

    Parameters
    ----------
    path : Path
        The parquet file; its folder is made.
    rows : Table or DataFrame
        The rows.
    provenance : Mapping
        What to say of them; their number and `digest` are added.

    Raises
    ------
    TypeError
        If the provenance cannot be written as JSON.
    OSError
        If a file cannot be written.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows, preserve_index=False)
    note = {**provenance, "rows": len(table), "sha256": digest(table.to_pandas())}
    text = json.dumps(note, indent=1, sort_keys=True)
    beside = path.parent / PROVENANCE / f"{path.stem}.json"
    beside.parent.mkdir(parents=True, exist_ok=True)
    # The provenance is inside the parquet file as well, so that rows and origin change in one step.
    write_atomically(path, table.replace_schema_metadata({"idsel_provenance": text}))
    write_atomically(beside, text + "\n")
