"""Promises of all methods in one matrix, and the controls one by one."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import idsel_core
from idsel_core import IDSelection, Random, TopK, UniformGrid, get_method, id_select, list_methods
from idsel_core.methods import METHODS, AdaptiveBudget, Downsample, InLLM, Method, take_best
from idsel_core.methods._shared.in_llm import LayerTokens
from idsel_core.scores.registry import IMPORTANCE, importance_scores
from idsel_core.visual_tokens import VisualTokens
from tests.support.images import SIDE, batch, image

# One row for each method; add yours. Knobs are covered by tests of their own.
MATRIX = [
    IDSelection(budget=1),
    IDSelection(budget=1, features="encoder", importance="unified-product", update="multiply"),
    TopK(budget=1),
    METHODS["diversity"](budget=1),
    Random(budget=1),
    UniformGrid(budget=1),
    METHODS["fastervlm"](budget=1),
    METHODS["vispruner"](budget=1),
    METHODS["hired"](budget=1),
    METHODS["hiprune"](budget=1),
    METHODS["divprune"](budget=1),
    METHODS["cdpruner"](budget=1),
    METHODS["scope"](budget=1),
    METHODS["mmtok"](budget=1),
    METHODS["mmr"](budget=1),
    METHODS["holov"](budget=1),
    METHODS["prunesid"](budget=1),
    METHODS["trim"](budget=1),
    METHODS["visionzip"](budget=1),
    METHODS["prumergeplus"](budget=1),
    METHODS["tome"](budget=1),
    METHODS["vscan"](budget=1, layer=None),
    METHODS["evs"](budget=1),
    METHODS["vidcom2"](budget=1),
    METHODS["dycoke"](budget=1),
    METHODS["fastvid"](budget=1),
    METHODS["holitom"](budget=1),
]
# Methods that drop tokens inside the language model; what they choose there is covered by tests of their own.
INSIDE = [
    METHODS["idselection-inside"](budget=1, budget_convention="final"),
    METHODS["fastv"](budget=1),
    METHODS["sparsevlm"](budget=1),
    METHODS["pyramiddrop"](budget=1),
    METHODS["dart"](budget=1),
]


IN_LLM = {type(method).name for method in INSIDE}


def kept(method: Method, *images: dict[str, Tensor]) -> list[list[int]]:
    return [row.tolist() for row in method.select(batch(*images)).rows()]


def test_the_published_reading_subtracts_and_goes_on_with_the_least_suppressed_token():
    """Tokens 0 to 2 have one direction, token 3 another: after the first pick, scores are -0.6, -0.8 and about 0."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    tokens = VisualTokens(x, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, 2, dtype=torch.int64))
    scores = torch.tensor([[1.0, 0.4, 0.2, 0.0]])
    method = IDSelection.published(3)
    assert method.pick(tokens, scores).order[0].tolist() == [0, 3, 1]
    restarted = dataclasses.replace(method, exhausted="restart")
    assert restarted.pick(tokens, scores).order[0].tolist() == [0, 1, 2]
    assert (method.importance, method.instruction_layer, method.instruction_tokens) == ("instruction", 2, "last")
    assert (method.update, method.gamma, method.features) == ("subtract", 20.0, "projector")
    assert IDSelection.published(3, gamma=5.0) == dataclasses.replace(method, gamma=5.0)


def test_the_matrix_has_a_row_for_every_method():
    # The budgets of the last two are not those of each image.
    apart = {Downsample, AdaptiveBudget}
    assert {type(method) for method in MATRIX + INSIDE} | apart == set(METHODS.values())
    assert {type(method) for method in INSIDE} <= {method for method in METHODS.values() if issubclass(method, InLLM)}


@pytest.mark.parametrize("method", [one for one in INSIDE if "select" not in vars(type(one))], ids=repr)
@pytest.mark.parametrize("budget", [1, 36, 0.1, 1.0])
def test_all_tokens_enter_the_language_model_before_methods_that_drop_inside(method, budget):
    tokens = batch(image(0), image(1, 4, 6))
    picks = dataclasses.replace(method, budget=budget).select(tokens)
    assert [row.tolist() for row in picks.rows()] == [list(range(36)), list(range(24))]
    assert torch.equal(picks.order, picks.indices) and picks.requested == budget and tokens.computed == set()
    assert torch.equal(picks.scores, torch.zeros(2, 36).masked_fill(~tokens.mask, -math.inf))


