"""Frames as an animation: a GIF, and a page with a slider."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from idsel_core.study.report.html_page import data_uri, html_page
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
