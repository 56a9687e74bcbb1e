"""Widgets change the state, and the page follows."""

import io
from datetime import datetime

import pytest
from PIL import Image

from idsel_core.study.explorer.state import Side, State
from idsel_core.study.explorer.widgets import Explorer

STATE = State(picture="scene 3", sides=(Side(budget=12), Side("topk", budget=9)), step=3)


@pytest.fixture
def explorer():
    return Explorer(STATE)


def test_each_widget_changes_the_state_and_redraws(explorer):
    own = explorer.controls[0]
    assert own.side() == STATE.sides[0]
    drawn = explorer.pictures.number
    own.budget.value = 14
    assert explorer.state.sides == (Side(budget=14), STATE.sides[1])
    assert "14 of 576 tokens kept" in explorer.pictures.html and "14 of 576" in explorer.answers.html
    explorer.step.value = 5
    assert explorer.state.step == 5 and "score left after pick 5" in explorer.pictures.html
    explorer.question.value = "Where is the object?"
    assert "Where is the object?" in explorer.answers.html
    explorer.pictures.clicked = [0.5, 0.25]
    assert explorer.state.spot == (0.5, 0.25) and "the token that was clicked" in explorer.pictures.html
    explorer.new_tokens.value = 2
    assert explorer.state.new_tokens == 2
    assert explorer.pictures.number == drawn + 5
    assert not explorer.answers.old


def test_a_picture_comes_from_a_sample_a_file_or_an_upload(explorer, tmp_path):
    explorer.sample.value = "coffee"
    assert explorer.state.picture == "coffee"
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red.png")
    explorer.path.value = str(tmp_path / "red.png")
    assert explorer.state.picture == str(tmp_path / "red.png")
    buffer = io.BytesIO()
    Image.new("RGB", (48, 64), "blue").save(buffer, "PNG")
    file = {"name": "b.png", "type": "image/png", "size": 1, "content": memoryview(buffer.getvalue())}
    explorer.upload.value = ({**file, "last_modified": datetime.now()},)
    assert explorer.state.picture == buffer.getvalue()
    assert "problem" not in explorer.pictures.html.partition("</style>")[2]
    assert (explorer.sample.value, explorer.path.value) == ("a picture of my own", "")
    explorer.sample.value = "coffee"
    assert explorer.state.picture == "coffee" and explorer.upload.value == ()
    explorer.upload.value = ({**file, "last_modified": datetime.now()},)
    assert explorer.state.picture == buffer.getvalue(), "the same file once more"
    explorer.path.value = str(tmp_path / "red.png")
    assert explorer.state.picture == str(tmp_path / "red.png") and explorer.upload.value == ()


def test_knobs_that_a_method_lacks_are_greyed(explorer):
    assert not explorer.controls[0].gamma.disabled and not explorer.controls[0].update.disabled
    other = explorer.controls[1]
    assert other.gamma.disabled and other.update.disabled and not other.importance.disabled
    other.method.value = "divprune"
    assert other.importance.disabled and not other.budget.disabled


def test_a_slider_ends_where_the_picture_does(explorer):
    assert explorer.controls[0].budget.max == 576
    assert explorer.step.max == 12


def test_what_is_wrong_is_a_sentence_and_mending_it_shows_the_page_again(explorer, monkeypatch):
    budget = explorer.controls[0].budget.max
    explorer.backbone.value = " "
    assert "no model is named: give a folder or a hub id" in explorer.pictures.html
    assert explorer.hint.layout.display == "none"
    assert explorer.answers.html == explorer.status.value == "" and explorer.controls[0].budget.max == budget
    explorer.backbone.value = STATE.backbone
    assert "12 of 576" in explorer.answers.html and explorer.hint.layout.display is None

    def fail(state):
        raise KeyError("a fault")

    monkeypatch.setattr("idsel_core.study.explorer.widgets.render_pictures", fail)
    explorer.step.value = 4
    assert "KeyError: &#x27;a fault&#x27;" in explorer.pictures.html and explorer.status.value == ""


def test_without_widgets_the_page_is_shown(explorer, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("idsel_core.study.explorer.widgets.display", lambda bundle, raw: shown.append(bundle))
    explorer._ipython_display_()
    assert "12 of 576 tokens kept" in shown[0]["text/html"]
    assert "\\x1b[2K" in repr(capsys.readouterr().out), "what was printed while the model was loaded is cleared"
    assert "application/vnd.jupyter.widget-view+json" in shown[0]
