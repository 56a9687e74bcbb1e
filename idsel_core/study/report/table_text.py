"""Tables as Markdown and as LaTeX, in which the best and the second best of the compared cells are marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

BEST, SECOND = "best", "second"
"""What a table of marks holds where a cell is marked; elsewhere it holds ""."""
_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?")


def as_text(table: pd.DataFrame, decimals: int = 3) -> pd.DataFrame:
    """Return a table as text: the floats of a column with the decimals that one of them needs, missing ones empty.

    Parameters
    ----------
    table : DataFrame
        The table.
    decimals : int
        The most decimals of a float.
    """
    shown = {}
    for place, name in enumerate(table):
        column = table.iloc[:, place]
        if pd.api.types.is_float_dtype(column):
            rounded = column.round(decimals)
            needed = next(
                (d for d in range(decimals + 1) if np.allclose(rounded.round(d), rounded, equal_nan=True)), decimals
            )
            text = [("" if pd.isna(value) else f"{value:.{needed}f}") for value in rounded]
        else:
            text = ["" if value is None or value is pd.NA else str(value) for value in column]
        shown[str(name)] = text
    return pd.DataFrame(shown, dtype=object)


def marks(table: pd.DataFrame, columns: Sequence[str], compared: Sequence[bool], by: str | None = None) -> pd.DataFrame:
    """Return which cells of a table are best and second best in their column, by the number that they begin with.

    The highest number is the best. Cells that print the same number share a mark, but more than half of the cells that
    are compared do not: neither they nor what is below them is marked.

    Parameters
    ----------
    table : DataFrame
        The table.
    columns : sequence of str
        The columns that are compared.
    compared : sequence of bool
        The rows that take part.
    by : str, optional
        A column; rows are compared with those alone that hold the same in it.

    Returns
    -------
    DataFrame
        As many rows and the same columns as the table: `BEST`, `SECOND` or "".
    """
    text = as_text(table)
    found = pd.DataFrame("", index=text.index, columns=text.columns, dtype=object)
    groups = text[by] if by else pd.Series("", index=text.index)
    for name in columns:
        numbers = text[name].map(_leading).where(np.asarray(compared, bool))
        for _, part in numbers.groupby(groups.to_numpy(), sort=False):
            values = sorted(part.dropna().unique(), reverse=True)
            for mark, value in zip((BEST, SECOND), values, strict=False):
                alike = part == value
                if 2 * alike.sum() > part.notna().sum():
                    break
                found.loc[part.index[alike], name] = mark
    return found


def _leading(cell: str) -> float:
    number = _NUMBER.match(cell.strip())
    return float(number[0]) if number else float("nan")


def _aligned(text: pd.DataFrame) -> list[str]:
    """Return "right" for columns in which each cell that is not empty begins with a number, else "left"."""
    return ["right" if all(_NUMBER.match(cell) for cell in text[name] if cell) else "left" for name in text]


def to_markdown(table: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    """Return a table as Markdown: marked cells in bold and in italics; HTML and bars in cells stay text.

    Parameters
    ----------
    table : DataFrame
        The table, without its index.
    best : DataFrame, optional
        What `marks` returned.
    """
    text = as_text(table)
    align = _aligned(text)
    shown = text.map(_markdown).rename(columns=_markdown)
    if best is not None:
        sign = best.map({BEST: "**", SECOND: "*", "": ""}.__getitem__).to_numpy()
        shown = shown.where(shown == "", sign + shown + sign)
    return shown.to_markdown(index=False, disable_numparse=True, colalign=align)


def _markdown(cell: str) -> str:
    return " ".join(cell.replace("\\", "\\\\").split()).replace("|", "\\|").replace("<", "\\<")


def to_latex(
    table: pd.DataFrame, best: pd.DataFrame | None = None, by: str | None = None, notes: Mapping[str, Any] | None = None
) -> str:
    """Return a table as LaTeX for the package booktabs: marked cells in bold and underlined; all text stays text.

    Parameters
    ----------
    table : DataFrame
        The table, without its index.
    best : DataFrame, optional
        What `marks` returned.
    by : str, optional
        A column; a rule stands between rows that hold different things in it.
    notes : Mapping, optional
        Names and values, written above the table as comments.
    """
    text = as_text(table).map(lambda cell: " ".join(cell.split()))
    styler = text.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    if best is not None:
        looks = {BEST: "textbf:--rwrap", SECOND: "underline:--rwrap", "": ""}
        styler = styler.apply(lambda _: best.map(looks.__getitem__), axis=None)
    columns = "".join(side[0] for side in _aligned(text))
    written = str(styler.to_latex(hrules=True, column_format=columns))
    # The oldest font encoding prints other characters for these.
    for sign, name in {"<": "less", ">": "greater", "|": "bar"}.items():
        written = written.replace(sign, f"\\text{name}{{}}")
    if by:
        head, body = written.split("\\midrule\n", 1)
        lines = body.split("\n")
        changes = [row for row in range(1, len(text)) if text[by].iloc[row] != text[by].iloc[row - 1]]
        for row in reversed(changes):
            lines.insert(row, "\\midrule")
        written = f"{head}\\midrule\n" + "\n".join(lines)
    said = "".join(f"% {name}: {' '.join(str(value).split())}\n" for name, value in (notes or {}).items())
    return f"% \\usepackage{{booktabs}}\n{said}{written}"
