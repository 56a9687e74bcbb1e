"""The drop layers and how many visual tokens each drop keeps."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from idsel_core.methods import DART, METHODS, FastV, IDSelectionInside, PyramidDrop, SparseVLM, VScan
from idsel_core.methods.sparsevlm import AUTHORS_COUNTS
from idsel_core.visual_tokens import Unavailable
from tests.support.in_llm import layers_of


@pytest.mark.parametrize(
    ("method", "deep", "shallow"),
    [
        (FastV(1), (2,), (1,)),
        (SparseVLM(1), (3, 7, 16), (1, 2, 3)),
        (PyramidDrop(1), (8, 16, 24), (1, 3, 4)),
        (DART(1), (2,), (1,)),
        (VScan(1), (16,), (3,)),
        (FastV(1, layer=3), (3,), (3,)),
        (SparseVLM(1, layers=(0, 3)), (1, 4), (1, 4)),
        (PyramidDrop(1, layers=(4, 0.99)), (4, 31), (4,)),
    ],
    ids=repr,
)
def test_drop_layers_scale_with_the_number_of_layers(method, deep, shallow):
    assert method.drop_layers(32) == deep and method.drop_layers(5) == shallow
    with pytest.raises(ValueError, match="tokens are dropped between layers, but this language model has 1"):
        method.drop_layers(1)


@pytest.mark.parametrize("depth", [3, 5, 12, 32])
@pytest.mark.parametrize("count", [36, 100, 576])
@pytest.mark.parametrize("method", [FastV(1), SparseVLM(1), PyramidDrop(1), DART(1)], ids=lambda method: method.name)
def test_average_count_meets_the_budget_within_half_a_token(method, depth, count):
    tokens, reached = torch.tensor([count]), []
    for budget in range(1, count + 1):
        plan = dataclasses.replace(method, budget=budget)
        try:
            left = plan.counts(tokens, tokens, depth)[0].tolist()
        except ValueError as error:
            assert not reached
            least = int(str(error).rsplit(" ", 1)[1])
            continue
        reached.append(budget)
        layers = layers_of(count, left, plan.drop_layers(depth), depth)
        assert abs(sum(layers) / depth - budget) <= 0.5
        assert all(a >= b >= min(method.least(a), a) for a, b in pairwise([count, *left]))
        if budget == count:
            assert left == [count] * len(left)
    assert reached[0] == least > 1


@pytest.mark.parametrize("count", [36, 576])
@pytest.mark.parametrize("method", [FastV(1), SparseVLM(1), PyramidDrop(1), DART(1)], ids=lambda method: method.name)
def test_final_count_equals_the_budget(method, count):
    tokens = torch.tensor([count])
    for budget in range(1, count + 1):
        plan = dataclasses.replace(method, budget=budget, budget_convention="final")
        try:
            left = plan.counts(tokens, tokens, 32)[0].tolist()
        except ValueError as error:
            assert budget < int(str(error).rsplit(" ", 1)[1]) <= 3
            continue
        assert left[-1] == budget
        assert all(a >= b >= min(method.least(a), a) for a, b in pairwise([count, *left]))


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (FastV(192), [166]),
        (FastV(128), [98]),
        (FastV(64), [30]),
        (FastV(128, layer=3), [82]),
        (FastV(64, layer=3), [11]),
        (FastV(64, budget_convention="final"), [64]),
        (FastV(1 / 3), [166]),
        (DART(128, budget_convention="final"), [128]),
        (DART(128, budget_convention="final", faithful=True), [132]),
        (DART(64, budget_convention="final", faithful=True), [68]),
        (DART(192, budget_convention="final", faithful=True), [196]),
        (DART(1 - 0.778, budget_convention="final", faithful=True), [124]),
        (DART(1 - 0.889, budget_convention="final", faithful=True), [60]),
        (DART(1 - 0.778, budget_convention="final"), [128]),
        (PyramidDrop(270), [288, 144, 72]),
        (PyramidDrop(72, budget_convention="final"), [288, 144, 72]),
        (SparseVLM(192, faithful=True), [309, 204, 113]),
        (SparseVLM(128, faithful=True), [312, 117, 39]),
        (SparseVLM(96, faithful=True), [249, 55, 27]),
        (SparseVLM(64, faithful=True), [82, 32, 18]),
    ],
    ids=repr,
)
def test_plans_equal_those_of_the_papers(method, left):
    full = torch.tensor([576, 576])
    assert method.counts(full, full, 32).tolist() == [left, left]
    if method.name == "sparsevlm":
        layers = layers_of(576, left, method.drop_layers(32), 32)
        wanted = {192: 206.5, 128: 145.4, 96: 114.1, 64: 82.3}[method.budget]
        assert sum(layers) / 32 == pytest.approx(wanted, abs=0.05)
        kept = [method.kept(a, b) for a, b in pairwise([576, *left])]
        assert kept == list(AUTHORS_COUNTS[method.budget])


def test_plans_start_from_the_tokens_that_enter():
    full, entering = torch.tensor([36, 36, 24]), torch.tensor([36, 20, 24])
    assert FastV(20).counts(full, entering, 5).tolist() == [[16], [20], [19]]
    assert FastV(0.5, budget_convention="final").counts(full, entering, 5).tolist() == [[18], [18], [12]]


@pytest.mark.parametrize("left", [1e-9, 0.1, 1 / 3, 0.9, 1.0])
@pytest.mark.parametrize("layer", [1, 0.25, 0.5, 0.99])
def test_vscan_reaches_every_budget(layer, left):
    for depth, count in ((2, 36), (3, 36), (5, 36), (12, 100), (32, 576)):
        full = torch.tensor([count])
        for convention in ("average", "final"):
            for budget in range(1, count + 1, 1 + count // 100):
                method = VScan(budget, layer=layer, left=left, budget_convention=convention)
                entering = method.entering(full, depth)
                (after,) = method.counts(full, entering, depth)[0].tolist()
                assert count >= int(entering) >= budget and int(entering) >= after >= 1
                average = sum(layers_of(int(entering), [after], method.drop_layers(depth), depth)) / depth
                assert abs(average - budget) <= 0.5 if convention == "average" else after == budget
                assert budget < count or int(entering) == after == count


@pytest.mark.parametrize(
    ("method", "entering", "left"),
    [
        (VScan(64), 96, 32),
        (VScan(192), 288, 96),
        (VScan(1 / 9), 96, 32),
        (VScan(32, budget_convention="final"), 96, 32),
        (VScan(400), 576, 224),
        (VScan(64, layer=8, left=0.5), 102, 51),
        (VScan(1), 1, 1),
    ],
    ids=repr,
)
def test_vscan_plans_its_two_stages(method, entering, left):
    full = torch.tensor([576, 576])
    assert method.entering(full, 32).tolist() == [entering] * 2
    assert method.counts(full, torch.tensor([entering] * 2), 32).tolist() == [[left]] * 2


@pytest.mark.parametrize("times", [1, 1.3, 2.0, 8.0, 1000.0])
@pytest.mark.parametrize("layers", [(1,), (2 / 32,), (0.25, 0.5), (0.99,)])
def test_id_selection_inside_reaches_every_budget(layers, times):
    for depth, count in ((2, 36), (3, 36), (5, 36), (12, 100), (32, 576)):
        full = torch.tensor([count])
        for convention in ("average", "final"):
            for budget in range(1, count + 1, 1 + count // 40):
                method = IDSelectionInside(budget, layers=layers, times=times, budget_convention=convention)
                start = method.entering(full, depth)
                left = method.counts(full, start, depth)[0].tolist()
                assert count >= int(start) >= budget
                assert int(start) <= max(budget, round(budget * times + 1e-9))
                used = layers_of(int(start), left, method.drop_layers(depth), depth)
                assert used == sorted(used, reverse=True) and used[-1] >= 1
                assert abs(sum(used) / depth - budget) <= 0.5 if convention == "average" else left[-1] == budget


def test_id_selection_inside_lets_in_what_it_says():
    full = torch.tensor([576, 100, 20])
    method = IDSelectionInside(32, times=2.5, budget_convention="final")
    assert method.entering(full, None).tolist() == [80, 80, 20]
    assert IDSelectionInside(16, times=8.0).entering(full, 8).tolist() == [72, 72, 20]
    share = IDSelectionInside(0.1, times=2.5, budget_convention="final")
    assert share.entering(full, None).tolist() == [145, 25, 5]
    assert IDSelectionInside(32, times=1e9, budget_convention="final").entering(full, None).tolist() == full.tolist()
    with pytest.raises(Unavailable, match="number of layers"):
        IDSelectionInside(32).entering(full, None)


def test_faithful_vscan_does_not_compensate_for_its_windows():
    full, entering = torch.tensor([576]), torch.tensor([40])
    assert VScan(32).counts(full, entering, 32).tolist() == [[24]]
    assert VScan(32, faithful=True).counts(full, entering, 32).tolist() == [[16]]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FastV(30), r"fastv cannot bring 576 visual tokens down to 30 \(average of 32 layers, 2 of .*: .* model is 37"),
        (PyramidDrop(128), "pyramiddrop .* down to 128 .*average of 32 layers, 8 of which .* is 145"),
        (SparseVLM(1, budget_convention="final"), "sparsevlm .* down to 1 .*final of 32 layers.* least budget .* is 2"),
        (SparseVLM(100, faithful=True), "numbers for 192, 128, 96, 64 of 576 tokens; got 3 drops and .100. of .576."),
        (SparseVLM(64, faithful=True, layers=(3,)), "got 1 drops"),
        (FastV(64, layer=32), "tokens cannot be dropped before layer 32 of 32: choose one from 1 to 31"),
        (PyramidDrop(64, layers=(0, 4)), "tokens cannot be dropped before layer 0 of 32"),
        (SparseVLM(64, layers=(31,)), "tokens cannot be dropped after layer 31 of 32: choose one from 0 to 30"),
        (VScan(64, layer=32), "tokens cannot be dropped before layer 32 of 32: choose one from 1 to 31"),
    ],
    ids=repr,
)
def test_impossible_budgets_and_layers_are_refused(method, message):
    tokens = torch.tensor([576])
    with pytest.raises(ValueError, match=message):
        method.counts(tokens, tokens, 32)


@pytest.mark.parametrize(
    "method",
    [
        FastV(577),
        PyramidDrop(1000, budget_convention="final"),
        SparseVLM(577),
        SparseVLM(577, faithful=True),
        VScan(577),
        VScan(577, faithful=True),
        DART(577),
        DART(577, faithful=True),
    ],
    ids=repr,
)
def test_a_budget_above_the_tokens_drops_none(method):
    whole = torch.tensor([576, 31])
    assert {tuple(drop) for drop in method.counts(whole, whole, 32).T.tolist()} == {(576, 31)}


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("fastv", {"layer": 1.0}, "layer must be a layer .* or a share of the depth .*, not 1.0"),
        ("fastv", {"layer": True}, "layer must be .* not True"),
        ("dart", {"layer": -1}, "layer must be .* not -1"),
        ("dart", {"image_pivots": 0}, "image_pivots must be an int, 1 or more, not 0"),
        ("dart", {"faithful": 1}, "faithful must be True or False, not 1"),
        ("pyramiddrop", {"layers": [1, 2]}, r"layers must be a tuple of layers, not \[1, 2\]"),
        ("pyramiddrop", {"layers": ()}, r"layers must be a tuple of layers, not \(\)"),
        ("sparsevlm", {"layers": (1, "2")}, "layers must be a layer .* not '2'"),
        ("sparsevlm", {"recycle": 1.5}, "recycle must be a number from 0 to 1, not 1.5"),
        ("idselection-inside", {"times": 0.5}, "times must be a number from 1 to 1e9, not 0.5"),
        ("idselection-inside", {"times": True}, "times must be a number from 1 to 1e9, not True"),
        ("idselection-inside", {"layers": ()}, r"layers must be a tuple of layers, not \(\)"),
        ("vscan", {"layer": 1.0}, "layer must be a layer .* or a share of the depth .*, not 1.0"),
        ("vscan", {"budget_convention": "mean"}, "budget_convention must be one of average, final, not 'mean'"),
        ("fastv", {"budget_convention": "mean"}, "budget_convention must be one of average, final, not 'mean'"),
    ],
)
def test_wrong_knobs_are_refused(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](budget=4, **knobs)
