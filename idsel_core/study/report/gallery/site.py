"""Write the gallery: an index with thumbnails, a page a notebook, and pages of all figures, tables and runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

from idsel_core.study.report.alt_text import read_alt
from idsel_core.study.report.gallery.notebook_page import markdown, notebook_page
from idsel_core.study.report.gallery.pages import cards, page
from idsel_core.study.report.html_page import data_uri
from idsel_core.study.store.files import write_atomically
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

_LINKS = [("index.html", "notebooks"), ("figures.html", "figures"), ("tables.html", "tables"), ("runs.html", "runs")]


def write_gallery(out: Path, notebooks: Sequence[Path], figures: Path, tables: Path, rows: Path, times: Path) -> str:
    """Write the gallery and return a line about it.

    Parameters
    ----------
    out : Path
        Folder of the site.
    notebooks : sequence of Path
        Executed notebooks, and folders of them.
    figures, tables : Path
        Folders of what is shown.
    rows, times : Path
        Folders of the stores, whose parameters and environments are shown.

    Raises
    ------
    FileNotFoundError
        If there are no notebooks.
    ValueError
        If a notebook or a store is damaged, or two notebooks have one name.
    """
    found = [path for given in notebooks for path in (sorted(given.glob("*.ipynb")) if given.is_dir() else [given])]
    missing = [path for path in found if not path.is_file()]
    if not found or missing:
        where = ", ".join(f"{path}" if path.suffix else f"{path}/" for path in missing or notebooks)
        raise FileNotFoundError(f"no executed notebooks in {where}: `make figures` writes them to logs/")
    names = [path.stem for path in found]
    taken = {address.removesuffix(".html") for address, _ in _LINKS}
    if twice := sorted({name for name in names if names.count(name) > 1 or name in taken}):
        raise ValueError(f"notebooks of one name cannot be shown beside each other: {', '.join(twice)}")
    shown = [notebook_page(path) for path in found]
    pages = {f"{one.name}.html": (one.title, one.body) for one in shown}
    index = cards([(f"{one.name}.html", one.title, one.summary, one.thumbnail) for one in shown])
    pages["index.html"] = ("gallery", f"<h1>Gallery</h1>{index}")
    pages["figures.html"] = ("figures", _figures(figures))
    pages["tables.html"] = ("tables", _tables(tables))
    pages["runs.html"] = ("runs", _runs(rows, times))
    out.mkdir(parents=True, exist_ok=True)
    for name, (title, body) in pages.items():
        write_atomically(out / name, page(title, body, _LINKS).encode())
    return f"{out / 'index.html'}: {len(shown)} notebooks, {len(pages)} pages"


def _figures(folder: Path) -> str:
    parts = ["<h1>Figures</h1>"]
    for path in sorted(folder.glob("*.png")):
        try:
            origin = yaml.safe_dump(read_origin(path), sort_keys=False)
        except ValueError as error:
            origin = str(error)
        name, picture = escape(path.stem), data_uri(path.read_bytes(), "png")
        alt = escape(read_alt(path) or f"Figure {path.stem}")
        parts.append(
            f'<h2 id="{name}">{name}</h2><img alt="{alt}" src="{picture}">'
            f"<details><summary>what it was drawn from</summary><pre>{escape(origin)}</pre></details>"
        )
    return "\n".join(parts)


def _tables(folder: Path) -> str:
    parts = ["<h1>Tables</h1>"]
    for path in sorted(folder.glob("*.md")):
        text = re.sub(r"<!-- origin: .* -->", "", path.read_text("utf-8", errors="replace"))
        parts.append(f'<h2 id="{escape(path.stem)}">{escape(path.stem)}</h2>{markdown(text)}')
    return "\n".join(parts)


def _runs(rows: Path, times: Path) -> str:
    parts = ["<h1>Parameters and environment</h1>"]
    for kind, store in (("", Results(rows)), ("times: ", Times(times))):
        for job in store.jobs():
            note = yaml.safe_dump(store.provenance(job), sort_keys=False)
            parts.append(f"<h2>{escape(kind + job)}</h2><pre>{escape(note)}</pre>")
    return "\n".join(parts)
