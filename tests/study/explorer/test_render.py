"""The explorer's page depends on its state and on nothing else, and says what is wrong in a sentence."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from idsel_core import IDSelection, id_select
from idsel_core.study.explorer import look
from idsel_core.study.explorer.places import Places
from idsel_core.study.explorer.render import render, render_pictures, write_page
from idsel_core.study.explorer.samples import open_picture, samples
from idsel_core.study.explorer.state import Side, State
from tests.support import hub_folders

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"
STATE = State(picture="scene 3", sides=(Side(budget=12), Side("topk", budget=9)), step=3)


def figures(html: str) -> list[str]:
    return re.findall(r"<figure>.*?</figure>", html, re.DOTALL)


def maps(figure: str) -> np.ndarray:
    """Return the first map of a figure, uint8 (rows, columns, 4)."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"png;base64,([^\"]+)", figure)[1]))))


def problems(html: str) -> list[str]:
    return re.findall(r'class="problem" role="alert">([^<]*)<', html)


def test_the_defaults_are_those_of_the_class():
    method = IDSelection(64)
    assert Side().build() == method
    assert (Side().gamma, Side().update, Side().importance) == (method.gamma, method.update, method.importance)


def test_the_page_shows_what_the_method_keeps():
    page = render(STATE)
    method = IDSelection(12)
    order = look.picked(STATE, method).order[0].tolist()
    kept, score, left, _, *others = figures(page.html)
    assert len(others) == 4 and page.tokens == 576
    assert np.flatnonzero(maps(kept)[..., 3] == 0).tolist() == sorted(order)
    said = re.findall(r"<title>pick (\d+): row (\d+), column (\d+)</title>", kept)
    assert [24 * (int(row) - 1) + int(column) - 1 for _, row, column in said] == order
    assert [int(pick) for pick, _, _ in said] == list(range(1, 13))
    highest = 24 * (order[0] // 24) // 24, order[0] % 24
    assert f"row {highest[0] + 1}, column {highest[1] + 1}" in score
    assert "score left after pick 3" in left and left.count("<title>") == 3
    assert "12 of 576" in page.answers and "9 of 576" in page.answers
    assert "this method does not lower scores pick by pick" in others[2]


@pytest.mark.parametrize("step", [0, 1, 5, 12, 40])
def test_the_scores_left_are_those_of_the_trace(step):
    method = IDSelection(12)
    tokens, selection = look.seen(STATE, method).tokens, look.picked(STATE, method)
    left = look.scores_left(STATE, method, step)
    knobs = {"gamma": method.gamma, "update": method.update, "exhausted": method.exhausted}
    traced = id_select(tokens.features, selection.scores, step + 1, trace=True, **knobs)
    np.testing.assert_array_equal(np.isnan(left), ~traced.trace[0, step].isfinite().numpy())
    np.testing.assert_array_equal(left[~np.isnan(left)], traced.trace[0, step][traced.trace[0, step].isfinite()])
    assert np.flatnonzero(np.isnan(left)).tolist() == sorted(traced.order[0, :step].tolist())


def test_a_spot_chooses_the_token_whose_likes_are_shown():
    spot = (5.5 / 24, 7.2 / 24)
    page = render(replace(STATE, spot=spot))
    alike = figures(page.html)[3]
    assert "row 6, column 8" in alike
    features = torch.nn.functional.normalize(look.everything(STATE).tokens.features[0].float(), dim=-1)
    cosines = look.similarity(STATE, IDSelection(12), 5 * 24 + 7)
    np.testing.assert_allclose(cosines, (features @ features[5 * 24 + 7]).numpy(), atol=1e-6)
    assert cosines[5 * 24 + 7] == pytest.approx(1, abs=1e-5)


def test_each_choice_changes_what_it_names_and_the_same_state_is_the_same_page():
    pictures, _ = render_pictures(STATE)
    assert render_pictures(STATE)[0] == pictures
    side = STATE.sides[0]
    knobs = {"budget": 13, "gamma": 500.0, "importance": "relevance"}
    knobs["update"] = "multiply" if side.update == "subtract" else "subtract"
    for knob, value in knobs.items():
        other = replace(STATE, sides=(replace(side, **{knob: value}), STATE.sides[1]), step=6)
        changed, same = (figures(render_pictures(state)[0]) for state in (other, replace(STATE, step=6)))
        assert changed[:4] != same[:4], knob
        assert changed[4:] == same[4:], knob
    assert figures(render_pictures(replace(STATE, step=2))[0])[:2] == figures(pictures)[:2]
    assert figures(render_pictures(replace(STATE, question="Where is the object?"))[0])[1] != figures(pictures)[1]


def test_one_token_and_a_whole_share_are_two_budgets():
    pages = {}
    for budget in (1, 1.0, 1):
        pages.setdefault(budget if isinstance(budget, float) else "one", []).append(
            render(replace(STATE, sides=(Side("topk", budget),))).html
        )
    assert "1 of 576 tokens kept" in pages["one"][0] and "1 of 576 tokens kept" in pages["one"][1]
    assert "576 of 576 tokens kept" in pages[1.0][0]
    assert "top-K importance, 1 token<" in pages["one"][0] and "top-K importance, 100 % of the tokens<" in pages[1.0][0]
    method = {kind: look.answer(STATE, Side("topk", kind(1)).build()).after for kind in (int, float)}
    assert method == {int: 1, float: 576}


def test_answers_are_those_of_prune():
    from idsel_core import prune
    from idsel_core.study.full_prompts import PromptWriter

    backbone, processor = look.opened(STATE.backbone, STATE.device)
    writer = PromptWriter(processor, backbone.model.device, backbone.model.dtype)
    inputs = writer.write([STATE.question], [[open_picture(STATE.picture)]])
    for method in (IDSelection(12), None):
        with prune(backbone.model, method or IDSelection(1.0)) as run:
            output = backbone.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        answer = look.answer(STATE, method)
        assert (answer.text, answer.before, answer.after) == (said, run.report[0].before, run.report[0].after)
        assert sorted(answer.kept) == run.report[0].indices


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"picture": "nowhere.png"}, "there is no picture &#x27;nowhere.png&#x27;: give a file, or one of temple"),
        ({"picture": b"no picture"}, "the upload: the image is no image that can be read"),
        ({"picture": "pyproject.toml"}, "pyproject.toml is no image that can be read"),
        ({"question": "  "}, "the question is empty: type one"),
        ({"question": "what <image> is it"}, "which this model reads as the place of input"),
        ({"backbone": "no/such/folder"}, "there is no folder"),
        ({"backbone": "~/no/such"}, "there is no folder /"),
        ({"backbone": ""}, "no model is named: give a folder or a hub id"),
        ({"device": "abacus"}, "abacus"),
        ({"sides": (Side("fastv", budget=1),)}, "fastv cannot bring 576 visual tokens down to 1"),
        ({"sides": (Side("nothing"),)}, "unknown method &#x27;nothing&#x27;"),
        ({"sides": (Side(budget=0),)}, "budget"),
        ({"sides": (Side(gamma=-1.0),)}, "gamma"),
        ({"sides": (Side(importance="love"),)}, "importance must be one of"),
        ({"step": -1}, "step must be a whole number, 0 or more, not -1"),
        ({"step": 2.5}, "step must be a whole number, 0 or more, not 2.5"),
        ({"new_tokens": 100_000}, "new_tokens must be a whole number, from 1 to 1024, not 100000"),
        ({"new_tokens": 0}, "new_tokens must be a whole number, from 1 to 1024, not 0"),
    ],
)
def test_what_is_wrong_is_a_sentence_on_the_page(change, sentence):
    page = render(replace(STATE, **change))
    (said,) = problems(page.html)
    assert sentence in said


