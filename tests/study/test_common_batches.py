"""Prompts of several settings in common batches: the same answers as one setting at a time, and less work."""

import pytest
import torch

from idsel_core.backbones import adapter_for
from idsel_core.methods import METHODS, IDSelection, get_method
from idsel_core.study.common_batches import CommonBatches, split_prompts
from idsel_core.study.nested_budgets import NESTED, NestedSelections
from tests.support.families import FAMILIES

OPTIONS = {"max_new_tokens": 3, "do_sample": False}


def two_images(family, model):
    """Return the model's adapter, and prompts about two images, of different size where there are several."""
    backbone = adapter_for(model)
    sizes = [size for size in (0, 1) if size in family.counts]
    prompts = family.prompts(tuple((size,) for size in (*sizes, *sizes)[:2]))
    encoded = backbone.encode(**backbone.image_arguments(prompts))
    return backbone, prompts, backbone.visual_tokens(encoded, prompts["input_ids"], prompts["attention_mask"])


def shortened(family, model, budgets=(3, 6)):
    """Return the shortened prompts of two images at two budgets, and the answer to each by itself."""
    backbone, prompts, tokens = two_images(family, model)
    rows = backbone.locate(prompts["input_ids"], tokens.placeholders, tokens.video, prompts["attention_mask"]).rows
    pieces, answers = [], []
    for budget in budgets:
        short = backbone.shorten(prompts, tokens, get_method("uniform", budget=budget).select(tokens))
        pieces += split_prompts(backbone, short, rows, [(row, budget) for row in range(2)])
        with backbone.reading():
            answers += list(model.generate(**short, **OPTIONS)[:, short["input_ids"].shape[1] :])
    return backbone, pieces, answers


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@torch.no_grad()
def test_every_family_answers_as_by_itself(family):
    backbone, pieces, answers = shortened(family, family.build())
    together = CommonBatches(backbone, 8, OPTIONS).answer(pieces, 40)
    assert all(map(torch.equal, together, answers))


@torch.no_grad()
def test_memory_that_runs_out_halves_the_batch_for_good():
    """Memory does not run out here when it should, so a hook says that it did."""
    family = FAMILIES["llava_next"]
    model = family.build()
    backbone, pieces, answers = shortened(family, model)
    read = []

    def refuse(_module, _args, kwargs):
        read.append(len(kwargs["inputs_embeds"]))
        if len(kwargs["inputs_embeds"]) > 1:
            raise torch.OutOfMemoryError("out of memory")

    asking = CommonBatches(backbone, 8, OPTIONS)
    with torch.no_grad():
        hook = model.model.language_model.register_forward_pre_hook(refuse, with_kwargs=True)
        assert all(map(torch.equal, asking.answer(pieces, 40), answers))
        assert asking.part < 1
        before = asking.part
        asking.answer(pieces, 40)
        assert asking.part <= before
        hook.remove()
    assert read[0] > 1


@torch.no_grad()
def test_one_prompt_for_which_memory_does_not_last_is_an_error():
    family = FAMILIES["llava_next"]
    model = family.build()
    backbone, pieces, _ = shortened(family, model)

    def refuse(_module, _args, kwargs):
        raise torch.OutOfMemoryError("out of memory")

    model.model.language_model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        CommonBatches(backbone, 8, OPTIONS).answer(pieces, 40)


@pytest.mark.parametrize("name", [kind.name for kind in NESTED])
@pytest.mark.parametrize("budgets", [(4, 9, 2), (0.25, 3, 0.5), (5, 100, 1000)])
@torch.no_grad()
def test_a_nested_selection_is_that_of_the_budget_alone(name, budgets):
    _, _, tokens = two_images(FAMILIES["llava_next"], FAMILIES["llava_next"].build())
    methods = [get_method(name, budget=budget) for budget in budgets]
    select = NestedSelections(methods)
    for method in methods:
        nested, alone = select(method, tokens), method.select(tokens)
        assert torch.equal(nested.order, alone.order)
        assert torch.equal(nested.indices, alone.indices)
        assert torch.equal(nested.counts, alone.counts)
        assert nested.requested == alone.requested


def test_a_subclass_does_not_inherit_nesting():
    class Reversed(METHODS["topk"]):
        name = "reversed"

    methods = [Reversed(budget=2), Reversed(budget=4)]
    assert not NestedSelections(methods)._budgets


KNOBS = [
    {"gamma": gamma, "update": update}
    for gamma in (0.0, 5.0, 100.0, float("inf"), "auto")
    for update in ("subtract", "multiply")
]


@pytest.mark.parametrize("shared", [{}, {"exhausted": "continue", "features": "encoder"}], ids=["default", "continue"])
@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
@torch.no_grad()
def test_settings_that_are_run_together_pick_as_each_alone(name, shared, monkeypatch):
    _, _, tokens = two_images(FAMILIES[name], FAMILIES[name].build())
    tokens = tokens.take(torch.tensor([0, 0, 1]))  # two questions about one image
    methods = [IDSelection(budget, **knobs, **shared) for budget in (5, 3, 0.5) for knobs in KNOBS]
    calls = []
    monkeypatch.setattr(IDSelection, "select", lambda self, _: calls.append(self))
    selections = [NestedSelections(methods)] * len(methods)
    together = [select(method, tokens) for select, method in zip(selections, methods, strict=True)]
    assert not calls
    monkeypatch.undo()
    for method, one in zip(methods, together, strict=True):
        alone = method.select(tokens)
        for field in ("order", "indices", "counts", "scores"):
            assert torch.equal(getattr(one, field), getattr(alone, field)), (method, field)


@torch.no_grad()
def test_settings_of_other_scores_are_not_run_together():
    _, _, tokens = two_images(FAMILIES["llava_next"], FAMILIES["llava_next"].build())
    methods = [
        IDSelection(4, gamma=gamma, importance=importance, features=features)
        for importance in ("saliency", "unified")
        for gamma in (1.0, 20.0)
        for features in ("projector", "encoder")
    ]
    select = NestedSelections(methods)
    for method in methods:
        assert torch.equal(select(method, tokens).order, method.select(tokens).order)
        assert len(select._kin(method)) == 2


@torch.no_grad()
def test_values_that_are_refused_alone_are_refused_together():
    _, _, tokens = two_images(FAMILIES["llava_next"], FAMILIES["llava_next"].build())
    tokens.features[0, 0, 0] = torch.nan
    methods = [IDSelection(4, gamma=gamma, importance="saliency") for gamma in (1.0, 20.0)]
    with pytest.raises(ValueError, match="features must be finite"):
        NestedSelections(methods)(methods[0], tokens)
