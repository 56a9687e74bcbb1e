"""The explorer in JupyterLab: sliders and menus that change a state, and the page of that state."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, get_args

import anywidget
import ipywidgets as ipw
import traitlets
from IPython.display import clear_output, display

from idsel_core.methods import METHODS
from idsel_core.scores.registry import IMPORTANCE
from idsel_core.selection.suppression import Update
from idsel_core.study.error_text import error_text
from idsel_core.study.explorer import drawing
from idsel_core.study.explorer.render import render, render_answers, render_pictures
from idsel_core.study.explorer.samples import samples
from idsel_core.study.explorer.state import MOST_NEW_TOKENS, Side, State

_GAMMAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, math.inf, "auto")
_OWN = "a picture of my own"


class Shown(anywidget.AnyWidget):
    """A piece of the page, which tells the place in a picture that was clicked."""

    _esm = """
    function render({ model, el }) {
      const draw = () => { el.innerHTML = model.get("html"); el.dataset.drawn = model.get("number"); };
      model.on("change:number", draw);
      model.on("change:old", () => el.classList.toggle("idsel-old", model.get("old")));
      draw();
      el.classList.add("idsel-live");
      el.addEventListener("click", (event) => {
        const look = event.target.closest("[data-rows]");
        if (!look) return;
        const box = look.getBoundingClientRect();
        const spot = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
        model.set("clicked", spot);
        model.save_changes();
      });
    }
    export default { render };
    """
    html = traitlets.Unicode().tag(sync=True)
    number = traitlets.Int().tag(sync=True)
    old = traitlets.Bool().tag(sync=True)
    clicked = traitlets.List(traitlets.Float()).tag(sync=True)

    def show(self, html: str) -> None:
        """Replace what is shown."""
        with self.hold_sync():
            self.html, self.old = html, False
            self.number += 1


class _Controls:
    """The widgets of one side."""

    def __init__(self, side: Side, tokens: int) -> None:
        gammas = _GAMMAS if side.gamma in _GAMMAS else (side.gamma, *_GAMMAS)
        labels = [(f"{gamma:g}" if isinstance(gamma, float | int) else gamma, gamma) for gamma in gammas]
        share = isinstance(side.budget, float)
        budget = max(1, round(side.budget * tokens)) if share else side.budget
        self.method = ipw.Dropdown(
            options=[(METHODS[name].label, name) for name in METHODS], value=side.method, description="method"
        )
        self.budget = ipw.IntSlider(budget, 1, max(tokens, int(budget)), description="budget")
        self.gamma = ipw.SelectionSlider(options=labels, value=side.gamma, description="gamma")
        self.update = ipw.Dropdown(options=get_args(Update), value=side.update, description="update")
        self.importance = ipw.Dropdown(options=list(IMPORTANCE), value=side.importance, description="importance")

    @property
    def widgets(self) -> dict[str, Any]:
        return vars(self)

    def side(self) -> Side:
        return Side(**{name: widget.value for name, widget in self.widgets.items()})

    def show_knobs(self) -> None:
        """Grey the knobs that the method lacks."""
        knobs = self.side().knobs()
        for name, widget in self.widgets.items():
            widget.disabled = name not in {*knobs, "method"}


class Explorer:
    """Sliders and menus over `render`.

    Parameters
    ----------
    state : State
        What is shown at first.

    Attributes
    ----------
    state : State
        What is shown now.
    widget : VBox
        All of it.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.pictures, self.answers = Shown(), Shown()
        self.status, self.loading = ipw.HTML(), ipw.Output()
        self.hint = ipw.HTML("Click a token in any picture to see which tokens look like it.")
        known = state.picture if state.picture in samples() else _OWN
        self.sample = ipw.Dropdown(options=[*samples(), _OWN], value=known, description="picture")
        path = state.picture if known == _OWN and isinstance(state.picture, str) else ""
        typed = {"continuous_update": False, "layout": ipw.Layout(width="300px")}
        self.path = ipw.Text(path, description="or a file", placeholder="path, then Enter", **typed)
        self.upload = ipw.FileUpload(accept="image/*", description="or upload")
        self.question = ipw.Text(state.question, description="question", **typed)
        self.backbone = ipw.Text(state.backbone, description="model", placeholder="folder or hub id", **typed)
        self.new_tokens = ipw.BoundedIntText(state.new_tokens, 1, MOST_NEW_TOKENS, description="new tokens", **typed)
        self.step = ipw.IntSlider(state.step, 0, 576, description="picks made")
        self._draw(state)
        self.controls = [_Controls(side, self._tokens or 576) for side in state.sides]
        self._limit()
        self.widget = self._layout()
        self._connect()

    def _layout(self) -> ipw.VBox:
        asked = [self.backbone, self.sample, self.path, self.upload, self.question, self.new_tokens, self.step]
        of_picture = ipw.VBox(asked)
        columns = [ipw.VBox(list(controls.widgets.values())) for controls in self.controls]
        for box in (of_picture, *columns):
            box.layout = ipw.Layout(width="330px")
        return ipw.VBox(
            [ipw.HBox([of_picture, *columns]), self.status, self.loading, self.answers, self.hint, self.pictures]
        )

    def _connect(self) -> None:
        self.backbone.observe(self._on(lambda new: {"backbone": new.strip(), "spot": None}), "value")
        self.sample.observe(self._on(self._of_sample), "value")
        self.path.observe(self._on(self._of_path), "value")
        self.upload.observe(self._on(self._of_upload), "value")
        self.question.observe(self._on(lambda new: {"question": new}), "value")
        self.new_tokens.observe(self._on(lambda new: {"new_tokens": new}), "value")
        self.step.observe(self._on(lambda new: {"step": new}), "value")
        self.pictures.observe(self._on(lambda new: {"spot": tuple(new)}), "clicked")
        for controls in self.controls:
            for widget in controls.widgets.values():
                widget.observe(self._on(lambda new: {"sides": tuple(each.side() for each in self.controls)}), "value")

    def _on(self, changed: Callable[[Any], dict[str, Any]]) -> Callable[[Any], None]:
        """Return what draws the page once a widget has changed the state."""

        def act(change: Any) -> None:
            state = replace(self.state, **changed(change["new"]))
            if state != self.state:
                self._draw(state)
                self._limit()

        return act

    def _of_sample(self, name: str) -> dict[str, Any]:
        if name == _OWN:
            return {}
        self.path.value, self.upload.value = "", ()
        return {"picture": name, "spot": None}

    def _of_path(self, path: str) -> dict[str, Any]:
        if not path.strip():
            return {}
        self.sample.value, self.upload.value = _OWN, ()
        return {"picture": path.strip(), "spot": None}

    def _of_upload(self, files: Any) -> dict[str, Any]:
        if not files:
            return {}
        self.sample.value, self.path.value = _OWN, ""
        return {"picture": bytes(files[0]["content"]), "spot": None}

    def _draw(self, state: State) -> None:
        """Show the pictures of a state, then its answers, which may take longer."""
        before, self.state = self.state, state
        other = before.backbone != state.backbone
        asked = replace(before, step=state.step, spot=state.spot) != state or not self.answers.html
        self.status.value = f"<i>{'loading the model' if other else 'working'} …</i>"
        self.answers.old, self._tokens = asked, 0
        try:
            with self.loading if other else nullcontext():
                pictures, self._tokens = render_pictures(state)
            self.pictures.show(pictures)
            if asked:
                self.answers.show(render_answers(state) if self._tokens else "")
        except Exception as error:  # a traceback of a widget would go to a log that no one looks at
            self.answers.show("")
            self.pictures.show(drawing.page(drawing.problem(f"{type(error).__name__}: {error_text(error)}")))
        self.hint.layout.display = None if self._tokens else "none"
        if other:
            self.loading.clear_output()
        self.status.value = ""

    def _limit(self) -> None:
        """Let sliders end where the picture does."""
        for controls in self.controls:
            controls.show_knobs()
            if self._tokens:
                controls.budget.max = max(self._tokens, int(controls.budget.value))
        self.step.max = max([self.step.value, *(each.budget.value for each in self.controls)])

    def _ipython_display_(self) -> None:
        # Where widgets do not run, as in a stored notebook, the page of the state is shown.
        bundle = self.widget._repr_mimebundle_()
        clear_output(wait=True)  # the bars of a model that is loaded by now
        display({**bundle, "text/html": render(self.state).html}, raw=True)