@pytest.mark.parametrize("budget", [1, 3, 7, 36])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"importance": "saliency"},
        {"normalise": "raw"},
        {"features": "encoder"},
        {"gamma": 2.0},
        {"update": "subtract"},
        {"instruction_layer": 1},
        {"instruction_layer": 1, "instruction_tokens": "last"},
        {"update": "subtract", "gamma": 0.1, "exhausted": "continue"},
    ],
    ids=str,
)
def test_id_selection_inside_lets_in_what_id_selection_picks(budget, knobs):
    tokens = batch(image(0), image(1, 4, 6))
    picks = METHODS["idselection-inside"](budget, budget_convention="final", times=3.0, **knobs).select(tokens)
    wanted = METHODS["idselection"](3 * budget, **knobs).select(tokens)
    assert torch.equal(picks.order, wanted.order) and torch.equal(picks.scores, wanted.scores)


@pytest.mark.parametrize("method", MATRIX, ids=repr)
@pytest.mark.parametrize("budget", [1, 7, 24, 36, 0.1, 0.5, 1.0])
def test_every_method_keeps_exactly_the_budget(method, budget):
    tokens = batch(image(0), image(1, 4, 6), image(2))
    picks = dataclasses.replace(method, budget=budget).select(tokens)
    wanted = [min(budget, n) if isinstance(budget, int) else max(1, math.floor(budget * n + 0.5)) for n in (36, 24, 36)]
    assert picks.counts.tolist() == wanted == [len(row) for row in picks.rows()]
    assert picks.requested == budget
    assert picks.scores.shape == tokens.mask.shape and bool((picks.scores[~tokens.mask] == -math.inf).all())
    for row, order, count, length in zip(picks.rows(), picks.order, wanted, (36, 24, 36), strict=True):
        assert row.tolist() == sorted(set(row.tolist())) == sorted(order[:count].tolist())
        assert row.min() >= 0 and row.max() < length
        assert (order[count:] == -1).all()


@pytest.mark.parametrize("method", MATRIX, ids=repr)
def test_picks_do_not_depend_on_the_other_images_of_a_batch(method):
    images = [image(0), image(1, 4, 6), image(2, 6, 5), image(3)]
    method = dataclasses.replace(method, budget=9)
    together = method.select(batch(*images))
    for row, one in enumerate(images):
        assert method.select(batch(one)).order[0].tolist() == together.order[row].tolist()


@pytest.mark.parametrize("method", MATRIX + INSIDE, ids=repr)
def test_a_budget_above_the_longest_row_keeps_all_tokens(method):
    tokens = batch(image(0), image(1, 4, 6))
    picks = dataclasses.replace(method, budget=37).select(tokens)
    assert [row.tolist() for row in picks.rows()] == [list(range(36)), list(range(24))] and picks.requested == 37
    assert torch.equal(picks.order, dataclasses.replace(method, budget=36).select(tokens).order)


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        (IDSelection(budget=2), {"cls_attention", "instruction_attention"}),
        (IDSelection(budget=2, importance="saliency"), {"cls_attention"}),
        (IDSelection(budget=2, importance="relevance", features="encoder"), {"relevance", "encoder_features"}),
        (TopK(budget=2, importance="instruction"), {"instruction_attention"}),
        (METHODS["diversity"](budget=2), set()),
        (Random(budget=2), {"image_key"}),
        (UniformGrid(budget=2), set()),
        (METHODS["fastervlm"](budget=2), {"cls_attention"}),
        (METHODS["vispruner"](budget=2), {"cls_attention", "encoder_features"}),
        (METHODS["hired"](budget=2), {"cls_attention"}),
        (METHODS["hiprune"](budget=2), {"received_attention", "received_attention@0.375"}),
        (METHODS["divprune"](budget=2), set()),
        (METHODS["cdpruner"](budget=2), {"relevance"}),
        (METHODS["scope"](budget=2), {"cls_attention", "encoder_features"}),
        (METHODS["mmtok"](budget=2), {"word_similarity", "encoder_features"}),
        (METHODS["trim"](budget=2), {"relevance", "encoder_features"}),
        (METHODS["visionzip"](budget=2), {"cls_attention", "keys", "encoder_features", "cls_features"}),
        (METHODS["prumergeplus"](budget=2), {"wide_cls_attention@1", "keys@1", "encoder_features"}),
        (METHODS["tome"](budget=2), {"keys", "encoder_features"}),
        (METHODS["vscan"](budget=2, layer=None), {"cls_attention", "cls_attention@0.25"}),
        (METHODS["vscan"](budget=2, budget_convention="final"), {"cls_attention", "cls_attention@0.25"}),
        (METHODS["evs"](budget=2), {"frames"}),
        (METHODS["vidcom2"](budget=2), {"frames"}),
        (METHODS["dycoke"](budget=2), {"frames"}),
        (METHODS["fastvid"](budget=2), {"frames", "received_attention"}),
        (METHODS["holitom"](budget=2, attention="cls"), {"frames", "cls_attention"}),
        (METHODS["mmr"](budget=2, importance="saliency"), {"cls_attention"}),
        (METHODS["holov"](budget=2), {"cls_attention"}),
        (METHODS["prunesid"](budget=2), {"cls_attention", "encoder_features"}),
        (METHODS["adaptive"](budget=2, importance="saliency"), {"cls_attention"}),
        (METHODS["adaptive"](budget=2, chooser="divprune"), set()),
        (METHODS["adaptive"](budget=2, chooser="divprune", demand="both"), {"cls_attention", "instruction_attention"}),
    ],
    ids=repr,
)
def test_a_method_computes_only_the_views_that_it_needs(method, reads):
    tokens = batch(image(0))
    method.select(tokens)
    assert tokens.computed == reads


