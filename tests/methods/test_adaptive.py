"""Adaptive budgets: exact in sum, bounded, monotone, blind to the order of the batch, true to what they name."""

from __future__ import annotations

import dataclasses
import gc
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idsel_core.methods import AdaptiveBudget, Method, TopK, get_method, take_best
from idsel_core.methods._shared.allocation import allocate, energy_curves, mass_curves
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.selection.budget import resolve_budget
from idsel_core.visual_tokens import Unavailable
from tests.support.images import batch, image

IMAGES = [image(seed, *size) for seed, size in enumerate([(6, 6), (4, 6), (6, 5), (3, 3), (6, 6)])]
DEMANDS = ("energy", "importance", "both")


def of_rank(seed: int, rank: int) -> dict[str, torch.Tensor]:
    """Return an image whose features span `rank` dimensions."""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(36, rank, generator=draw) @ torch.randn(rank, 8, generator=draw)
    return {**image(seed), "features": features}


@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("budget", [1, 4, 9, 20, 36, 0.1, 0.5, 1.0])
def test_the_total_is_that_of_the_fixed_budget_and_every_image_has_its_least(budget, demand):
    tokens = batch(*IMAGES)
    for least in (0.0, 0.25, 1.0):
        method = AdaptiveBudget(budget, demand=demand, least=least)
        picks = method.select(tokens)
        fixed = resolve_budget(budget, tokens.lengths)
        assert int(picks.counts.sum()) == int(fixed.sum()) and picks.requested == budget
        assert bool((picks.counts <= tokens.lengths).all())
        assert bool((picks.counts >= (fixed * least).floor().clamp_min(1)).all())
        assert least < 1 or torch.equal(picks.counts, fixed)
        for row, count, length in zip(picks.rows(), picks.counts.tolist(), tokens.lengths.tolist(), strict=True):
            assert len(set(row.tolist())) == count and int(row.max()) < length


@pytest.mark.parametrize("demand", DEMANDS)
def test_a_larger_mean_takes_tokens_from_no_image(demand):
    tokens = batch(*IMAGES)
    counts = torch.stack([AdaptiveBudget(budget, demand=demand).counts(tokens) for budget in range(1, 37)])
    assert bool((counts.diff(dim=0) >= 0).all()) and counts[-1].tolist() == tokens.lengths.tolist()


@pytest.mark.parametrize("demand", DEMANDS)
def test_what_an_image_gets_does_not_depend_on_the_order_of_the_batch(demand):
    method = AdaptiveBudget(9, demand=demand)
    plain = method.select(batch(*IMAGES))
    mixed = [3, 0, 4, 2, 1]
    other = method.select(batch(*(IMAGES[i] for i in mixed)))
    assert other.counts.tolist() == plain.counts[mixed].tolist()
    for place, row in enumerate(mixed):
        assert torch.equal(other.rows()[place], plain.rows()[row])


@pytest.mark.parametrize("chooser", ["idselection", "topk", "fastervlm", "divprune", "visionzip", "trim", "mmr"])
def test_the_chooser_picks_as_it_does_at_that_budget(chooser):
    tokens = batch(*IMAGES)
    picks = AdaptiveBudget(8, chooser=chooser, demand="both", importance="saliency").select(tokens)
    knobs = {"importance": "saliency"} if chooser in ("idselection", "topk", "mmr") else {}
    assert len(picks.counts.unique()) > 1
    for row, count in enumerate(picks.counts.tolist()):
        alone = get_method(chooser, budget=count, **knobs).select(batch(IMAGES[row]))
        assert torch.equal(picks.order[row, :count], alone.order[0])
        if alone.features is not None:
            torch.testing.assert_close(picks.features[row, :count], alone.features[0])


def test_one_image_gets_its_fixed_budget_and_so_do_equal_ones():
    for demand in DEMANDS:
        method = AdaptiveBudget(7, demand=demand)
        assert method.counts(batch(IMAGES[0])).tolist() == [7]
        assert method.counts(batch(*[IMAGES[0]] * 4)).tolist() == [7] * 4
    uneven = AdaptiveBudget(0.2, least=0.0).counts(batch(*[IMAGES[0]] * 5))
    assert uneven.tolist() == [7] * 5


