"""Figures have the widths of pages and slides, names that do not cover each other, and say what they show."""

import re
from itertools import pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from idsel_core.study.report import ablation_figures, theme
from idsel_core.study.report.alt_text import alt_text, read_alt
from tests.support.made_up_rows import made_up

mpl.use("Agg")


@pytest.fixture
def budget():
    settings = [{"method": m, "budget": b} for m in ("idselection", "random", "topk") for b in (64.0, 16.0)]
    settings += [{"method": "full", "budget": 576.0}, {"method": "no-image", "budget": 0.0}]
    return made_up(settings, dict(enumerate([0.8, 0.7, 0.6, 0.4, 0.79, 0.3, 0.9, 0.25])))


@pytest.fixture(autouse=True)
def for_paper():
    theme.use_theme()
    yield
    theme.use_theme()
    plt.close("all")


def test_numbers_are_moved_apart_as_little_as_can_be():
    wanted = np.array([0.5, 0.5, 0.9, 0.52, 0.1])
    placed = theme.spread(wanted, 0.1)
    assert np.diff(np.sort(placed)).min() >= 0.1 - 1e-9
    assert placed[[2, 4]].tolist() == [0.9, 0.1]
    assert placed[[0, 1, 3]].mean() == pytest.approx(wanted[[0, 1, 3]].mean())
    assert (np.argsort(placed, kind="stable") == np.argsort(wanted, kind="stable")).all()
    assert theme.spread([0.98, 0.99, 1.0], 0.1).max() == pytest.approx(1.0)


def test_names_beside_lines_do_not_cover_each_other(budget):
    figure = ablation_figures.budget_figure(budget, 50)
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 5
    for lower, upper in pairwise(boxes):
        assert upper.y0 >= lower.y1 - 1
    assert all(box.x1 <= figure.bbox.x1 + 1 for box in boxes)


@pytest.mark.parametrize(("use", "column", "page"), [("paper", 3.4, 7.0), ("slides", 8.4, 12.8)])
def test_files_have_the_widths_of_their_use(budget, tmp_path, use, column, page):
    theme.use_theme(use)
    for name, draw, width in (
        ("narrow", ablation_figures.budget_figure, column),
        ("wide", ablation_figures.question_types_figure, page),
    ):
        theme.save(draw(budget, 50), tmp_path, name, {})
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width == round(width * theme.USES[use].dpi)
        box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", (tmp_path / f"{name}.pdf").read_bytes())
        assert float(box[1]) / 72 == pytest.approx(width, abs=0.01)


def test_a_use_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="drawn for paper or slides, not for 'posters'"):
        theme.use_theme("posters")


def test_fonts_in_pdf_files_are_embedded_outlines(budget, tmp_path):
    theme.save(ablation_figures.budget_figure(budget, 50), tmp_path, "f", {})
    page = (tmp_path / "f.pdf").read_bytes()
    assert b"/Subtype /Type3" not in page and b"/Subtype /Image" not in page
    assert b"/FontFile2" in page and b"/CIDFontType2" in page


def test_alt_text_says_what_is_drawn_and_goes_with_the_file(budget, tmp_path):
    figure = ablation_figures.budget_figure(budget, 50)
    said = alt_text(figure)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "random")
    first, last = (f"{100 * share:.4g}" for share in np.round(line.get_ydata(), 3))
    assert f"random {first}% at 16, {last}% at 64" in said and "all tokens at 100%" in said
    assert said.startswith("Share of full performance against the visual tokens kept")
    theme.save(figure, tmp_path, "f", {})
    assert read_alt(tmp_path / "f.png") == said
    theme.save(plt.figure(), tmp_path, "own", {}, alt="my words")
    assert read_alt(tmp_path / "own.png") == "my words"


def test_alt_text_counts_what_would_be_too_long(budget):
    rows = budget.copy()
    rows["question_type"] = [f"kind {number % 30}" for number in range(len(rows))]
    said = alt_text(ablation_figures.question_types_figure(rows, 50))
    assert re.search(r"And \d+ more panels\.$", said) and len(said) < 1500
