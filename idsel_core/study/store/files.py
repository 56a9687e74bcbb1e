"""Files that are written whole or not at all."""

import contextlib
import fcntl
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


class CorruptResult(ValueError):
    """A file of the store that cannot be read, or does not hold what the store writes."""


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
