"""Failures are questions that all tokens answer right and a method's tokens answer wrong."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from idsel_core.study.report.animation import write_gif, write_page
from idsel_core.study.report.failures import draw_dropped, turned_wrong


def rows(method: str, budget: float, correct: list[int], on_objects: float = 0.5) -> pd.DataFrame:
    count = len(correct)
    return pd.DataFrame(
        {
            "method": method,
            "budget": budget,
            "question_id": [f"q{n}" for n in range(count)],
            "prediction": [f"{method} says {value}" for value in correct],
            "correct": correct,
            "on_objects": np.linspace(on_objects, 0, count),
        }
    )


def test_only_answers_that_turn_wrong_are_found():
    stored = pd.concat([rows("full", 576, [1, 1, 0, 1]), rows("topk", 8, [1, 0, 0, 0]), rows("topk", 9, [0, 0, 1, 1])])
    found = turned_wrong(stored, "topk", 8)
    assert found["question_id"].tolist() == ["q3", "q1"], "least on objects first"
    assert set(found["with_all"]) == {"full says 1"} and set(found["prediction"]) == {"topk says 0"}
    assert turned_wrong(stored, "topk", 9)["question_id"].tolist() == ["q1", "q0"]


def test_rows_that_tell_nothing_are_refused():
    both = pd.concat([rows("full", 576, [1]), rows("topk", 8, [0])])
    for stored, budget, said in ((both, 9, "none of topk at 9 tokens"), (both[1:], 8, "none of all tokens")):
        with pytest.raises(ValueError, match=said):
            turned_wrong(stored, "topk", budget)
    with pytest.raises(ValueError, match="several settings of topk"):
        turned_wrong(pd.concat([both, rows("topk", 8, [1])]), "topk", 8)


def test_dropped_tokens_on_objects_are_counted():
    _, axis = plt.subplots()
    inside = np.array([True, True, False, True])
    assert draw_dropped(axis, Image.new("RGB", (8, 8)), [1, 2], (2, 2), inside) == 2
    plt.close()


def test_an_animation_has_all_frames_and_text_stays_text(tmp_path):
    drawn = [Image.new("RGB", (20, 10), (40 * n, 0, 0)) for n in range(5)]
    with Image.open(write_gif(drawn, tmp_path / "new/moves.gif")) as animation:
        assert animation.n_frames == 5
    hostile = "</script><script>alert(1)</script>"
    page = write_page(drawn, [hostile] * 5, hostile, tmp_path / "moves.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 5
    assert page.count("<script") == page.count("</script") == 1 and "alert(1)" in page
    assert "http" not in page and io.StringIO(page).readline() == "<!doctype html>\n"