@pytest.mark.parametrize("normalise", ["minmax", "raw"])
@pytest.mark.parametrize("importance", list(IMPORTANCE))
def test_idselection_is_id_select_on_its_importance(importance, normalise):
    tokens = batch(image(0), image(1, 4, 6))
    scores = importance_scores(tokens, importance, normalise)
    method = IDSelection(budget=9, gamma=3.0, importance=importance, normalise=normalise)
    wanted = id_select(tokens.features, scores, 9, gamma=3.0, mask=tokens.mask)
    assert torch.equal(method.select(tokens).order, wanted.order)
    multiply = dataclasses.replace(method, update="multiply", features="encoder").select(tokens)
    wanted = id_select(tokens.encoder_features, scores, 9, gamma=3.0, update="multiply", mask=tokens.mask)
    assert torch.equal(multiply.order, wanted.order)


def test_instruction_attention_is_read_at_the_layer_and_query_tokens_of_the_method():
    asked = []
    tokens = batch(image(0))
    source = tokens.sources["instruction_attention"]
    tokens = dataclasses.replace(
        tokens, sources={**tokens.sources, "instruction_attention": lambda *where: asked.append(where) or source()}
    )
    for method in (TopK, IDSelection):
        method(budget=2, importance="instruction", instruction_layer=3, instruction_tokens="last").select(tokens)
    assert asked == [(3, "last")]


def test_topk_keeps_the_highest_scores_and_the_lowest_index_of_ties():
    one = image(0)
    assert kept(TopK(budget=5, importance="saliency"), one) == [sorted(one["cls_attention"].topk(5).indices.tolist())]
    one["cls_attention"] = torch.tensor([0.5] * 30 + [0.9] + [0.5] * 5)
    assert TopK(budget=4, importance="saliency").select(batch(one)).order.tolist() == [[30, 0, 1, 2]]


def test_diversity_only_is_id_select_on_equal_scores():
    tokens = batch(image(0))
    wanted = id_select(tokens.features, torch.ones(1, 36), 12, "auto", "multiply")
    assert torch.equal(METHODS["diversity"](budget=12).select(tokens).order, wanted.order)


def test_random_picks_depend_on_seed_and_image_only_and_nest_over_budgets():
    one, other = image(0), image(1)
    assert kept(Random(budget=6), one, other)[1] == kept(Random(budget=6), other)[0] != kept(Random(budget=6), one)[0]
    assert kept(Random(budget=6, seed=1), one) != kept(Random(budget=6), one)
    assert set(kept(Random(budget=6), one)[0]) < set(kept(Random(budget=20), one)[0])
    draws = torch.zeros(36)
    for seed in range(600):
        draws[kept(Random(budget=6, seed=seed), one)[0]] += 1
    # 100 of 600 are expected of each token, with a standard deviation of 9.
    assert draws.min() > 60 and draws.max() < 140


def test_uniform_grid_is_evenly_spaced():
    assert kept(UniformGrid(budget=4), image(0)) == [[7, 10, 25, 28]]
    assert kept(UniformGrid(budget=9), image(0)) == [[7, 9, 11, 19, 21, 23, 31, 33, 35]]
    assert kept(UniformGrid(budget=3), image(0, 1, 12)) == [[2, 6, 10]]
    assert kept(UniformGrid(budget=3), image(0, 12, 1)) == [[2, 6, 10]]
    for budget in range(1, 37):
        (row,) = kept(UniformGrid(budget=budget), image(0))
        halves = torch.tensor(row) // 18
        assert len(row) == budget
        assert abs(int((halves == 0).sum()) - int((halves == 1).sum())) < SIDE


