"""A user's own questions: a table, or a folder with tables and images.

Only `image`, `question` and `answer` (or `answers`) must be there; `COLUMNS` in `idsel_core.study.sources.columns`
tells what else is read. Images are looked at once, and read when they are asked for.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from idsel_core.study.sources.columns import check_columns, image_cell, read_questions
from idsel_core.study.sources.pictures import check_picture
from idsel_core.study.sources.split import ImageSource, Split, check_limit, first_of_each_type
from idsel_core.study.sources.tables import KINDS, Table, read_table, stored_images, stores_images


def read_own(data: Path, split: str = "", limit: int = 0, *, metric: str = "", check_images: bool = True) -> Split:
    """Read a split of a user's own questions; see `idsel_core.study.dataset.read_data`.

    Raises
    ------
    FileNotFoundError
        If there is no such table, split or image.
    ValueError
        If a column is missing, or a cell or image is not what it should be; names the row.
    """
    check_limit(limit)
    path = _table_of(data, split)
    table = read_table(path)
    check_columns(table)
    name, numbers = _rows_of(table, split if data.is_file() else "")
    dataset = path.stem if data.is_file() else data.resolve().name
    questions = pd.DataFrame(read_questions(table, numbers, dataset, metric)).assign(number=numbers)
    questions = first_of_each_type(questions, limit)
    inside = stores_images(path)
    find = _images_inside if inside else _images_beside
    ids, images = find(table, list(questions.pop("number")), check_images)
    questions.insert(1, "image_id", [" ".join(shown) for shown in ids])
    questions.insert(2, "image_ids", ids)
    frame = pd.DataFrame({"image": pd.Series(images, dtype=object)}).rename_axis("image_id")
    return Split(name, questions, frame, (path,), dataset)


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


def _images_beside(table: Table, numbers: Sequence[int], check: bool) -> tuple[list[list[str]], dict[str, ImageSource]]:
    """Return the images of each row, called by their path in the table, and their files."""
    ids: list[list[str]] = []
    images: dict[str, ImageSource] = {}
    for number in numbers:
        shown = [os.path.normpath(path) for path in image_cell(table, number)]
        for name in shown:
            if name not in images:
                path = images[name] = table.path.parent / name
                if check:
                    check_picture(path, f"{table.path}, {table.lines[number]}")
        ids.append(shown)
    return ids, images


def _images_inside(table: Table, numbers: Sequence[int], check: bool) -> tuple[list[list[str]], dict[str, ImageSource]]:
    """Return the images of each row of a parquet file, called by a hash of their bytes, and how to fetch them."""
    wanted = set(numbers)
    ids: dict[int, list[str]] = {}
    images: dict[str, ImageSource] = {}
    groups = _RowGroups(table.path)
    for number, contents in stored_images(table.path):
        if number not in wanted:
            continue
        where = f"{table.path}, {table.lines[number]}"
        if not contents:
            raise ValueError(f"{where}: image is an empty list")
        ids[number] = []
        for place, content in enumerate(contents):
            if not content:
                raise ValueError(f"{where}: image is empty")
            name = hashlib.sha256(content).hexdigest()[:16]
            if name not in images:
                if check:
                    check_picture(content, where)
                images[name] = functools.partial(groups.picture, number, place)
            ids[number].append(name)
    return [ids[number] for number in numbers], images


class _RowGroups:
    """Images inside a parquet file; the row group that was read last is held."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[int, list[bytes | None]] = {}

    def picture(self, row: int, place: int) -> Image.Image:
        if row not in self._held:
            self._held = dict(stored_images(self._path, only=row))
        content = self._held[row][place]
        return Image.open(io.BytesIO(content or b""))