def test_energy_gives_more_tokens_to_an_image_of_more_dimensions():
    tokens = batch(of_rank(0, 1), of_rank(1, 4), of_rank(2, 8))
    counts = AdaptiveBudget(4, demand="energy", least=0.0).counts(tokens).tolist()
    assert counts[0] == 1 and counts[0] < counts[1] < counts[2] and sum(counts) == 12
    flat = {**of_rank(2, 8), "cls_attention": torch.full((36,), 0.5)}
    peaked = {**of_rank(2, 8), "cls_attention": torch.eye(36)[3] + 1e-3 * torch.rand(36)}
    counts = AdaptiveBudget(9, demand="importance", importance="saliency").counts(batch(flat, peaked)).tolist()
    assert counts == [16, 2]


def test_curves_are_those_of_the_definition():
    tokens = batch(*IMAGES)
    energy = AdaptiveBudget(5).curves(tokens)
    mass = AdaptiveBudget(5, demand="importance", importance="saliency", normalise="raw").curves(tokens)
    both = AdaptiveBudget(5, demand="both", importance="saliency", normalise="raw").curves(tokens)
    torch.testing.assert_close(both, (energy + mass) / 2)
    for row, one in enumerate(IMAGES):
        squares = np.linalg.svd(one["features"].double().numpy(), compute_uv=False) ** 2
        wanted = np.pad(np.cumsum(squares) / squares.sum(), (0, 36), constant_values=1.0)
        np.testing.assert_allclose(energy[row].numpy(), wanted[:36], atol=1e-9)
        scores = np.sort(one["cls_attention"].double().numpy())[::-1]
        np.testing.assert_allclose(mass[row, : len(scores)].numpy(), np.cumsum(scores) / scores.sum(), atol=1e-9)


def test_curves_of_nothing_rise_evenly():
    mask = torch.arange(6) < torch.tensor([[4], [6]])
    even = [[0.25, 0.5, 0.75, 1, 1, 1], [1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1]]
    for curves in (energy_curves(torch.zeros(2, 6, 3), mask), mass_curves(torch.zeros(2, 6), mask)):
        torch.testing.assert_close(curves, torch.tensor(even, dtype=torch.float64))


@given(st.integers(1, 5), st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_no_token_would_have_been_better_spent_elsewhere(rows, width, seed):
    draw = torch.Generator().manual_seed(seed)
    curves = torch.rand(rows, width, generator=draw, dtype=torch.float64).cumsum(1)
    curves = curves / curves[:, -1:].clone()
    least = torch.randint(1, width + 1, (rows,), generator=draw)
    most = torch.full((rows,), width)
    total = int(torch.randint(int(least.sum()), rows * width + 1, (1,), generator=draw))
    counts, level = allocate(curves, least, most, total)
    assert int(counts.sum()) == total and bool(((counts >= least) & (counts <= most)).all())
    before = torch.nn.functional.pad(curves, (1, 0))
    for row in range(rows):
        if counts[row] > least[row]:  # its last token was given at or below the level
            assert before[row, counts[row] - 1] <= level
        if counts[row] < most[row] and total > int(least.sum()):  # and its next one would be at or above it
            assert before[row, counts[row]] >= level


def test_a_total_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="the total must be from 2 to 6 tokens, not 7"):
        allocate(torch.ones(2, 3), torch.tensor([1, 1]), torch.tensor([3, 3]), 7)


@pytest.mark.parametrize("demand", DEMANDS)
def test_a_threshold_frees_an_image_from_its_batch_and_reaches_the_mean(demand):
    tokens = batch(*IMAGES)
    method = AdaptiveBudget(8, demand=demand)
    level = method.threshold_of(tokens)
    fixed = dataclasses.replace(method, threshold=level)
    together = fixed.counts(tokens)
    assert abs(int(together.sum()) - int(method.counts(tokens).sum())) <= len(IMAGES)
    for row, one in enumerate(IMAGES):
        assert fixed.counts(batch(one)).tolist() == [int(together[row])]
    assert dataclasses.replace(method, threshold=1.0, demand="importance", normalise="raw").counts(tokens).tolist() == (
        tokens.lengths.tolist()
    )


