"""Figures, tables and sentences about what fewer tokens save."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from idsel_core import IDSelection, UniformGrid, adapter_for, get_method
from idsel_core.study.cost import flops_paper, full_budget, read_config
from idsel_core.study.report import efficiency, efficiency_figures, efficiency_sentences, efficiency_tables
from idsel_core.study.report.comparison import by_title, on_front
from idsel_core.study.store.times import SELECTION, selection_rows, validate
from idsel_core.study.timing.ideal import time_ideal
from idsel_core.study.timing.phases import time_methods
from tests.support import tiny
from tests.support.rows import make_rows


@pytest.fixture(scope="module")
def times():
    """Times of a real, tiny model, with milliseconds of our own so that what is said of them is known."""
    backbone, inputs = adapter_for(tiny.build("clip", "eager", 6)), tiny.prompts((1,))
    methods = [None, IDSelection(16), IDSelection(4), UniformGrid(4), get_method("fastv", budget=20)]
    timings = time_methods(backbone, inputs, methods, runs=1, warmup=0, new_tokens=4)
    for budget in (16, 4):
        timings += time_ideal(backbone, inputs, IDSelection(budget), runs=1, warmup=0, new_tokens=4)
    rows = pd.DataFrame(timings).assign(backbone="tiny")
    known = {"encode": 100.0, "select": 2.0, "decode": 1.0}
    ms = rows["phase"].map(known).fillna(rows["kept_tokens"] * 2.0)
    ms = ms.where(rows["phase"] != "end to end", rows["method"].map({"full": 90.0, "ideal": 50.0, "idselection": 51.0}))
    whole = rows["phase"] == "end to end"
    rows = rows.assign(
        over_ideal=(ms / 50).where(whole),
        over_full=(ms / 90).where(whole),
    )
    return rows.assign(median_ms=ms, low_ms=ms, high_ms=ms)


def test_totals_are_sums_over_phases_and_decoded_tokens(times):
    table = efficiency.totals(times).set_index(["method", "budget"])
    assert table.loc[("full", 36), "total"] == 100 + 2 * 36 + 4
    assert table.loc[("idselection", 4), "total"] == 100 + 2 + 2 * 4 + 4
    assert (table["after_encode"] == table["total"] - 100).all()
    own = times[(times["method"] == "idselection") & (times["budget"] == 4)].set_index("phase")["flops"]
    assert table.loc[("idselection", 4), "flops"] == own[["encode", "select", "prefill"]].sum() + 4 * own["decode"]
    assert table.loc[("idselection", 4), "flops_language_model"] == own["prefill"] + 4 * own["decode"]


def test_flops_are_unknown_where_a_phase_is(times):
    unknown = times.assign(flops=times["flops"].where(times["phase"] != "select"))
    table = efficiency.totals(unknown).set_index(["method", "budget"])
    assert table["flops"].isna().tolist() == [method != "full" for method, _ in table.index]
    assert table["flops_language_model"].notna().all()


def test_what_is_said_is_true_of_the_numbers(times):
    said = efficiency_sentences.about_efficiency(times)
    assert "With 4 of 36 visual tokens (11.1%)" in said
    assert "its prefill 11.1% of its time (9.0 times faster)" in said
    assert f"an answer is {176 / 114:.2f} times faster" in said
    table = efficiency_tables.efficiency_table(times)
    assert table["visual tokens"].tolist() == ["36", "16", "4"]
    assert table["faster"].tolist() == ["1.00x", f"{176 / 138:.2f}x", f"{176 / 114:.2f}x"]
    assert f"Measured on cpu, {times['threads'].iloc[0]} threads" in efficiency_tables.summary(times)


def test_answers_are_set_against_prompts_cut_by_hand(times):
    table = efficiency_tables.ideal_table(times)
    assert table["visual tokens"].tolist() == [16, 4]
    assert table["over ideal"].tolist() == [1.02, 1.02]
    assert table["over all tokens"].tolist() == pytest.approx([51 / 90] * 2)
    said = efficiency_sentences.about_ideal(table)
    assert "At most 1.020 times the ideal" in said and "within a turn). If time went by FLOPs alone" in said
    known = times.assign(over_ideal_low=1.01, over_ideal_high=1.04)
    said_of_many = efficiency_sentences.about_ideal(efficiency_tables.ideal_table(known))
    assert "within a turn, 95 % interval 1.010 to 1.040)" in said_of_many
    flops = times[times["phase"] == "end to end"].set_index(["budget", "method"])["flops"]
    for budget, over in zip((16, 4), table["FLOPs over ideal"], strict=True):
        assert over == flops[budget, "idselection"] / flops[budget, "ideal"] > 1
        assert f"{over:.3f} with {budget} tokens" in said
    unknown = efficiency_tables.ideal_table(times.assign(flops=np.nan))
    assert "FLOPs alone" not in efficiency_sentences.about_ideal(unknown)
    assert efficiency_tables.ideal_table(times[times["phase"] != "end to end"]).empty


def test_the_front_is_what_nothing_beats_in_time_and_accuracy():
    table = pd.DataFrame({"total": [1.0, 2, 2, 3, 4], "share": [0.5, 0.8, 0.7, 0.8, 0.9]})
    assert on_front(table, "total").tolist() == [True, True, False, False, True]


def test_accuracy_meets_time_by_method_and_budget(times):
    full, pruned = make_rows(method="full", budgets=(36.0,)), make_rows(method="idselection", budgets=(4.0,))
    rows = pd.concat([full, pruned, make_rows(method="random", budgets=(4.0,))], ignore_index=True)
    final = make_rows(method="fastv", budgets=(20.0,)).assign(convention="final")
    rows = pd.concat([rows, final], ignore_index=True)
    table = efficiency.accuracy_against_time(rows, times, resamples=20)
    assert table["method"].tolist() == ["idselection"]
    assert table["total"].tolist() == [114]
    late = times.assign(convention=times["convention"].replace("average", "final"))
    table = efficiency.accuracy_against_time(rows, late, resamples=20)
    assert sorted(table["method"]) == ["fastv (final)", "idselection"]
    with pytest.raises(ValueError, match="rows must be as stored: budgets left at last are told by `convention`"):
        efficiency.accuracy_against_time(by_title(rows), late, resamples=20)
    table = table[table["method"] == "idselection"]
    assert efficiency_sentences.about_front(table).startswith("- **whole answers**: ID-Selection at 4 (114 ms")
    figure = efficiency_figures.pareto_figure(table)
    assert len(figure.axes) == 2
    assert "ID-Selection 4" in [text.get_text() for text in figure.axes[0].texts]
    assert figure.get_supxlabel().startswith("12 questions; times of one question")
    names = figure.legends[0].get_texts()
    assert [text.get_text() for text in names] == [
        "others",
        "ID-Selection",
        "the front: nothing is faster and better",
    ]


def test_times_of_selections_alone_fit_the_store(times):
    table = pd.DataFrame(
        {
            "tokens": [36, 36],
            "budget": [4, 4],
            "method": ["idselection", "evs"],
            "ms": [1.0, np.nan],
            "low": [0.5, np.nan],
            "high": [2.0, np.nan],
            "left_out": ["", "no frames"],
            "rounds": [3, 3],
            "device": ["CPU", "CPU"],
            "threads": [1, 1],
            "torch": ["2", "2"],
            "transformers": ["5", "5"],
        }
    )
    rows = selection_rows(table)
    assert rows["method"].tolist() == ["idselection"]
    together = pd.concat([times, rows], ignore_index=True)
    stored = validate("job", together).to_pandas()
    assert (stored["phase"] == SELECTION).sum() == 1
    axis = efficiency_figures.selection_figure(stored).axes[0]
    assert axis.get_xlabel() == "visual tokens to choose from (kept: 4 of 36)"
    assert [line.get_ydata().tolist() for line in axis.lines] == [[1.0]]


def test_of_several_budgets_the_one_near_a_ninth_is_drawn():
    rows = pd.DataFrame(
        {
            "method": "idselection",
            "phase": SELECTION,
            "tokens_before": [576, 576, 576, 2880],
            "kept_tokens": [16, 64, 192, 320],
            "median_ms": [1.0, 2.0, 3.0, 9.0],
        }
    )
    drawn = efficiency_figures.selection_figure(rows).axes[0].lines[0]
    assert drawn.get_ydata().tolist() == [2.0, 9.0]


def test_figures_show_what_was_measured(times):
    bars = efficiency_figures.phases_figure(times).axes[0].patches
    assert sorted({round(bar.get_width()) for bar in bars}) == [0, 2, 4, 8, 32, 72, 100]
    flops, time, _ = efficiency_figures.scaling_figure(times).axes[1].lines
    assert time.get_ydata().tolist() == pytest.approx([114 / 176, 138 / 176, 1])
    assert flops.get_ydata()[-1] == 1
    plt.close("all")


def test_a_straight_line_is_found():
    table = pd.DataFrame({"flops": [1e9, 2e9, 4e9], "median_ms": [3.0, 5, 9], "kept_tokens": [1, 2, 4]})
    fit = efficiency.fit_of(table)
    assert (fit.start, fit.speed) == pytest.approx((1, 500))
    assert fit.worst == pytest.approx(0, abs=1e-9)
    assert "takes 1.00 ms and its FLOPs at 500.0 GFLOPs a second" in fit.sentence()
    figure = efficiency_figures.fit_figure(table.assign(low_ms=table["median_ms"], high_ms=table["median_ms"]), fit)
    assert figure.axes[0].lines[-1].get_ydata()[0] == pytest.approx(1)


def test_published_claims_hold_by_the_formula_of_the_literature():
    claims = [["llava-1.5-7b", 336, 336, 576, 16], ["llava-next-7b", 672, 672, 2880, 320]]
    table = efficiency_tables.claims_table(claims, 64, "idselection")
    first, second = table.to_dict("records")
    assert first["literature's formula, saved"] > 0.97
    assert second["literature's formula, times fewer"] == pytest.approx(9.9, abs=0.05)
    assert first["whole prefill, saved"] < first["language model, saved"] < first["literature's formula, saved"]
    assert efficiency_tables.printed_claims(table)["literature's formula, saved"].tolist() == ["97.28%", "89.92%"]


def test_costs_of_full_sizes_fall_with_the_tokens():
    costs = efficiency.model_costs({"llava-next-7b": [672, 672]}, 64, "idselection")
    config, _ = read_config(Path("llava-next-7b"))
    assert costs["kept"].iloc[0] == costs["whole"].iloc[0] == full_budget(config, (672, 672))
    assert costs["paper"].iloc[-1] == flops_paper(config, 16)
    assert costs[["paper", "language_model", "total"]].diff().iloc[1:].lt(0).all(axis=None)
    assert len(efficiency_figures.models_figure(costs).axes) == 3