@pytest.mark.parametrize("change", [{"question": HOSTILE}, {"picture": HOSTILE}, {"sides": (Side(HOSTILE),)}])
def test_text_of_a_person_stays_text(change):
    page = render(replace(STATE, **change)).html
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def test_a_page_is_a_file_that_needs_nothing_else(tmp_path):
    path = write_page(STATE, tmp_path / "pages/page.html")
    text = path.read_text()
    assert text.count('role="img"') == text.count("aria-label=") == 8
    assert re.findall(r"(?:src|href|url)[=(]\"?(?!\"?data:)[\w/]", text) == []


def test_samples_and_photographs_upright(tmp_path, monkeypatch):
    assert samples()[:4] == ("temple", "flower", "astronaut", "coffee") and len(samples()) == 12
    assert {open_picture(name).mode for name in samples()} == {"RGB"}
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(str(tmp_path / "turned.jpg")).size == (20, 40)
    assert open_picture((tmp_path / "turned.jpg").read_bytes()).size == (20, 40)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_picture("~/turned.jpg").size == (20, 40)


def test_places_without_tokens_hold_none():
    places = Places(2, 3, np.array([0, 5, -1, 5]))
    assert places.tokens.tolist() == [0, -1, -1, -1, -1, 1]
    assert np.array_equal(places.field(np.arange(4.0)), [[0, np.nan, np.nan], [np.nan, np.nan, 1]], equal_nan=True)
    assert places.token_at((0.99, 0.99)) == 1 and places.token_at((0.1, 0.9)) is None
    assert places.token_at((1.0, 1.0)) == 1 and places.token_at((-1.0, 0.0)) == 0


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "internvl", "smolvlm"])
def test_other_families_show_their_tokens(family, tmp_path):
    if family == "smolvlm":
        pytest.importorskip("num2words")
    folder = hub_folders.save(family, tmp_path / family)
    sides = (Side(budget=5), Side("uniform", budget=4))
    page = render(replace(STATE, picture="coffee", backbone=str(folder), sides=sides, step=2))
    assert problems(page.html) == []
    assert len(figures(page.html)) == 8
    assert "5 of" in page.answers and "4 of" in page.answers
