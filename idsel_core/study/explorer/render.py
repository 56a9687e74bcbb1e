"""`render`: from a state to the page that shows it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from idsel_core.methods import METHODS, Method, drops_inside
from idsel_core.study.error_text import error_text
from idsel_core.study.explorer import drawing, look
from idsel_core.study.explorer.places import Places
from idsel_core.study.explorer.state import Side, State
from idsel_core.study.report.html_page import html_page
from idsel_core.study.store.files import write_atomically
from idsel_core.study.timing.clock import device_name

REFUSALS = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
"""Errors that become a sentence on the page."""


@dataclass(frozen=True)
class Page:
    """What is shown of a state.

    Attributes
    ----------
    answers : str
        HTML of the answers with all and with the kept tokens, and what they took.
    pictures : str
        HTML of the pictures of each method.
    tokens : int
        Visual tokens of the picture; 0 if it cannot be read.
    """

    answers: str
    pictures: str
    tokens: int

    @property
    def html(self) -> str:
        """The whole page."""
        return self.answers + self.pictures


def render(state: State) -> Page:
    """Return the page of a state; what cannot be shown is a sentence there.

    Parameters
    ----------
    state : State
        What to look at.
    """
    pictures, tokens = render_pictures(state)
    return Page(render_answers(state) if tokens else "", pictures, tokens)


def render_pictures(state: State) -> tuple[str, int]:
    """Return the pictures of a state, and the number of its visual tokens, 0 if it cannot be read."""
    try:
        asked, tokens = look.asked(state), len(look.everything(state).places.cells)
    except REFUSALS as error:
        return drawing.page(drawing.problem(error_text(error))), 0
    sides = [_side(state, side, asked.picture) for side in state.sides]
    return drawing.page(*sides, style=_style(asked)), tokens


@functools.lru_cache(8)
def _style(asked: look.Asked) -> str:
    return drawing.photo_style(asked.picture)


def render_answers(state: State) -> str:
    """Return the table of the answers of a state whose picture can be read."""
    try:
        whole = look.answer(state, None)
    except REFUSALS as error:
        return drawing.page(drawing.problem(error_text(error)))
    rows, problems = [_row("all tokens", whole)], []
    for side in state.sides:
        if _refusal(state, side):
            rows.append([_label(side), "cannot be asked, see below", *[""] * 5])
            continue
        try:
            rows.append(_row(_name(side), look.answer(state, side.build())))
        except REFUSALS as error:
            problems.append(drawing.problem(f"{_name(side)}: {error_text(error)}"))
    device = look.opened(state.backbone, state.device)[0].model.device
    header = ("", "answer", "visual tokens", "GFLOPs", "encode ms", "select ms", "answer ms")
    note = (
        "GFLOPs are those of scores and prefill in the language model. "
        f"Times are of one run on {device_name(device)}, and say nothing of other machines."
    )
    asked = f'<p class="note"><b>{escape(state.question)}</b></p>'
    return drawing.page(asked, drawing.table(header, rows), f'<p class="note">{escape(note)}</p>', *problems)


def _row(name: str, answer: look.Answer) -> list[str]:
    after = f"{answer.after} of {answer.before}"
    if abs(answer.average - answer.after) > 0.5:
        after += f" at the last layer, {answer.average:.0f} on average"
    gflops = "not known" if math.isnan(answer.gflops) else f"{answer.gflops:,.3g}"
    times = (answer.encode_ms, answer.select_ms, answer.answer_ms)
    return [name, answer.text or "(nothing)", after, gflops, *(f"{ms:.1f}" for ms in times)]


def _name(side: Side) -> str:
    share = isinstance(side.budget, float)
    budget = f"{100 * side.budget:.3g} % of the tokens" if share else f"{side.budget} token{'s' * (side.budget != 1)}"
    return f"{side.build().label}, {budget}"


def _label(side: Side) -> str:
    return METHODS[side.method].label if side.method in METHODS else side.method


def _refusal(state: State, side: Side) -> str:
    """Say why a method cannot select here; "" if it can."""
    try:
        _order(state, side.build())
    except REFUSALS as error:
        return error_text(error)
    return ""


def _side(state: State, side: Side, picture: Image.Image) -> str:
    try:
        method = side.build()
        places, order = look.seen(state, method).places, _order(state, method)
        panels = [
            _kept(places, order, picture, method),
            _importance(state, method, places),
            _left(state, method, places, picture, order),
            _alike(state, method, places, picture, order),
        ]
    except REFUSALS as error:
        return f'<section class="side"><h3>{escape(_label(side))}</h3></section>' + drawing.problem(error_text(error))
    off = sum(int(places.cells[token]) < 0 for token in order)
    note = f'<p class="note">{off} of the kept tokens have no place on the picture.</p>' if off else ""
    return f'<section class="side"><h3>{escape(_name(side))}</h3>{"".join(panels)}</section>{note}'


def _order(state: State, method: Method) -> list[int]:
    """Return the kept tokens as they were picked; those of a method that drops inside are known after the answer."""
    if drops_inside(method):
        return list(look.answer(state, method).kept)
    return [token for token in look.picked(state, method).order[0].tolist() if token >= 0]


def _kept(places: Places, order: Sequence[int], picture: Image.Image, method: Method) -> str:
    total = len(places.cells)
    said = f"{len(order)} of {total} visual tokens that {method.label} keeps{_at(places, order[:1], ', the first')}"
    layers = drawing.veil(places, order), drawing.borders(places, order, picture)
    scale = drawing.scale(drawing.PICKS, "first pick", "last pick")
    return drawing.panel(f"{len(order)} of {total} tokens kept", said, places, *layers, faded=False, scale=scale)


def _importance(state: State, method: Method, places: Places) -> str:
    scores = _scores(state, method)
    if np.ptp(scores) == 0:
        return _nothing("importance", "this method gives all tokens the same score", places)
    field = places.field(scores)
    low, high = float(np.nanmin(field)), float(np.nanmax(field))
    said = f"scores before the first pick, highest{_at(places, [int(scores.argmax())])}"
    layer, scale = drawing.heat(field, low, high), drawing.scale(drawing.HEAT, f"{low:.3g}", f"{high:.3g}")
    return drawing.panel("score before the first pick", said, places, layer, scale=scale)


def _scores(state: State, method: Method) -> np.ndarray:
    scores = look.picked(state, method).scores[0].double().cpu().numpy()
    lowest = scores[np.isfinite(scores)].min(initial=0)
    return np.where(np.isfinite(scores), scores, lowest)


def _left(state: State, method: Method, places: Places, picture: Image.Image, order: Sequence[int]) -> str:
    step = min(state.step, len(order))
    title = f"score left after pick {step}" if step else "score left before the first pick"
    left = look.scores_left(state, method, step)
    if left is None:
        return _nothing(title, "this method does not lower scores pick by pick", places)
    high = float(_scores(state, method).max())
    field = places.field(left)
    best = "" if np.isnan(left).all() else _at(places, [int(np.nanargmax(left))])
    said = f"scores after {step} picks, of the tokens that are left; the next pick{best}"
    layers = drawing.heat(field, 0, high), drawing.borders(places, order[:step], picture)
    return drawing.panel(title, said, places, *layers, scale=drawing.scale(drawing.HEAT, "0 or less", f"{high:.3g}"))


def _alike(state: State, method: Method, places: Places, picture: Image.Image, order: Sequence[int]) -> str:
    token = places.token_at(state.spot) if state.spot else None
    of = "the token that was clicked"
    if token is None:
        token, of = (order[0] if len(order) else 0), "the first pick"
    field = places.field(look.similarity(state, method, token))
    said = f"cosine of each token with {of}{_at(places, [token])}"
    layers = drawing.heat(field, 0, 1, drawing.ALIKE), drawing.marked(places, token, picture)
    scale = drawing.scale(drawing.ALIKE, "cosine 0 or less", "1")
    return drawing.panel(f"similarity to {of}", said, places, *layers, scale=scale)


def _at(places: Places, tokens: Sequence[int], before: str = "") -> str:
    """Say where a token is, if there is one and it lies on the picture."""
    cell = int(places.cells[tokens[0]]) if tokens else -1
    row, column = divmod(cell, places.columns)
    return f"{before} at row {row + 1}, column {column + 1}" if cell >= 0 else ""


def _nothing(title: str, why: str, places: Places) -> str:
    return drawing.panel(title, why, places, scale=f'<div class="ends"><span>{escape(why)}</span></div>')


def write_page(state: State, path: Path) -> Path:
    """Write the page of a state to a file that opens offline; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, html_page("idsel: explorer", render(state).html).encode())
    return path