def test_uniform_grid_keeps_tokens_off_the_grid_last():
    one = image(0)
    one["grid"] = torch.cat([torch.tensor([[-1, -1]]), one["grid"][:35]])
    assert 0 not in kept(UniformGrid(budget=34), one)[0]
    assert len(kept(UniformGrid(budget=36), one)[0]) == 36
    one["grid"] = torch.full_like(one["grid"], -1)
    assert kept(UniformGrid(budget=3), one) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("budget", "grid", "wanted"),
    [
        (64, (24, 24), (8, 8)),
        (192, (24, 24), (13, 13)),
        (1, (24, 24), (1, 1)),
        (576, (24, 24), (24, 24)),
        (0.25, (24, 24), (12, 12)),
        (32, (4, 16), (2, 11)),
        (3, (1, 24), (1, 3)),
        (50, (10, 5), (10, 5)),
    ],
)
def test_downsample_wants_a_grid_within_the_budget(budget, grid, wanted):
    assert Downsample(budget=budget).target_grid(*grid) == wanted


def test_downsample_keeps_all_tokens_of_a_resized_image_and_refuses_others():
    small = dataclasses.replace(batch(image(0, 2, 2), image(1, 1, 2)), placeholders=torch.tensor([36, 36]))
    for budget in (5, 0.15):
        picks = Downsample(budget=budget).select(small)
        assert picks.indices.tolist() == [[0, 1, 2, 3], [0, 1, -1, -1]]
        assert picks.counts.tolist() == [4, 2] and picks.requested == budget
        with pytest.raises(ValueError, match="downsample acts on the image: encode it on the grid"):
            Downsample(budget=budget).select(batch(image(0)))


def test_methods_are_hashable_values_with_a_readable_repr():
    method = IDSelection(64, gamma=5.0)
    assert method == get_method("idselection", budget=64, gamma=5.0) and len({method, IDSelection(64, gamma=5.0)}) == 1
    assert "gamma=5.0" in repr(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.gamma = 1.0
    assert [get_method(name, budget=3).name for name in list_methods()] == list(METHODS)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"name": "idselect"}, r"unknown method 'idselect', did you mean 'idselection'\?; known: idselection, topk"),
        ({"name": "xyz"}, "unknown method 'xyz'; known: "),
        ({"name": "topk", "gama": 1}, "topk has no knob 'gama'; known: budget, importance"),
        ({"name": "idselection", "gama": 1}, r"no knob 'gama', did you mean 'gamma'\?"),
        ({"gamma": -1.0}, "gamma must be a number from 0 to infinity or 'auto', not -1.0"),
        ({"gamma": math.nan}, "gamma must be .* not nan"),
        ({"update": "divide"}, "update must be one of 'subtract', 'multiply', not 'divide'"),
        ({"importance": "saliencey"}, "importance must be one of saliency, .*, not 'saliencey'"),
        ({"normalise": "z"}, "normalise must be one of minmax, raw, not 'z'"),
        ({"features": "pixels"}, "features must be one of projector, encoder, not 'pixels'"),
        ({"instruction_layer": -1}, "instruction layer must be an int, 0 or more, not -1"),
        ({"instruction_layer": True}, "instruction layer must be an int, 0 or more, not True"),
        ({"instruction_tokens": "mean"}, "instruction tokens must be one of words, last, not 'mean'"),
        ({"instruction_tokens": "last"}, "the last token of the prompt has read nothing of the question at layer 0"),
        (
            {"instruction_tokens": "last", "instruction_layer": 0, "importance": "saliency"},
            "the last token of the prompt has read nothing of the question at layer 0: choose instruction_layer 1",
        ),
        ({"name": "random", "seed": -1}, "seed must be an int, 0 or more, not -1"),
        ({"name": "random", "seed": 0.5}, "seed must be an int, 0 or more, not 0.5"),
    ],
)
def test_wrong_names_and_knobs_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        get_method(**{"name": "idselection", "budget": 4, **knobs})


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, math.nan, math.inf, True, "8", None])
def test_wrong_budgets_are_refused(name, budget):
    with pytest.raises((ValueError, TypeError), match="budget must be a number of tokens"):
        get_method(name, budget=budget)


