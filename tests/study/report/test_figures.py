"""Figures draw the numbers of the store, and the sentences say them."""

import json

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from idsel_core.methods import IDSelection
from idsel_core.study.knobs import knob_columns
from idsel_core.study.report import ablation_figures as figures
from idsel_core.study.report import ablation_sentences as words
from idsel_core.study.report import pictures, tables, theme, wording
from idsel_core.study.report.bootstrap import Interval, mean_scores, share_of_full
from idsel_core.study.report.wording import gamma_name
from idsel_core.study.store.explain import explain
from idsel_core.study.store.provenance import provenance, read_origin
from idsel_core.study.store.results import Results
from idsel_core.visual_tokens import INSTRUCTION
from tests.support.commands import command
from tests.support.made_up_rows import QUESTION_TYPES, made_up
from tests.support.rows import make_rows

main = command("explain")

mpl.use("Agg")


@pytest.fixture(scope="module")
def gamma():
    settings = [
        {"method": "idselection", "update": u, "gamma": g, "budget": b}
        for b in (64.0, 16.0)
        for u in ("subtract", "multiply")
        for g in (0.0, 20.0, 100.0)
    ]
    settings += [{"method": "topk", "budget": b} for b in (64.0, 16.0)]
    return made_up(settings, dict(enumerate(np.linspace(0.3, 0.9, len(settings)))))


@pytest.fixture(scope="module")
def budget():
    settings = [{"method": m, "budget": b} for m in ("idselection", "random", "topk") for b in (64.0, 16.0)]
    settings += [{"method": "full", "budget": 576.0}, {"method": "no-image", "budget": 0.0}]
    return made_up(settings, dict(enumerate([0.8, 0.7, 0.6, 0.4, 0.79, 0.3, 0.9, 0.25])))


def line(axes, name):
    return next(drawn for drawn in axes.lines if drawn.get_label() == name)


def test_gamma_figure_draws_the_means(gamma):
    axes = figures.gamma_figure(gamma, 100).axes
    means = mean_scores(gamma[gamma["method"] == "idselection"], ["budget", "update", "gamma"])
    wanted = means[(means["budget"] == 64) & (means["update"] == "multiply")].sort_values("gamma")
    drawn = line(axes[0], "multiply")
    assert drawn.get_xdata().tolist() == [0, 20, 100]
    np.testing.assert_allclose(drawn.get_ydata(), wanted["mean"])


def test_budget_figure_draws_shares(budget):
    axis = figures.budget_figure(budget, 100).axes[0]
    shares = share_of_full(budget, ["method", "budget"]).set_index(["method", "budget"])["share"]
    drawn = line(axis, "ID-Selection")
    np.testing.assert_allclose(drawn.get_ydata(), shares["idselection"].sort_index())
    assert line(axis, "all tokens").get_ydata()[0] == 1


def test_each_question_type_has_a_panel(budget):
    titles = [axis.get_title() for axis in figures.question_types_figure(budget, 100).axes]
    assert set(QUESTION_TYPES) <= set(titles)


def test_objects_figure_draws_shares(budget):
    axis = figures.objects_figure(budget).axes[0]
    np.testing.assert_allclose(line(axis, "random").get_ydata(), [0.4, 0.6])


def test_importance_figure_has_a_row_for_each_score():
    layer, which = INSTRUCTION
    settings = [
        {"method": "idselection", "budget": 16.0, "importance": i, "instruction": a, "normalise": n, "features": f}
        for i, a in (("saliency", f"{which}@{layer}"), ("unified", f"{which}@{layer}"), ("unified", "last@2"))
        for n in ("minmax", "raw")
        for f in ("projector", "encoder")
    ]
    rows = made_up(settings, dict(enumerate(np.linspace(0.4, 0.8, len(settings)))))
    axis = figures.importance_figure(rows, 100).axes[0]
    names = {text.get_text() for text in axis.get_yticklabels()}
    assert names == {"saliency", "unified", "unified (last token, layer 2)"}
    said = words.about_importance(rows, 100)
    assert "from *unified (last token, layer 2)*" in said
    assert "*raw* is above *minmax*" in said


@pytest.mark.parametrize(
    ("gammas", "labels"),
    [((0, 1, 5, 20, 50, 100), ["0", "1", "5", "20", "", "100"]), ((0, 20, 100), ["0", "20", "100"])],
)
def test_labels_of_the_gamma_axis_do_not_touch(gammas, labels):
    axis = plt.figure().add_subplot()
    theme.gamma_axis(axis, gammas)
    axis.figure.canvas.draw()
    assert axis.get_xticks().tolist() == list(gammas)
    assert [text.get_text() for text in axis.get_xticklabels()] == labels


@pytest.mark.parametrize("limits", [(0.61, 0.82), (0.2, 1.0), (0.7, 0.74)])
def test_percent_ticks_are_not_rounded(limits):
    axis = plt.figure().add_subplot()
    axis.set_ylim(*limits)
    theme.percent_axis(axis.yaxis)
    axis.figure.canvas.draw()
    said = [float(text.get_text().rstrip("%")) for text in axis.get_yticklabels()]
    assert said == pytest.approx(100 * axis.get_yticks())


def test_labels_are_those_of_the_methods():
    assert [theme.label(name) for name in ("prumergeplus", "vscan (final)", "full", "mine")] == [
        "PruMerge+",
        "VScan (final)",
        "all tokens",
        "mine",
    ]


def test_figures_say_how_many_questions_they_asked(budget, gamma):
    drawn = [figures.budget_figure(budget, 50), figures.gamma_figure(gamma, 50), figures.objects_figure(budget)]
    for figure in drawn:
        assert "90 questions" in figure.get_supxlabel()


