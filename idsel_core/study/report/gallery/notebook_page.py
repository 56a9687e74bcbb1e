"""An executed notebook as HTML: alt text on its figures, text of data as text, no widgets that need a kernel."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import mistune
import nbformat
from nbconvert import HTMLExporter
from PIL import Image

from idsel_core.study.report.html_page import data_uri

WIDGET = "application/vnd.jupyter.widget-view+json"
_THUMBNAIL = (420, 280)
_LEADS_AWAY = re.compile(r"<(?=(?:meta|base|form|iframe|object|embed)\b)", re.IGNORECASE)
"""Where a tag begins that can take a reader or what is typed to another place; no policy of a page stops a refresh."""
_markdown = mistune.create_markdown(escape=True, plugins=["table", "strikethrough"])


@dataclass(frozen=True)
class NotebookPage:
    """What the gallery shows of a notebook.

    Attributes
    ----------
    name, title, summary : str
        Name of its file, its title, and the first sentence under that.
    body : str
        Its cells and what they gave, as HTML.
    thumbnail : str
        Its last figure, small, as a data URI; "" if it has none.
    """

    name: str
    title: str
    summary: str
    body: str
    thumbnail: str


def markdown(text: str) -> str:
    """Return Markdown as HTML; HTML in it stays text."""
    html = _markdown(text)
    assert isinstance(html, str)
    return html


def notebook_page(path: Path) -> NotebookPage:
    """Return what is shown of an executed notebook.

    Raises
    ------
    ValueError
        If it cannot be read.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is no notebook that can be read: {error}") from error
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title, _, rest = first.partition("\n")
    title = title.lstrip("# ").strip() or path.stem
    _prepare(notebook, title)
    exporter = HTMLExporter(template_name="basic")
    exporter.register_filter("markdown2html", markdown)
    body, _ = exporter.from_notebook_node(notebook)
    body = _LEADS_AWAY.sub("&lt;", body)
    left = _unfinished(notebook)
    body = f"<p><strong>{left}</strong></p>{body}" if left else body
    summary = re.split(r"(?<=[.?!])\s", " ".join(re.sub("[*`]", "", rest).split()), maxsplit=1)[0]
    return NotebookPage(path.stem, title, f"{left} {summary}".strip(), body, _thumbnail(notebook))


def _prepare(notebook: nbformat.NotebookNode, title: str) -> None:
    """Take out what needs a kernel and what is progress alone, and describe each figure by the text above it."""
    notebook.metadata.pop("widgets", None)
    above = title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            above = " ".join(cell.source.replace("#", " ").split())
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            data = output.get("data", {})
            widget = data.pop(WIDGET, None) is not None
            if output.get("name") == "stderr" or (widget and set(data) <= {"text/plain"}):
                continue
            for kind in ("image/png", "image/jpeg", "image/gif", "image/svg+xml"):
                if kind in data:
                    given = output.metadata.get(kind)
                    output.metadata[kind] = {"alt": f"Figure: {above}", **(given if isinstance(given, dict) else {})}
            kept.append(output)
        cell.outputs = kept


def _unfinished(notebook: nbformat.NotebookNode) -> str:
    """Say how far a run got that did not reach the end of its notebook; "" if it did."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    ran = sum(cell.execution_count is not None for cell in cells)
    return f"This run did not finish: {ran} of {len(cells)} code cells ran." if ran < len(cells) else ""


def _thumbnail(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    try:
        return thumbnail(base64.b64decode(pictures[-1])) if pictures else ""
    except (OSError, ValueError):
        return ""


def thumbnail(png: bytes) -> str:
    """Return a picture, made small, as a data URI."""
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail(_THUMBNAIL)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "jpeg")
