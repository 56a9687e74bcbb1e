"""The form of the gallery's pages: one style, dark and light, tables that sort, and nothing from outside."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from pygments.formatters import HtmlFormatter

from idsel_core.study.report.html_page import html_page

STYLE = """
:root { --line: color-mix(in srgb, CanvasText 18%, Canvas);
  --soft: color-mix(in srgb, CanvasText 5%, Canvas); }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 68em; margin: 0 auto 4em; padding: 0 1em; }
nav { padding: 0.8em 0; border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: 1.2em; }
img { max-width: 100%; background: white; border-radius: 3px; }
.idsel .look img { background: none; max-width: none; }
table { border: 0; border-collapse: collapse; font-size: 13px; margin: 0.8em 0; display: block; overflow-x: auto; }
td, th { padding: 0.2em 0.7em; border: 0; border-bottom: 1px solid var(--line); text-align: left; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid; }
th button::after { content: " \\2195"; opacity: 0.4; }
th[aria-sort] button::after { opacity: 1; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
pre { background: var(--soft); padding: 0.7em; overflow-x: auto; font-size: 12.5px; line-height: 1.45; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1.2em; padding: 0; }
.cards li { list-style: none; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.cards a { color: inherit; text-decoration: none; display: block; }
.cards img, .cards .none { width: 100%; height: 9em; object-fit: contain; border-radius: 0; }
.cards .none { background: var(--soft); } .cards p { margin: 0.6em 0.8em; }
.prompt, .anchor-link { display: none; }
details { margin: 0.4em 0; } summary { cursor: pointer; }
@media print { nav, th button::after { display: none; } }
"""

SORT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...(table.tHead?.rows[0]?.cells ?? [])];
  if (!body || body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column]?.textContent.trim() ?? "";
      const number = (row) => parseFloat(text(row).replaceAll(",", ""));
      const order = (a, b) => {
        if (!text(a) !== !text(b)) return text(a) ? -1 : 1;
        const [x, y] = [number(a), number(b)];
        const rising = isNaN(x) && isNaN(y) ? text(a).localeCompare(text(b)) : isNaN(x) ? 1 : isNaN(y) ? -1 : x - y;
        return down ? -rising : rising;
      };
      body.append(...[...body.rows].sort(order));
    };
  });
}
"""


def _allowed() -> str:
    """Return what a page may load and run: pictures in it, styles, and the script that sorts, by its hash."""
    digest = base64.b64encode(hashlib.sha256(SORT.encode()).digest()).decode()
    loads = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"{loads}; base-uri 'none'; form-action 'none'"


@functools.cache
def _code_style() -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n.highlight {{ background: none; }}\n@media (prefers-color-scheme: dark) {{ {dark} }}"


def page(title: str, body: str, links: Sequence[tuple[str, str]]) -> str:
    """Return a page of the gallery.

    Parameters
    ----------
    title : str
        Its title, as text.
    body : str
        HTML. Scripts in it do not run, and nothing it names is loaded from outside.
    links : sequence of pairs
        Address and name of each page that the head of the page links to.
    """
    nav = "".join(f'<a href="{escape(quote(address))}">{escape(name)}</a>' for address, name in links)
    allowed = f'<meta http-equiv="Content-Security-Policy" content="{escape(_allowed())}">\n'
    whole = f"<nav>{nav}</nav>\n<main>\n{body}\n</main>\n<script>{SORT}</script>"
    return html_page(f"idsel: {title}", whole, STYLE + _code_style(), allowed)


def cards(shown: Sequence[tuple[str, str, str, str]]) -> str:
    """Return cards, each an address, a title, a text and a picture as a data URI, "" for none."""
    parts = []
    for address, title, text, picture in shown:
        image = f'<img alt="" src="{escape(picture)}">' if picture else '<div class="none"></div>'
        words = f"<p><b>{escape(title)}</b></p><p>{escape(text)}</p>"
        parts.append(f'<li><a href="{escape(quote(address))}">{image}{words}</a></li>')
    return f'<ul class="cards">{"".join(parts)}</ul>'