def test_a_method_keeps_its_colour_in_any_company():
    alone, together = theme.styles(["random"]), theme.styles(["divprune", "random", "idselection"])
    assert alone["random"] == together["random"]
    assert len({str(style["color"]) for style in together.values()}) == 3


def test_words_say_what_the_numbers_say(budget, gamma):
    said = words.about_budget(budget, resamples=200)
    assert "above random" in said
    assert "not told apart from top-K importance" in said
    assert "no image" in said
    assert "- By question type, ID-Selection keeps with 16 tokens, of the accuracy with all: " in said
    told = words.about_gamma(gamma, 20.0, resamples=200)
    assert "*Multiply* is above *subtract*" in told
    assert "best is *multiply* with gamma 100" in told and "Not told apart from it: no other." in told


def test_question_types_fall_by_what_is_left_of_them(budget):
    rows = budget.copy()
    own = (rows["method"] == "idselection") & (rows["budget"] == 16)
    for kind, right in (("existence", 1.0), ("counting", 0.0)):
        rows.loc[own & (rows["question_type"] == kind), "correct"] = right
    said = words.about_budget(rows, resamples=50).splitlines()[-1]
    assert said.index("counting 0 %") < said.index("reading") < said.index("existence 1")


def test_the_gamma_that_is_compared_is_the_methods_own(gamma):
    own = float(knob_columns(IDSelection(1))["gamma"])
    moved = gamma.assign(gamma=gamma["gamma"].where(gamma["gamma"] != 20, own))
    assert f"with gamma {gamma_name(own)} is" in words.about_gamma(moved, resamples=50)
    assert "top-K" not in words.about_gamma(gamma, 7.0, resamples=50)


def test_scores_are_ranked_by_the_numbers_or_not_at_all():
    settings = [
        {"method": "idselection", "budget": 16.0, "importance": i, "normalise": "raw", "features": f}
        for i in ("saliency", "relevance")
        for f in ("projector", "encoder")
    ]
    rows = made_up(settings, dict(enumerate([0.3, 0.4, 0.5, 0.6]))).assign(instruction="")
    assert words.about_importance(rows, 50).startswith("- **16 tokens**: Over all scores, *encoder* is")


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.1, 0.2, "above"), (-0.2, -0.1, "below"), (-0.1, 0.1, "not told apart from")]
)
def test_the_interval_decides(low, high, word):
    assert wording.verdict(Interval((low + high) / 2, low, high, 10, 0.95, 10, 0)) == word


def test_positions_are_compared_pairwise(budget):
    chosen = budget[(budget["method"] == "random") & (budget["budget"] == 64)]
    both = pd.concat([chosen, chosen.assign(positions="keep", correct=1.0)])
    assert "original positions are above compact ones, +" in words.about_positions(both, 100)


def test_the_table_has_each_budget_and_method(budget, tmp_path):
    table = tables.method_table(budget, [64], 100)
    assert table["method"].tolist() == ["all tokens", "ID-Selection", "random", "top-K importance", "no image"]
    text = tables.save_table(table, tmp_path, "t")
    assert (tmp_path / "t.md").read_text().strip() == text.strip()
    assert "100.0 [100.0, 100.0]" in text


def test_equal_figures_are_equal_files(budget, tmp_path):
    for folder in ("a", "b"):
        theme.save(figures.objects_figure(budget), tmp_path / folder, "f", {"parameters": {"resamples": 9}})
    assert (tmp_path / "a/f.png").read_bytes() == (tmp_path / "b/f.png").read_bytes()
    assert (tmp_path / "a/f.pdf").read_bytes() == (tmp_path / "b/f.pdf").read_bytes()


@pytest.fixture
def drawn(tmp_path):
    store = Results(tmp_path / "results")
    store.write("budget", make_rows(), provenance({"gammas": [5.0, 20.0], "note": "é (a) \\"}))
    note = store.origin("budget", resamples=100)
    theme.save(figures.objects_figure(store.frame()), tmp_path / "figures", "objects", note)
    return store, note, tmp_path / "figures/objects"


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_figure_tells_what_it_was_drawn_from(drawn, suffix):
    store, note, stem = drawn
    path = stem.with_suffix(suffix)
    assert read_origin(path) == json.loads(json.dumps(note))
    assert note["results"]["rows/budget"]["rows"] == 24
    assert note["results"]["rows/budget"]["commit"] == store.provenance("budget")["commit"]


def test_the_origin_depends_on_rows_not_on_time_or_order(drawn):
    store, note, _ = drawn
    same = provenance({"gammas": [5.0, 20.0], "note": "é (a) \\"}, started=0.0)
    store.write("budget", make_rows().sample(frac=1, random_state=0), same | {"created": "later"})
    assert store.origin("budget", resamples=100) == note


@pytest.mark.parametrize(("suffix", "content"), [(".png", b"no"), (".pdf", b"no"), (".png", None), (".pdf", None)])
def test_a_figure_that_tells_nothing_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"f{suffix}"
    if content is None:
        plt.figure().savefig(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} (is no PNG or PDF|does not tell what it was drawn from)"):
        explain(path)


def test_kept_tokens_are_bright():
    axis = plt.figure().add_subplot()
    pictures.draw_kept(axis, Image.new("RGB", (40, 20)), [3, 0], 2, 4)
    veil = axis.images[1].get_array()[..., 3]
    assert veil[0, 3] == veil[0, 0] == 0
    assert (veil > 0).sum() == 6
    assert len(axis.patches) == 2