def test_the_least_number_of_tokens_reaches_the_threshold():
    tokens = batch(*IMAGES)
    method = AdaptiveBudget(1, least=0.0, threshold=0.8)
    curves, counts = method.curves(tokens), method.counts(tokens)
    for row, count in enumerate(counts.tolist()):
        assert curves[row, count - 1] >= 0.8 and (count == 1 or curves[row, count - 2] < 0.8)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.9])
@pytest.mark.parametrize("demand", DEMANDS)
@pytest.mark.parametrize("budget", [20, 30, 40])
def test_small_images_get_the_same_in_a_model_as_outside(budget, demand, threshold):
    """Of 36, 24, 30, 9 and 36 tokens; a method that shares no budget leaves the small ones whole in a model."""
    tokens = batch(*IMAGES)
    method = AdaptiveBudget(budget, demand=demand, threshold=threshold)
    outside, inside = method.select(tokens), select_tokens(method, tokens)
    assert torch.equal(outside.order, inside.order) and torch.equal(outside.counts, inside.counts)
    if threshold:
        for row, one in enumerate(IMAGES):
            assert torch.equal(select_tokens(method, batch(one)).rows()[0], inside.rows()[row])
        assert threshold > 0.5 or bool((inside.counts < resolve_budget(budget, tokens.lengths)).any())


def test_an_image_that_keeps_all_of_its_tokens_is_left_whole_and_asks_for_no_view():
    tokens = batch(*IMAGES)
    lost = dataclasses.replace(tokens, sources={})
    for method in (AdaptiveBudget(40), AdaptiveBudget(40, demand="importance", chooser="visionzip")):
        picks = method.select(lost)
        assert torch.equal(picks.counts, lost.lengths) and picks.features is None
        assert [row.tolist() for row in picks.rows()] == [list(range(length)) for length in lost.lengths.tolist()]
    merging = AdaptiveBudget(20, chooser="visionzip", least=1.0).select(tokens)
    assert merging.counts.tolist() == [20, 20, 20, 9, 20]
    assert torch.equal(merging.features[3, :9], tokens.features[3, :9].to(merging.features.dtype))
    assert not torch.equal(merging.features[0, :9], tokens.features[0, :9].to(merging.features.dtype))


def test_views_are_computed_once_for_the_whole_batch():
    tokens = batch(*IMAGES)
    calls: list[str] = []
    source = tokens.sources["cls_attention"]
    sources = {**tokens.sources, "cls_attention": lambda: calls.append("cls_attention") or source()}
    method = AdaptiveBudget(8, chooser="fastervlm", demand="importance", importance="saliency")
    method.select(dataclasses.replace(tokens, sources=sources))
    assert calls == ["cls_attention"]
    lost = {name: source for name, source in tokens.sources.items() if name != "cls_attention"}
    with pytest.raises(Unavailable, match="cls_attention is not available"):
        AdaptiveBudget(8, chooser="fastervlm").select(dataclasses.replace(tokens, sources=lost))


def test_the_depths_of_the_tower_are_those_of_the_chooser():
    assert AdaptiveBudget(8, chooser="hiprune").tower_depths == (0.375,)
    assert AdaptiveBudget(8).tower_depths == ()


def test_padding_does_not_matter():
    rows = []
    for fill in (0.0, math.nan):
        tokens = batch(*IMAGES)
        features = tokens.features.masked_fill(~tokens.mask[..., None], fill)
        rows.append(AdaptiveBudget(8, demand="both").select(dataclasses.replace(tokens, features=features)).order)
    assert torch.equal(*rows)


