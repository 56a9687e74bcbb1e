"""The frame of pages that open offline, light or dark as the reader has it."""

from __future__ import annotations

import base64
from html import escape


def data_uri(content: bytes, kind: str) -> str:
    """Return a picture, such as of kind "png", as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def html_page(title: str, body: str, style: str = "", head: str = "") -> str:
    """Return a page.

    Parameters
    ----------
    title : str
        Its title, as text.
    body : str
        HTML.
    style : str
        CSS, without a "</".
    head : str
        HTML of the head, before the title.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'{head}<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>:root {{ color-scheme: light dark; }}\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
