"""ID-Selection pick by pick: a poster, and an animation as GIF and as a page."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from idsel_core.study.report import palette, theme
from idsel_core.study.report.html_page import data_uri, html_page
from idsel_core.study.report.pictures import draw_heat, draw_kept
from idsel_core.study.store.files import write_atomically

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
img { width: 100%; background: white; }
input { width: 70%; vertical-align: middle; }
"""
_BODY = """<h1>{title}</h1>
<p><button id="play">play</button> <input id="step" type="range" min="0" max="{last}" value="{last}"
  aria-label="picks made"> <output id="said"></output></p>
<img id="frame" alt="">
<script>
  const frames = {frames}, said = {said};
  const [step, frame, text, play] = ["step", "frame", "said", "play"].map((id) => document.getElementById(id));
  const show = () => {{ frame.src = frames[step.value]; frame.alt = text.value = said[step.value]; }};
  let timer = null;
  const stop = () => {{ clearInterval(timer); timer = null; play.textContent = "play"; }};
  play.onclick = () => {{
    if (timer) return stop();
    if (step.value == step.max) step.value = 0;
    play.textContent = "stop";
    timer = setInterval(() => {{ if (step.value == step.max) stop(); else {{ step.value++; show(); }} }}, 500);
    show();
  }};
  step.oninput = () => {{ stop(); show(); }};
  show();
</script>"""


def poster(
    picture: Image.Image,
    order: Sequence[int],
    trace: np.ndarray,
    diverse: Sequence[int],
    grid: tuple[int, int],
    steps: Sequence[int] = (0, 1, 2, 4, 8, 16),
) -> Figure:
    """Draw a picture, its importance, what diversity alone keeps, what ID-Selection keeps, and how the scores fall.

    Parameters
    ----------
    picture : Image
        What the model reads.
    order : sequence of int
        Picks of ID-Selection.
    trace : ndarray
        Scores before each pick and after the last, (K + 1, N), -inf at picks.
    diverse : sequence of int
        Picks of diversity alone.
    grid : tuple[int, int]
        Rows and columns of tokens.
    steps : sequence of int
        Numbers of picks after which the scores are drawn; those that there are not are left out.
    """
    steps = [step for step in steps if step < len(trace)]
    figure = plt.figure(figsize=(theme.PAGE, 3.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.75, 1.25))
    above, below = parts
    top, bottom = above.subplots(1, 4), below.subplots(1, len(steps), squeeze=False)[0]
    top[0].imshow(picture)
    top[0].set_axis_off()
    draw_heat(top[1], picture, trace[0], *grid)
    draw_kept(top[2], picture, diverse, *grid)
    draw_kept(top[3], picture, order, *grid)
    names = ("image", "importance", f"diversity only: {len(diverse)}", f"ID-Selection: {len(order)}")
    for axis, name in zip(top, names, strict=True):
        axis.set_title(name, fontsize="small")
    for axis, step in zip(bottom, steps, strict=True):
        _draw_left(axis, picture, trace, order, step, grid)
        axis.set_title("before pick 1" if step == 0 else f"after pick {step}", fontsize="small")
    return figure


def _draw_left(
    axis: Axes, picture: Image.Image, trace: np.ndarray, order: Sequence[int], step: int, grid: tuple[int, int]
) -> None:
    """Draw the scores after so many picks on the scale of the first scores, and the picks."""
    left = np.where(np.isfinite(trace[step]), trace[step], np.nan)
    draw_heat(axis, picture, left, *grid)
    axis.images[-1].set_clim(0, trace[0].max())
    width, height = picture.width / grid[1], picture.height / grid[0]
    for pick, token in enumerate(order[:step], 1):
        color = palette.PICK if pick == step else palette.PICKED
        corner = token % grid[1] * width, token // grid[1] * height
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.0))


def frames(
    picture: Image.Image, order: Sequence[int], trace: np.ndarray, grid: tuple[int, int], width: int = 640
) -> list[Image.Image]:
    """Return a picture for each number of picks, from 0: the scores that are left beside the tokens that are kept.

    Parameters
    ----------
    picture, order, trace, grid
        As for `poster`.
    width : int
        Of a frame, pixels.
    """
    drawn = []
    for step in range(len(trace)):
        figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.5), layout="constrained")
        _draw_left(axes[0], picture, trace, order, step, grid)
        draw_kept(axes[1], picture, order[:step], *grid)
        axes[0].set_title("score left")
        axes[1].set_title(f"{step} of {grid[0] * grid[1]} tokens kept")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=width / 6.4, bbox_inches=None)
        plt.close(figure)
        drawn.append(Image.open(buffer).convert("RGB"))
    return drawn


def write_gif(drawn: Sequence[Image.Image], path: Path, milliseconds: int = 500) -> Path:
    """Write frames as an animation that repeats, and rests on its last frame; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = [frame.quantize(128, dither=Image.Dither.NONE) for frame in drawn]
    times = [milliseconds] * (len(small) - 1) + [4 * milliseconds]
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=times, loop=0)
    write_atomically(path, buffer.getvalue())
    return path


def write_page(drawn: Sequence[Image.Image], said: Sequence[str], title: str, path: Path) -> Path:
    """Write frames as a page with a slider, which opens offline; return its path.

    Parameters
    ----------
    drawn : sequence of Image
        The frames.
    said : sequence of str
        What each of them shows, for those who cannot see it.
    title : str
        Of the page.
    path : Path
        Where it goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sources = []
    for frame in drawn:
        buffer = io.BytesIO()
        frame.save(buffer, "JPEG", quality=88)
        sources.append(data_uri(buffer.getvalue(), "jpeg"))
    # A script ends at "</", whatever stands before it.
    texts = json.dumps(list(said)).replace("<", "\\u003c")
    body = _BODY.format(title=escape(title), last=len(drawn) - 1, frames=json.dumps(sources), said=texts)
    write_atomically(path, html_page(title, body, _STYLE).encode())
    return path
