"""The columns of a user's table of questions: what they are called, and what may stand in them."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from idsel_core.study.metrics import get_metric
from idsel_core.study.sources.split import Kind
from idsel_core.study.sources.tables import SHOWN, Table

COLUMNS: Final = {
    "image": "path from the table's folder, or in parquet the image itself; a list where a question shows several",
    "audio": "instead of `image`, for models that take audio clips: a WAV file, named or held likewise",
    "question": "the text that the model is asked",
    "answer": "the right answer",
    "answers": "instead of `answer`, a list: all answers that are right, or what each of several people answered",
    "choices": "optional, a list: the options; they are put below the question, with letters",
    "question_type": "optional: groups over which shares of full performance are averaged; default: the table's name",
    "metric": "optional: how answers are scored; default: choice_letter with choices, else exact_match",
    "id": "optional: name of the question; default: its place in the table",
    "split": "optional: the split that the row belongs to",
}
"""The columns that are read, and what stands in them; all others are ignored."""

_OTHER_NAMES: Final = {
    "audio": ("audios", "sound", "sounds", "clip", "clips", "wav", "speech", "audio_path", "audio_file"),
    "image": ("images", "img", "image_path", "image_file", "file_name", "filename", "path", "picture"),
    "question": ("questions", "query", "prompt", "text", "instruction"),
    "answer": ("label", "target", "ground_truth", "gt", "solution"),
    "choices": ("options",),
    "question_type": ("type", "category", "topic"),
    "id": ("question_id", "qid", "index"),
}
"""What others call them; suggested, never read."""

ASK_FOR_LETTER: Final = "Answer with the option's letter from the given choices directly."
"""Put below the options, as LLaVA's evaluation does."""


def check_columns(table: Table) -> Kind:
    """Return what a table asks about; refuse one that lacks a column, or spells one nearly as one that is read.

    Raises
    ------
    ValueError
        Names the column, and the one that may be meant.
    """
    have = set(table.columns)
    if {"answer", "answers"} <= have:
        raise ValueError(f"{table.path} has a column 'answer' and a column 'answers'; keep one of them")
    if set(SHOWN) <= have:
        raise ValueError(
            f"{table.path} has a column 'image' and a column 'audio', and no supported model takes both; keep one of "
            "them"
        )
    for names in (SHOWN, ("question",), ("answer", "answers")):
        if not have & set(names):
            tried = names if names == SHOWN else names[:1]
            near = [one for name in tried for one in _alike(name, have)]
            near += [other for name in tried for other in _OTHER_NAMES[name] if other in have]
            hint = f"; rename {near[0]!r} if that is it" if near else ""
            lacks = " and ".join(f"no column {name!r}" for name in tried)
            raise ValueError(f"{table.path} has {lacks}{hint}. It has {', '.join(map(repr, table.columns))}")
    for name in ("choices", "question_type", "metric", "split"):
        near = [] if name in have else _alike(name, have - set(COLUMNS))
        if near:
            raise ValueError(
                f"{table.path}: the column {near[0]!r} is not read; rename it to {name!r}, or else to another"
            )
    return "audio" if "audio" in have else "image"


def _alike(name: str, have: set[str]) -> list[str]:
    folded = {"".join(filter(str.isalnum, one.lower())): one for one in sorted(have)}
    near = difflib.get_close_matches("".join(filter(str.isalnum, name)), folded, n=1, cutoff=0.85)
    return [folded[one] for one in near]


def read_questions(table: Table, numbers: Sequence[int], name: str, metric: str = "") -> list[dict[str, Any]]:
    """Check the rows of a table and bring them to the columns of ``Split.questions``, but for images and clips.

    Parameters
    ----------
    table : Table
        Checked by `check_columns`.
    numbers : sequence of int
        The rows that are wanted.
    name : str
        What questions without a question_type are called.
    metric : str
        For rows without a metric; "" for what fits.

    Raises
    ------
    ValueError
        If a cell is not what it should be; names the row.
    """
    records: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    for number in numbers:
        row, where = table.rows[number], f"{table.path}, {table.lines[number]}"
        question = _text(row, "question", where)
        answers = _texts(row, "answers", where, table.is_text) if "answers" in row else [_text(row, "answer", where)]
        choices = _texts(row, "choices", where, table.is_text) if _given(row, "choices") else []
        key = _text(row, "id", where) if _given(row, "id") else str(number)
        if key in seen:
            raise ValueError(f"{where}: the id {key!r} is that of {seen[key]} already")
        seen[key] = table.lines[number]
        kind = _text(row, "question_type", where) if _given(row, "question_type") else name
        if kind == "all":
            raise ValueError(f"{where}: question_type 'all' is what tables call the mean over all; choose another name")
        chosen = _text(row, "metric", where) if _given(row, "metric") else metric
        chosen = chosen or ("choice_letter" if choices else "exact_match")
        try:
            why = get_metric(chosen).misfit(answers, choices)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if why:
            raise ValueError(f"{where}: metric {chosen!r} does not fit: {why}")
        record: dict[str, Any] = {
            "question_id": key,
            "question_type": kind,
            "question": with_options(question, choices),
        }
        record |= {"choices": choices, "answers": answers, "answer": Counter(answers).most_common(1)[0][0]}
        records.append(record | {"metric": chosen})
    return records


def with_options(question: str, choices: Sequence[str]) -> str:
    """Put lettered options below a question, and the wish for a letter; a question without options stays as it is."""
    if not choices:
        return question
    options = [f"{chr(ord('A') + number)}. {choice}" for number, choice in enumerate(choices)]
    return "\n".join([question, *options, ASK_FOR_LETTER])


def paths_in(table: Table, number: int, column: Kind) -> list[str]:
    """Return the paths in the column image or audio of a row.

    Raises
    ------
    ValueError
        If there is none, or something else stands there.
    """
    where, cell = f"{table.path}, {table.lines[number]}", table.rows[number].get(column)
    cell = cell.get("path") if isinstance(cell, dict) else cell
    if isinstance(cell, list) or (table.is_text and str(cell).lstrip().startswith("[")):
        return _texts({column: cell}, column, where, table.is_text)
    return [_text({column: cell}, column, where)]


def _given(row: dict[str, Any], name: str) -> bool:
    return name in row and row[name] is not None and row[name] != "" and row[name] != []


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a cell that holds one text; numbers become text as they are written."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        hint = "; write yes or no" if isinstance(value, bool) else ""
        hint = (
            f"; a list belongs into a column {name + 's'!r}" if isinstance(value, list) and name == "answer" else hint
        )
        raise ValueError(f"{where}: {name} must be one text, not {_shown(value)}{hint}")
    text = str(value).strip()
    if not text:
        raise ValueError(f"{where}: {name} is empty")
    return text


def _texts(row: dict[str, Any], name: str, where: str, as_json: bool) -> list[str]:
    """Return a cell that holds a list of texts, in a CSV file as JSON."""
    value = row.get(name)
    if as_json:
        try:
            value = json.loads(str(value))
        except ValueError:
            value = str(value)
    if not isinstance(value, list):
        raise ValueError(f'{where}: {name} must be a list such as ["red", "blue"], not {_shown(value)}')
    if not value:
        raise ValueError(f"{where}: {name} is an empty list")
    return [_text({name: one}, name, where) for one in value]


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
