"""Pieces of the explorer's page, as HTML that needs nothing from outside; text of a person stays text."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from html import escape

import matplotlib as mpl
import numpy as np
from PIL import Image

from idsel_core.study.explorer.places import Places

STYLE = """
.idsel { font: 13px/1.4 system-ui, sans-serif; color: var(--jp-content-font-color1, CanvasText); }
.idsel table { border-collapse: collapse; font: inherit; color: inherit; margin: 4px 0 10px; }
.idsel th, .idsel td { padding: 2px 12px 2px 0; text-align: left; font-variant-numeric: tabular-nums;
  border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.idsel .side { display: grid; grid-template-columns: repeat(4, minmax(120px, 240px)); gap: 10px; margin-bottom: 10px; }
.idsel .side h3 { grid-column: 1 / -1; margin: 4px 0 0; font-size: 14px; }
.idsel figure { margin: 0; min-width: 0; }
.idsel figcaption { min-height: 2.8em; display: flex; align-items: end; }
.idsel .look { position: relative; overflow: hidden; }
.idsel .look > * { position: absolute; inset: 0; width: 100%; height: 100%; }
.idsel .look img { image-rendering: pixelated; }
.idsel .photo { background-size: 100% 100%; }
.idsel .faded { filter: grayscale(1); opacity: 0.9; }
.idsel .scale { position: static; display: block; height: 6px; width: 100%; margin-top: 3px; }
.idsel .ends { display: flex; justify-content: space-between; font-size: 11px; }
.idsel .note { margin: 2px 0 10px; max-width: 62em; }
.idsel .problem { padding: 6px 10px; border-left: 4px solid #b3261e; }
.idsel-live [data-rows] { cursor: crosshair; }
.idsel-old { opacity: 0.35; transition: opacity 0.1s 0.3s; }
"""

PICKS, HEAT, ALIKE = "rocket_r", "magma", "viridis"
"""Colour maps of the order of picks, of scores and of similarities."""

_MOST = 480
"""Longest side of the picture on the page, pixels."""


@functools.lru_cache(16)
def _colours(name: str, steps: int = 256) -> np.ndarray:
    import seaborn as sns

    known = name in mpl.colormaps
    colours = mpl.colormaps[name] if known else sns.color_palette(name, as_cmap=True)
    return (np.asarray(colours(np.linspace(0, 0.85 if name == PICKS else 1, steps))) * 255).astype(np.uint8)


def _data(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def photo_style(picture: Image.Image) -> str:
    """Return the CSS that shows a picture in all elements of the class ``photo``."""
    small = picture.copy()
    small.thumbnail((_MOST, _MOST))
    return (
        f".idsel .photo {{ background-image: url({_data(small, 'JPEG', quality=88)}); }}\n"
        f".idsel .look {{ aspect-ratio: {picture.width} / {picture.height}; }}\n"
    )


def heat(field: np.ndarray, low: float, high: float, colours: str = HEAT, opacity: float = 0.75) -> str:
    """Return a map of values (rows, columns) from `low` to `high`, clear where they are NaN, as an image."""
    share = np.nan_to_num((field - low) / (high - low if high > low else 1)).clip(0, 1)
    pixels = _colours(colours)[(share * 255).round().astype(int)].copy()  # (rows, columns, 4)
    pixels[..., 3] = np.where(np.isnan(field), 0, round(255 * opacity))
    return f'<img alt="" src="{_data(Image.fromarray(pixels), "PNG")}">'


def veil(places: Places, kept: Sequence[int]) -> str:
    """Return what dims all places but those of the kept tokens, as an image."""
    pixels = np.zeros((places.rows * places.columns, 4), np.uint8)
    pixels[:, 3] = 170
    pixels[[cell for cell in places.cells[list(kept)] if cell >= 0], 3] = 0
    return f'<img alt="" src="{_data(Image.fromarray(pixels.reshape(places.rows, places.columns, 4)), "PNG")}">'


def borders(places: Places, order: Sequence[int], picture: Image.Image) -> str:
    """Return borders around tokens, coloured by their order, and a name on each for a pointer that rests there."""
    width, height = picture.width / places.columns, picture.height / places.rows
    line = max(picture.size) / 200
    drawn = []
    for pick, (token, (r, g, b, _)) in enumerate(
        zip(order, _colours(PICKS, max(len(order), 1)).tolist(), strict=False)
    ):
        if (cell := int(places.cells[token])) < 0:
            continue
        row, column = divmod(cell, places.columns)
        drawn.append(
            f'<rect x="{column * width + line / 2:.1f}" y="{row * height + line / 2:.1f}" '
            f'width="{width - line:.1f}" height="{height - line:.1f}" stroke="rgb({r},{g},{b})">'
            f"<title>pick {pick + 1}: row {row + 1}, column {column + 1}</title></rect>"
        )
    return (
        f'<svg viewBox="0 0 {picture.width} {picture.height}" preserveAspectRatio="none" fill="none" '
        f'stroke-width="{line:.1f}" pointer-events="all" aria-hidden="true">{"".join(drawn)}</svg>'
    )


def marked(places: Places, token: int, picture: Image.Image) -> str:
    """Return a mark around one token."""
    width, height, line = picture.width / places.columns, picture.height / places.rows, max(picture.size) / 90
    if (cell := int(places.cells[token])) < 0:
        return ""
    row, column = divmod(cell, places.columns)
    box = f'x="{column * width:.1f}" y="{row * height:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return (
        f'<svg viewBox="0 0 {picture.width} {picture.height}" preserveAspectRatio="none" fill="none" '
        f'aria-hidden="true"><rect {box} stroke="black" stroke-width="{line:.1f}"/>'
        f'<rect {box} stroke="white" stroke-width="{line / 2:.1f}"/></svg>'
    )


def panel(title: str, described: str, places: Places, *layers: str, faded: bool = True, scale: str = "") -> str:
    """Return a picture with layers over it, its title, its description for those who cannot see it, and its scale."""
    photo = f'<div class="photo{" faded" if faded else ""}"></div>'
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<div class="look" role="img" aria-label="{escape(described)}" data-rows="{places.rows}" '
        f'data-columns="{places.columns}">{photo}{"".join(layers)}</div>{scale}</figure>'
    )


def scale(colours: str, low: str, high: str) -> str:
    """Return a bar of a colour map with the names of its two ends."""
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b, _ in _colours(colours, 8).tolist())
    return (
        f'<div class="scale" style="background: linear-gradient(to right, {stops})"></div>'
        f'<div class="ends"><span>{escape(low)}</span><span>{escape(high)}</span></div>'
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def problem(text: str) -> str:
    """Return a sentence that says what is wrong."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def page(*parts: str, style: str = "") -> str:
    """Return the whole page."""
    return f'<div class="idsel"><style>{STYLE}{style}</style>{"".join(parts)}</div>'
