"""Methods against each other: the outcomes, the difficulty and the tables say what the rows say."""

import matplotlib as mpl
import pandas as pd
import pytest

from idsel_core.study.report import comparison, comparison_figures, comparison_sentences, comparison_tables, palette
from idsel_core.study.store.results import Results
from tests.support.made_up_rows import QUESTION_TYPES, made_up
from tests.support.rows import make_rows

mpl.use("Agg")
METHODS = ("idselection", "downsample", "topk", "random")


@pytest.fixture(scope="module")
def rows():
    settings = [{"method": m, "budget": b} for b in (64.0, 16.0) for m in METHODS]
    settings += [{"method": "full", "budget": 576.0}, {"method": "no-image", "budget": 0.0}]
    return made_up(settings, dict(enumerate([0.8, 0.6, 0.8, 0.5, 0.4, 0.3, 0.7, 0.2, 0.9, 0.1])))


@pytest.fixture(scope="module")
def table(rows):
    return comparison.versus_each(rows, resamples=500)


def test_outcomes_follow_the_corrected_tests(table):
    outcomes = table.set_index(["budget", "other"])["outcome"].to_dict()
    assert outcomes == {
        (64.0, "downsample"): "win",
        (64.0, "topk"): "tie",
        (64.0, "random"): "win",
        (16.0, "downsample"): "win",
        (16.0, "topk"): "loss",
        (16.0, "random"): "win",
    }
    decided = table[table["outcome"] != "tie"]
    assert (decided["corrected"] < 0.05).all() and (table["corrected"] >= table["p"]).all()
    wins = table[table["outcome"] == "win"]
    assert (wins["low"] > 0).all() and (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()


def test_versus_each_needs_the_method(rows):
    with pytest.raises(ValueError, match=r"no rows of method 'divprune'; there are \['downsample'"):
        comparison.versus_each(rows, "divprune")


def test_easy_questions_are_those_of_the_smaller_image(rows):
    graded = comparison.by_difficulty(rows)
    answered = set(rows.loc[(rows["method"] == "full") & (rows["correct"] == 1), "question_id"])
    assert set(graded["question_id"]) == answered
    assert set(graded["method"]) == {"idselection", "topk", "random"}
    for budget in (64.0, 16.0):
        small = rows[(rows["method"] == "downsample") & (rows["budget"] == budget) & (rows["correct"] == 1)]
        easy = graded[(graded["budget"] == budget) & (graded["difficulty"] == "easy")]
        assert set(easy["question_id"]) == set(small["question_id"]) & answered


@pytest.mark.parametrize("lost", ["full", "downsample"])
def test_a_difficulty_needs_all_tokens_and_the_smaller_image(rows, lost):
    with pytest.raises(ValueError, match=f"no rows of method '{lost}'; there are"):
        comparison.by_difficulty(rows[rows["method"] != lost])


def test_the_ranking_draws_the_shares_best_first(rows):
    figure = comparison_figures.ranking_figure(rows, resamples=200)
    axis = figure.axes[0]
    assert axis.get_yticklabels()[0].get_text() == "top-K importance"
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["64", "16"]
    full = rows[rows["method"] == "full"].groupby("question_type")["correct"].mean()
    best = rows[(rows["method"] == "topk") & (rows["budget"] == 64)].groupby("question_type")["correct"].mean()
    assert axis.texts[0].get_text().split(" ± ")[0] == f"{100 * (best / full).mean():.1f}"


@pytest.fixture(scope="module")
def with_final(rows):
    """Rows with a method inside the language model that, by its final budget, does better than all others."""
    inside = rows[(rows["method"] == "topk") & (rows["budget"] == 64)].assign(method="fastv")
    both = pd.concat([rows, inside.assign(convention="average"), inside.assign(convention="final", correct=1.0)])
    return comparison.by_title(both)


def test_final_budgets_have_a_name_of_their_own_and_stand_apart(rows, with_final):
    assert set(with_final["method"]) == {*rows["method"], "fastv", "fastv (final)"}
    figures = [
        comparison_figures.ranking_figure(with_final, resamples=50),
        comparison_figures.question_types_figure(with_final, 64, resamples=50),
    ]
    for figure in figures:
        names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
        assert names[-1] == "FastV (final) †" and names[0] != names[-1]
        assert "not ranked with the others" in figure.get_supxlabel()
    graded, table = comparison.by_difficulty(with_final), comparison.versus_each(with_final, resamples=50)
    for figure in (
        comparison_figures.versus_each_figure(table, [64]),
        comparison_figures.difficulty_figure(graded, [64], resamples=50),
    ):
        assert figure.axes[0].get_yticklabels()[0].get_text() == "FastV (final) †"
    said = comparison_sentences.about_comparison(table)
    assert "Of methods that read more tokens than this, it is below 1: FastV (final) †" in said
    assert comparison_tables.shares_table(with_final, [64], resamples=50)["method"].iloc[-1] == "FastV (final) †"
    listed = comparison_tables.comparison_table(with_final, [64], resamples=50)
    assert listed["method"].tolist()[-1] == "FastV (final) †"


def test_the_ranking_has_one_order_that_it_tells(with_final):
    figure = comparison_figures.ranking_figure(with_final, resamples=50)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["top-K importance", "FastV"]
    assert "sorted by how far a method is above the mean of a column" in figure.get_supxlabel()
    assert not any(line.get_visible() for line in figure.axes[0].get_xgridlines())


def test_the_comparison_is_read_with_the_controls_of_another_job(tmp_path):
    store = Results(tmp_path)
    store.write("peers", make_rows(12, (64, 16), "divprune"), {})
    assert set(comparison.read_comparison(store, "peers", "controls")["method"]) == {"divprune"}
    more = make_rows(14, (64, 16, 4), "random")
    spread = make_rows(12, (64, 16), "random").assign(positions="keep")
    own = make_rows(12, (64,), "divprune").assign(correct=True)
    store.write("controls", pd.concat([more, make_rows(14, (576,), "full"), spread, own], ignore_index=True), {})
    both = comparison.read_comparison(store, "peers", "controls")
    counts = both.groupby(["method", "budget"])["question_id"].nunique().to_dict()
    asked = [("divprune", 64), ("divprune", 16), ("random", 64), ("random", 16), ("full", 576)]
    assert counts == dict.fromkeys(asked, 12)
    assert len(both) == 60 and set(both["job"]) == {"peers", "controls"}
    kept = pd.concat([more, make_rows(14, (576,), "full")], ignore_index=True).assign(positions="keep")
    store.write("controls", kept, {})
    with pytest.raises(ValueError, match=r"random at 16 on scenes, .* with positions 'keep' alone"):
        comparison.read_comparison(store, "peers", "controls")
    store.write("peers", store.frame("peers").drop(columns=["job", "run_id"]).assign(positions="keep"), {})
    # As of a family that has no compact ones.
    assert set(comparison.read_comparison(store, "peers", "controls")["method"]) == {"divprune", "random", "full"}
    store.write("controls", make_rows(10, (64, 16), "random"), {})
    with pytest.raises(ValueError, match="controls asked 10 of the 12 questions of peers; it must ask them all"):
        comparison.read_comparison(store, "peers", "controls")


def test_the_comparison_with_a_model_is_found_by_its_name(tmp_path):
    store, tiny = Results(tmp_path), make_rows(2, (8,), "divprune")
    assert comparison.find_comparison(store, "embedded") == ""
    for job in ("06_comparison", "06_comparison-org_model-gqa-gqa", "06_comparison-org_model-large-gqa-gqa"):
        store.write(job, tiny, {})
    assert comparison.find_comparison(store, "embedded") == "06_comparison"
    assert comparison.find_comparison(store, "org/model-large") == "06_comparison-org_model-large-gqa-gqa"
    assert comparison.find_comparison(store, "other") == ""


def test_a_ranking_with_vispruner_says_that_its_numbers_move():
    assert comparison.marked_label("vispruner") == "VisPruner ‡"
    assert "parity of their rank" in comparison.ranking_notes(["vispruner", "topk"])[0]
    assert comparison.ranking_notes(["topk"]) == []


def test_the_cost_figure_has_a_line_for_each_method(rows):
    axis = comparison_figures.cost_figure(rows, resamples=200).axes[0]
    line = next(drawn for drawn in axis.lines if drawn.get_label() == "ID-Selection")
    assert line.get_xdata() == pytest.approx([0.26, 0.74])
    assert {drawn.get_label() for drawn in axis.lines} >= {"ID-Selection", "random", "smaller image"}


def test_the_front_holds_what_nothing_beats_at_its_cost():
    points = [("a", 1.0, 0.5), ("a", 4.0, 0.6), ("b", 2.0, 0.7), ("c", 2.0, 0.6), ("d", 9.0, 0.9), ("d", 9.5, 0.9)]
    table = pd.DataFrame(points, columns=["method", "gflops", "share"])
    assert comparison.on_front(table, "gflops").tolist() == [True, False, True, False, True, False]


def test_the_cost_figure_greys_the_crowd_and_leaves_out_unknown_costs(rows):
    worse = rows[rows["method"] == "random"].assign(correct=0.0)
    crowd = [worse.assign(method=name) for name in ("fastv", "vscan")]
    unknown = rows[rows["method"] == "topk"].assign(method="divprune", scoring_gflops=float("nan"), correct=1.0)
    figure = comparison_figures.cost_figure(pd.concat([rows, *crowd, unknown]), resamples=50)
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {"ID-Selection", "random", "smaller image", "top-K importance"}
    assert axis.get_legend() is None
    assert sum(line.get_color() == palette.CROWD for line in axis.lines) == 2
    assert len(axis.lines) == 6
    assert "left out where their cost is not known: DivPrune" in figure.get_supxlabel()
    assert "grey: 2 others" in figure.get_supxlabel()


def test_the_versus_each_figure_draws_each_gap(table):
    figure = comparison_figures.versus_each_figure(table, [64, 16])
    drawn = [x for axis in figure.axes for held in axis.containers for x in held.lines[0].get_xdata()]
    assert sorted(drawn) == pytest.approx(sorted(100 * table["mean"]))


def test_question_types_and_difficulty_have_their_panels(rows):
    axis = comparison_figures.question_types_figure(rows, 16, resamples=200).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == list(QUESTION_TYPES)
    graded = comparison.by_difficulty(rows)
    figure = comparison_figures.difficulty_figure(graded, [64, 16], resamples=200)
    assert figure.axes[0].get_title().startswith("64 tokens: ")
    with pytest.raises(ValueError, match="no rows with 17 tokens"):
        comparison_figures.question_types_figure(rows, 17)


def test_the_table_has_the_papers_layout(rows):
    table = comparison_tables.comparison_table(rows, [64, 16], resamples=200)
    assert list(table) == ["budget", "method", "tokens a layer", *QUESTION_TYPES, "mean", "share of full"]
    assert table["budget"].tolist() == ["576", *["64"] * 4, *["16"] * 4]
    first = table.iloc[0]
    assert first["method"] == "all tokens" and first["share of full"] == "100.0 [100.0, 100.0]"
    shares = table.loc[table["budget"] == "64", "share of full"].str.split().str[0].astype(float)
    assert shares.is_monotonic_decreasing


def test_the_shares_are_those_of_the_table(rows):
    table = comparison_tables.comparison_table(rows, [64, 16], resamples=200).set_index(["budget", "method"])
    shares = comparison_tables.shares_table(rows, [64, 16], resamples=200).set_index("method")
    assert list(shares) == ["64 tokens", "16 tokens"]
    assert shares["64 tokens"].to_dict() == table.loc["64", "share of full"].to_dict()
    assert shares["16 tokens"].tolist() == table.loc["16", "share of full"].tolist()


def test_what_could_not_run_has_its_budgets_and_a_reason():
    missing = {"evs": "no frames", "dart at 8": "8 are too few", "dart at 16": "16 are too few"}
    table = comparison_tables.missing_table(missing)
    assert table.to_numpy().tolist() == [["EVS", "any", "no frames"], ["DART", "16, 8", "16 are too few"]]
    assert comparison_tables.missing_table({}).empty


def test_words_name_wins_ties_and_losses(rows, table):
    said = comparison_sentences.about_comparison(table)
    assert "**64 tokens**, 90 questions: ID-Selection is above 2: random (+" in said
    assert "not told apart from 1: top-K importance (+0.0)" in said
    assert "below 1: top-K importance (-3" in said
    words = comparison_sentences.about_difficulty(comparison.by_difficulty(rows), [64, 16], resamples=200)
    assert words.count("a smaller image answers") == 2 and "best on those is top-K importance" in words


def test_a_sentence_is_true_of_every_row(table):
    for budget, part in table.groupby("budget"):
        line = next(
            x for x in comparison_sentences.about_comparison(table).splitlines() if f"**{budget:g} tokens**" in x
        )
        for outcome, count in part["outcome"].value_counts().items():
            word = {"win": "above", "tie": "not told apart from", "loss": "below"}[outcome]
            assert f"{word} {count}:" in line


def test_rows_of_questions_that_differ_are_refused(rows):
    with pytest.raises(ValueError, match="the same questions in all settings"):
        comparison.versus_each(pd.concat([rows, rows.head(1).assign(question_id="extra")]))


def test_words_do_not_speak_of_questions_that_are_not_there(rows):
    graded = comparison.by_difficulty(rows)
    easy = graded[graded["difficulty"] == "easy"]
    assert comparison_sentences.about_difficulty(easy, [64], resamples=50) == "- **64 tokens**: all questions are easy."
    assert (
        comparison_sentences.about_difficulty(easy, [8], resamples=50) == "- **8 tokens**: all questions are left out."
    )
