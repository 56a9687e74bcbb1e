"""A user's own questions: a table, or a folder with tables and images, or audio clips.

Only `image` (or `audio`), `question` and `answer` (or `answers`) must be there; `COLUMNS` in
`idsel_core.study.sources.columns` tells what else is read. Images are looked at once, and read when they are asked for;
clips are read both times, because their length tells whether a model can take them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from idsel_core.study.sources.clips import check_clip
from idsel_core.study.sources.columns import check_columns, paths_in, read_questions
from idsel_core.study.sources.pictures import check_picture
from idsel_core.study.sources.split import ImageSource, Kind, Split, check_limit, first_of_each_type, joined
from idsel_core.study.sources.tables import KINDS, Table, read_table, stored_files, stores_files


def read_own(data: Path, split: str = "", limit: int = 0, *, metric: str = "", check_images: bool = True) -> Split:
    """Read a split of a user's own questions; see `idsel_core.study.dataset.read_data`.

    Raises
    ------
    FileNotFoundError
        If there is no such table, split, image or clip.
    ValueError
        If a column is missing, or a cell, image or clip is not what it should be; names the row.
    """
    check_limit(limit)
    path = _table_of(data, split)
    table = read_table(path)
    kind = check_columns(table)
    name, numbers = _rows_of(table, split if data.is_file() else "")
    dataset = path.stem if data.is_file() else data.resolve().name
    questions = pd.DataFrame(read_questions(table, numbers, dataset, metric)).assign(number=numbers)
    questions = first_of_each_type(questions, limit)
    find = _found_inside if stores_files(path, kind) else _found_beside
    ids, found = find(table, list(questions.pop("number")), kind, check_images)
    questions.insert(1, "image_id", [joined(shown) for shown in ids])
    questions.insert(2, "image_ids", ids)
    frame = pd.DataFrame({"image": pd.Series({name: source for name, (source, _) in found.items()}, dtype=object)})
    for column in ("samples", "rate") if kind == "audio" else ():
        frame[column] = [sizes[column] for _, sizes in found.values()]
    return Split(name, questions, frame.rename_axis("image_id"), (path,), dataset, kind=kind)


def _table_of(data: Path, split: str) -> Path:
    """Return the table that is meant: the file itself, or the one of a folder that is called as the split."""
    if data.is_file():
        return data
    if not data.is_dir():
        beside = [path for path in data.parent.glob("*") if not path.name.startswith(".")]
        near = sorted(path.name for path in beside if path.suffix in KINDS or path.is_dir())
        raise FileNotFoundError(f"no data {data}; beside it are: {', '.join(near) or 'no tables'}")
    tables = sorted(path for path in data.iterdir() if path.suffix in KINDS)
    if not tables:
        raise FileNotFoundError(f"no table of questions in {data}; it may end in {', '.join(KINDS)}")
    fitting = [path for path in tables if path.stem == split]
    if len(fitting) > 1:
        files = ", ".join(path.name for path in fitting)
        raise ValueError(f"{data} holds several tables of split {split!r} ({files}); give one of them as data")
    if not fitting and (split or len(tables) > 1):
        splits = ", ".join(sorted({path.stem for path in tables}))
        raise FileNotFoundError(f"no split {split!r} in {data}; there are: {splits}")
    return (fitting or tables)[0]


def _rows_of(table: Table, split: str) -> tuple[str, list[int]]:
    """Return the name of the split, and which rows belong to it."""
    if "split" not in table.columns:
        return table.path.stem, list(range(len(table.rows)))
    found = [str(row.get("split") or "").strip() for row in table.rows]
    if "" in found:
        raise ValueError(f"{table.path}, {table.lines[found.index('')]}: split is empty")
    names = sorted(set(found))
    split = split or names[0] * (len(names) == 1)
    if split not in names:
        raise FileNotFoundError(f"no split {split!r} in {table.path}; there are: {', '.join(names)}")
    return split, [number for number, name in enumerate(found) if name == split]


_Found = dict[str, tuple[ImageSource, dict[str, int]]]
"""By name, where an image or clip comes from, and of a clip its number of samples and their rate."""


def _found_beside(table: Table, numbers: Sequence[int], kind: Kind, check: bool) -> tuple[list[list[str]], _Found]:
    """Return the images or clips of each row, called by their path in the table, and their files."""
    ids: list[list[str]] = []
    found: _Found = {}
    for number in numbers:
        shown = [os.path.normpath(path) for path in paths_in(table, number, kind)]
        for name in shown:
            if name not in found:
                path = table.path.parent / name
                found[name] = path, _looked_at(path, f"{table.path}, {table.lines[number]}", kind, check)
        ids.append(shown)
    return ids, found


def _found_inside(table: Table, numbers: Sequence[int], kind: Kind, check: bool) -> tuple[list[list[str]], _Found]:
    """Return the images or clips of each row of a parquet file, called by a hash of their bytes, and their sources."""
    wanted = set(numbers)
    ids: dict[int, list[str]] = {}
    found: _Found = {}
    groups = _RowGroups(table.path, kind)
    for number, contents in stored_files(table.path, kind):
        if number not in wanted:
            continue
        where = f"{table.path}, {table.lines[number]}"
        if not contents:
            raise ValueError(f"{where}: {kind} is an empty list")
        ids[number] = []
        for place, content in enumerate(contents):
            if not content:
                raise ValueError(f"{where}: {kind} is empty")
            name = hashlib.sha256(content).hexdigest()[:16]
            if name not in found:
                fetch = functools.partial(groups.content, number, place)
                found[name] = fetch, _looked_at(content, where, kind, check)
            ids[number].append(name)
    return [ids[number] for number in numbers], found


def _looked_at(source: Path | bytes, where: str, kind: Kind, check: bool) -> dict[str, int]:
    """Refuse an image or clip that cannot be used; return the number of samples of a clip and their rate."""
    if kind == "audio":
        clip = check_clip(source, where)
        return {"samples": len(clip.samples), "rate": clip.rate}
    if check:
        check_picture(source, where)
    return {}


class _RowGroups:
    """Images or clips inside a parquet file; the row group that was read last is held."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._held: dict[int, list[bytes | None]] = {}

    def content(self, row: int, place: int) -> bytes:
        if row not in self._held:
            self._held = dict(stored_files(self._path, self._column, only=row))
        return self._held[row][place] or b""
