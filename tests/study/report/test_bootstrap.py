"""Bootstrap intervals against closed forms and SciPy's own bootstrap."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsel_core.study.report.bootstrap import (
    bootstrap_mean,
    mean_scores,
    paired_difference,
    paired_scores,
    resampled_means,
    share_of_full,
)


def _rows(scores: dict[str, list[float]], question_type: str = "count", seed: int = 0) -> pd.DataFrame:
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "method": method,
                    "question_type": question_type,
                    "seed": seed,
                    "question_id": [f"{question_type}-{i:04d}" for i in range(len(values))],
                    "correct": np.asarray(values, dtype=float),
                }
            )
            for method, values in scores.items()
        ],
        ignore_index=True,
    )


def test_resamples_have_the_closed_form_mean_and_spread():
    scores = np.random.default_rng(1).normal(2.0, 3.0, 400)
    means = resampled_means(scores, 20_000)[:, 0]
    error = scores.std() / np.sqrt(400)
    assert means.mean() == pytest.approx(scores.mean(), abs=5 * error / np.sqrt(20_000))
    assert means.std() == pytest.approx(error, rel=0.03)


def test_interval_agrees_with_scipy():
    scores = np.random.default_rng(2).binomial(1, 0.3, 500).astype(float)
    ours = bootstrap_mean(scores, resamples=20_000)
    theirs = stats.bootstrap(
        (scores,), np.mean, n_resamples=20_000, method="percentile", batch=1000, rng=np.random.default_rng(3)
    ).confidence_interval
    assert ours.mean == scores.mean()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(4)
    intervals = [bootstrap_mean(draw.binomial(1, 0.7, 300), resamples=500, seed=i) for i in range(400)]
    covered = np.mean([i.low <= 0.7 <= i.high for i in intervals])
    assert 0.91 <= covered <= 0.98


def test_blocks_of_resamples_change_nothing_but_memory():
    scores = np.random.default_rng(5).random((5000, 2))
    many = resampled_means(scores, 2000)
    assert many.shape == (2000, 2)
    assert many.std(0) == pytest.approx(scores.std(0) / np.sqrt(5000), rel=0.06)
    assert len(np.unique(many[:, 0])) == 2000


def test_pairing_removes_what_methods_share():
    draw = np.random.default_rng(6)
    hard = draw.normal(0, 10, 300)
    a, b = hard + draw.normal(0.5, 0.1, 300), hard + draw.normal(0.0, 0.1, 300)
    paired = paired_difference(a, b)
    assert paired.mean == pytest.approx((a - b).mean())
    assert 0.47 < paired.low < paired.mean < paired.high < 0.53
    assert paired_difference(b, a).mean == -paired.mean


def test_equal_seeds_give_equal_numbers_and_others_do_not():
    scores = np.random.default_rng(7).random(50)
    assert bootstrap_mean(scores, seed=1) == bootstrap_mean(scores, seed=1)
    assert bootstrap_mean(scores, seed=1).low != bootstrap_mean(scores, seed=2).low


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([]), "at least one score"),
        (lambda: bootstrap_mean([1.0, np.nan]), "finite, got nan"),
        (lambda: bootstrap_mean([[1.0]]), "one dimension"),
        (lambda: bootstrap_mean([1.0], level=95), "level must lie between 0 and 1, got 95"),
        (lambda: bootstrap_mean([1.0], resamples=0), "resamples must be 1 or more, got 0"),
        (lambda: paired_difference([1.0, 0.0], [1.0]), "same questions"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mean_scores_uses_one_set_of_resamples_for_all_settings():
    base = list(np.random.default_rng(8).random(80))
    rows = _rows({"a": base, "b": [value + 1 for value in base]})
    table = mean_scores(rows, ["method"]).set_index("method")
    assert table["mean"]["a"] == pytest.approx(np.mean(base))
    for column in ("mean", "low", "high"):
        assert table[column]["b"] - table[column]["a"] == pytest.approx(1.0)
    assert table["questions"].tolist() == [80, 80]
    alone = bootstrap_mean(base)
    assert (table["low"]["a"], table["high"]["a"]) == pytest.approx((alone.low, alone.high))


def test_mean_scores_by_question_type_treat_each_by_itself():
    rows = pd.concat([_rows({"a": [1, 1, 0, 0]}, "count"), _rows({"a": [1, 1, 1, 0, 1]}, "read")])
    table = mean_scores(rows, ["method", "question_type"])
    assert table[["method", "question_type", "mean", "questions"]].to_numpy().tolist() == [
        ["a", "count", 0.5, 4],
        ["a", "read", 0.8, 5],
    ]


def test_seeds_are_averaged_and_null_knobs_kept():
    rows = pd.concat([_rows({"random": [1, 0]}, seed=0), _rows({"random": [0, 0]}, seed=1)]).assign(gamma=np.nan)
    assert paired_scores(rows, ["method", "gamma"]).to_numpy().tolist() == [[0.5], [0.0]]


def test_a_missing_question_is_refused():
    rows = _rows({"a": [1, 0, 1], "b": [1, 1, 1]}).iloc[:-1]
    with pytest.raises(ValueError, match=r"'b'.* lacks 1 of 3"):
        mean_scores(rows, ["method"])


def test_share_is_the_mean_over_question_types_of_any_size():
    rows = pd.concat(
        [
            _rows({"full": [1] * 10, "half": [1, 0] * 5}, "small"),
            _rows({"full": [1, 0] * 100, "half": [1, 0] * 100}, "large"),
        ]
    )
    table = share_of_full(rows, ["method"]).set_index("method")
    assert table["share"].to_dict() == {"full": 1.0, "half": pytest.approx((0.5 + 1.0) / 2)}
    assert table.loc["full", ["low", "high"]].tolist() == [1.0, 1.0]
    assert table["low"]["half"] < 0.75 < table["high"]["half"]
    assert table["questions"].tolist() == [210, 210]


def test_share_interval_agrees_with_scipy_on_stratified_ratios():
    draw = np.random.default_rng(9)
    question_types = {}
    for name, size in (("count", 300), ("read", 150)):
        full = draw.binomial(1, 0.9, size)
        question_types[name] = (full, full * draw.binomial(1, 0.8, size))
    rows = pd.concat([_rows({"full": list(f), "kept": list(k)}, name) for name, (f, k) in question_types.items()])
    ours = share_of_full(rows, ["method"], resamples=10_000).set_index("method").loc["kept"]

    def statistic(*samples, axis=-1):
        # Each sample is a question type; a question's pair of scores is one number, so that SciPy draws it as one.
        return np.mean([(s == 2).mean(axis) / (s >= 1).mean(axis) for s in samples], axis=0)

    coded = tuple(f + k for f, k in question_types.values())
    theirs = stats.bootstrap(coded, statistic, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert ours["share"] == pytest.approx(statistic(*coded))
    interval = theirs.confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high), abs=0.004)


def test_share_of_a_handful_of_questions_has_an_interval():
    rows = _rows({"full": [1, 0, 0], "a": [1, 0, 0], "b": [0, 1, 1]})
    table = share_of_full(rows, ["method"]).set_index("method")
    assert table.loc["a", ["share", "low", "high"]].tolist() == [1.0, 1.0, 1.0]
    assert table.loc["b", ["low", "high"]].tolist() == [0.0, 2.0]


def test_a_question_type_that_the_reference_never_answers_is_left_out_with_a_warning():
    rows = _rows({"full": [1, 1], "a": [1, 0]})
    never = _rows({"full": [0, 0], "a": [1, 0]}).assign(question_type="hard")
    never["question_id"] = "hard " + never["question_id"].astype(str)
    expected = share_of_full(rows, ["method"])
    with pytest.warns(UserWarning, match="scores 0 in question type 'hard', which is left out of the shares"):
        table = share_of_full(pd.concat([rows, never]), ["method"])
    assert table["share"].tolist() == expected["share"].tolist() == [0.5, 1.0]


def test_share_needs_a_reference_that_means_something():
    with pytest.raises(ValueError, match=r"no rows of method 'full'.*\['a'\]"):
        share_of_full(_rows({"a": [1, 0]}), ["method"])
    with pytest.raises(ValueError, match="scores 0 in question type 'count'"):
        share_of_full(_rows({"full": [0, 0], "a": [1, 0]}), ["method"])