@pytest.mark.parametrize(
    "knobs", [{"normalise": "raw"}, {"importance": "saliency"}, {"importance": "instruction", "instruction_layer": 2}]
)
def test_knobs_of_the_importance_reach_the_demand_and_the_chooser(knobs):
    images = [{**one, "cls_attention": one["cls_attention"] + 5} for one in IMAGES]
    tokens = batch(*images)
    later = tokens.sources["instruction_attention"]
    read = {"instruction_attention": lambda layer, which: later() / (1 + layer * torch.arange(36)) + 5}
    tokens = dataclasses.replace(tokens, sources={**tokens.sources, **read})
    other = AdaptiveBudget(8, demand="importance", chooser="topk", **knobs)
    plain = dataclasses.replace(other, importance="instruction" if "instruction_layer" in knobs else "unified")
    plain = dataclasses.replace(plain, normalise="minmax", instruction_layer=0)
    wanted = get_method("topk", budget=8, **knobs).scores(tokens)
    assert torch.equal(other.curves(tokens), mass_curves(wanted, tokens.mask))
    assert not torch.allclose(other.curves(tokens), plain.curves(tokens))
    picks = other.select(tokens)
    for row, count in enumerate(picks.counts.tolist()):
        masked = wanted[row].masked_fill(~tokens.mask[row], -math.inf)
        assert set(picks.rows()[row].tolist()) == set(masked.topk(count).indices.tolist())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"demand": "size"}, "demand must be one of energy, importance, both, not 'size'"),
        ({"least": 1.5}, "least must be a number from 0 to 1, not 1.5"),
        ({"threshold": 0}, "threshold must be above 0, not 0"),
        ({"threshold": 2.0}, "threshold must be a number from 0 to 1, not 2.0"),
        ({"chooser": "fastv"}, "chooser must be one of .*, not 'fastv'"),
        ({"chooser": "adaptive"}, "chooser must be one of .*, not 'adaptive'"),
        ({"chooser": "downsample"}, "chooser must be one of .*cdpruner, .*, not 'downsample'"),
        ({"importance": "size"}, "importance must be one of"),
        ({"normalise": "sum"}, "normalise must be one of minmax, raw, not 'sum'"),
        ({"instruction_layer": -1}, "instruction layer must be an int, 0 or more, not -1"),
        ({"instruction_tokens": "all"}, "instruction tokens must be one of words, last, not 'all'"),
    ],
)
def test_wrong_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBudget(8, **knobs)


@pytest.fixture
def define():
    """Return a function that defines a method, which no later test sees."""
    names = []

    def define(name: str | None, base: type[Method] = TopK, **members):
        names.append(f"Passing{len(names)}")
        members |= {"__module__": __name__} | ({"name": name} if name else {})
        return dataclass(frozen=True)(type(names[-1], (base,), members))

    yield define
    gc.collect()
    assert not [kind for kind in TopK.__subclasses__() if kind.__name__ in names]


def test_a_method_with_a_name_of_its_own_can_choose(define):
    kind = define("passing", select=lambda self, tokens: get_method("random", budget=self.budget).select(tokens))
    picks = AdaptiveBudget(8, chooser="passing").select(batch(*IMAGES))
    assert picks.order.tolist() == AdaptiveBudget(8, chooser="random").select(batch(*IMAGES)).order.tolist()
    del kind


def test_a_subclass_that_inherits_its_name_does_not_take_the_place_of_the_method(define):
    kind = define(None, select=lambda self, tokens: 1 / 0)
    assert kind.name == "topk" and type(AdaptiveBudget(8, chooser="topk").inner) is TopK
    del kind


def test_a_name_that_two_methods_have_is_refused(define):
    kinds = [define("topk")]
    with pytest.raises(ValueError, match=r"chooser must be the name of one method; 'topk' is that of .* and .*"):
        AdaptiveBudget(8, chooser="topk")
    del kinds


def test_methods_that_cannot_choose_are_refused(define):
    kinds = [
        define("passing", shares_budget=True),
        define("unfinished", Method),
        define("fewer", select=lambda self, tokens: take_best(self.scores(tokens), tokens, 1)),
        define("asking", __annotations__={"depth": int}, depth=field(kw_only=True)),
    ]
    for name in ("passing", "unfinished"):
        with pytest.raises(ValueError, match=f"chooser must be one of .*, not '{name}'"):
            AdaptiveBudget(8, chooser=name)
    with pytest.raises(ValueError, match="chooser must be a method whose knobs have defaults: 'asking' needs depth"):
        AdaptiveBudget(8, chooser="asking")
    with pytest.raises(
        ValueError, match=r"chooser must keep as many tokens as its budget; 'fewer' keeps \[1, .*1\] of \d"
    ):
        AdaptiveBudget(8, chooser="fewer").select(batch(*IMAGES))
    kinds.clear()