def test_the_package_imports_torch_and_transformers_only_when_they_are_needed():
    code = (
        "import sys, idsel_core; assert not {'torch', 'transformers'} & set(sys.modules);"
        "from idsel_core import IDSelection, id_select; import idsel_core.visual_tokens;"
        "assert 'transformers' not in sys.modules;"
        "from idsel_core import prune; assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    for name in idsel_core.__all__:
        assert getattr(idsel_core, name) is not None
        assert name in dir(idsel_core)
    with pytest.raises(AttributeError, match="IDSelect"):
        idsel_core.IDSelect  # noqa: B018


def test_a_star_import_binds_every_public_name_and_every_method():
    names: dict[str, object] = {}
    exec("from idsel_core import *", names)
    assert set(idsel_core.__all__) == set(names) - {"__builtins__"}
    assert len(METHODS) == 33
    assert all(names[method.__name__] is method for method in METHODS.values())


def padded_inputs(padding: float) -> tuple[LayerTokens, VisualTokens]:
    """Return prompts and images whose padding holds a number: the prompts of two images, the first padded in front."""
    generator = torch.Generator().manual_seed(0)
    real = torch.tensor([[False] * 5 + [True] * 45, [True] * 50])
    columns = torch.stack([torch.arange(8, 44), torch.cat([torch.arange(3, 27), torch.full((12,), -1)])])
    states, keys, queries = (torch.randn(2, *shape, generator=generator) for shape in ((50, 8), (2, 50, 4), (4, 50, 4)))
    for values in (states, keys.transpose(1, 2), queries.transpose(1, 2)):
        values[~real] = padding
    text = real & (torch.arange(50) >= torch.tensor([[44], [27]]))
    read = (queries, keys, 0.5)
    prompt = LayerTokens(states, columns, real, text, torch.zeros_like(real), lambda: read)
    tokens = batch(image(0), image(1, 4, 6))
    sources = {name: lambda *_, name=name: filled(tokens.sources[name](), tokens.mask) for name in tokens.sources}

    def filled(view: Tensor, mask: Tensor) -> Tensor:
        padded = view.shape[:2] == mask.shape and view.is_floating_point()
        return view.masked_fill(~mask.view(*mask.shape, *[1] * (view.ndim - 2)), padding) if padded else view

    features = filled(tokens.features, tokens.mask)
    sources["projector"] = tokens.sources["projector"]
    return prompt, dataclasses.replace(tokens, features=features, sources=sources, decoder_layers=8)


@pytest.mark.parametrize("name", list(METHODS))
def test_picks_do_not_depend_on_padding(name):
    """Padding that is NaN, in features, views and hidden states, gives what zeros give."""
    method = METHODS[name](budget=12, **({"layer": None} if name == "vscan" else {}))
    method = dataclasses.replace(method, **({"budget_convention": "final"} if name in IN_LLM else {}))
    results = []
    for padding in (0.0, math.nan):
        prompt, tokens = padded_inputs(padding)
        if name == "downsample":
            tokens = dataclasses.replace(tokens, placeholders=3 * tokens.lengths)
            method = Downsample(budget=36)
        picks = method.select(tokens)
        found = [picks.order, picks.scores]
        if picks.features is not None:
            found += [row[:count] for row, count in zip(picks.features, picks.counts.tolist(), strict=True)]
        if name in IN_LLM:
            query_tokens = method.query_tokens(prompt)
            counts = method.counts(prompt.lengths, prompt.lengths, 8)[:, 0]
            choice = method.choose(dataclasses.replace(prompt, query_tokens=query_tokens), counts)
            found += [query_tokens, choice.order, choice.scores]
            if choice.merged is not None:
                found += [row[:n] for row, n in zip(choice.merged, choice.merged_counts.tolist(), strict=True)]
        results.append(found)
    for zeros, nans in zip(*results, strict=True):
        assert torch.equal(zeros, nans)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.ones(SIDE * SIDE), r"scores must be \(2, 36\), a row an image, not \(36,\)"),
        (torch.ones(2, 1), r"scores must be \(2, 36\), a row an image, not \(2, 1\)"),
        (torch.ones(2, SIDE * SIDE).index_fill(1, torch.tensor([3]), torch.nan), "NaN at a token; row 0, token 3 is"),
    ],
)
def test_scores_that_would_be_misread_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        take_best(scores, batch(image(0), image(1)), 4)


def test_a_budget_of_nothing_is_refused_in_few_words():
    with pytest.raises(ValueError, match=r"budget must be a number of tokens .*, not 0$"):
        IDSelection(budget=0)
