"""Read the rows of a table of questions, as text or as what the file holds: CSV, TSV, JSONL or parquet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

KINDS = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of tables that can be read."""

SHOWN = ("image", "audio")
"""Columns that name what a question is about, or in parquet hold it."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Table:
    """The rows of one file.

    Attributes
    ----------
    path : Path
        The file.
    columns : tuple[str, ...]
        Their names.
    rows : list of dict
        Values by column; of images and clips inside a parquet file None, see `stored_files`.
    lines : list of str
        How messages call each row: "line 3" or "row 3".
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    lines: list[str]

    @property
    def is_text(self) -> bool:
        """Whether all values are text, so that lists are written as JSON."""
        return self.path.suffix in _SEPARATORS


def read_table(path: Path) -> Table:
    """Read a table.

    Raises
    ------
    ValueError
        If the file is no table, is empty, or is damaged; names the line.
    """
    if path.suffix not in KINDS:
        raise ValueError(f"{path} is no table of questions; these can be read: {', '.join(KINDS)}")
    try:
        table = {".jsonl": _read_jsonl, ".parquet": _read_parquet}.get(path.suffix, _read_csv)(path)
    except UnicodeDecodeError as error:
        kind = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        raise ValueError(
            f"{path} is not in UTF-8 but in {kind} (byte {error.start} is {error.object[error.start]:#04x}); save it "
            "as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    if not table.rows:
        raise ValueError(f"{path} holds no questions")
    return table


def _read_csv(path: Path) -> Table:
    separator = _SEPARATORS[path.suffix]
    text = path.read_bytes().decode("utf-8-sig")
    if "\0" in text:
        raise ValueError(f"{path} holds zero bytes, so it is no text in UTF-8; save it as UTF-8 (in Excel: CSV UTF-8)")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(path, cells)
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} values for {len(header)} columns; put values that "
                    f"hold {separator!r} into double quotes"
                )
            rows.append(dict(zip(header, cells, strict=True)))
            lines.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return Table(path, tuple(header or ()), rows, lines)


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has the column {twice[0]!r} twice")
    others = [sign for sign in ",;\t" if len(names) == 1 and sign in names[0]]
    if others:
        raise ValueError(
            f"{path}: columns are separated by {others[0]!r}; a .csv file needs commas, a .tsv file tabulators"
        )
    return names


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    names: dict[str, None] = {}
    for number, line in enumerate(path.read_bytes().decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}); each line must be one object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: each line must be one object, not {type(row).__name__}")
        names |= dict.fromkeys(row)
        rows.append(row)
        lines.append(f"line {number}")
    return Table(path, tuple(names), rows, lines)


def _read_parquet(path: Path) -> Table:
    with _opened(path) as file:
        schema = file.schema_arrow
        inside = [name for name in SHOWN if name in schema.names and holds_bytes(schema.field(name).type)]
        names = [name for name in schema.names if name not in inside]
        rows = file.read(columns=names).to_pylist() if names else [{} for _ in range(file.metadata.num_rows)]
        rows = [{**dict.fromkeys(inside), **row} for row in rows]
    return Table(path, tuple(schema.names), rows, [f"row {number}" for number in range(1, len(rows) + 1)])


def holds_bytes(kind: pa.DataType) -> bool:
    """Tell whether a parquet column holds files themselves: bytes, a struct with bytes, or a list of these."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def stores_files(path: Path, column: str) -> bool:
    """Tell whether a table is a parquet file with images, or clips, themselves in a column."""
    if path.suffix != ".parquet":
        return False
    with _opened(path) as file:
        schema = file.schema_arrow
        return column in schema.names and holds_bytes(schema.field(column).type)


def stored_files(path: Path, column: str, only: int | None = None) -> Iterator[tuple[int, list[bytes | None]]]:
    """Yield the number of each row of a parquet file and the images or clips in it, some at a time in memory.

    Parameters
    ----------
    path : Path
        The file.
    column : str
        That holds them.
    only : int, optional
        Yield the rows of the row group that holds this row alone.
    """
    with _opened(path) as file:
        start, groups = 0, []
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if only is None or start <= only < start + count:
                groups.append((start, group))
            start += count
        for start, group in groups:
            for batch in file.iter_batches(batch_size=16, row_groups=[group], columns=[column]):
                for cell in batch.column(0).to_pylist():
                    yield start, [_bytes_of(one) for one in (cell if isinstance(cell, list) else [cell])]
                    start += 1


def _bytes_of(cell: Any) -> bytes | None:
    return cell.get("bytes") if isinstance(cell, dict) else cell


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
