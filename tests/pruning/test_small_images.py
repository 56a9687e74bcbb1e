"""Images with fewer tokens than the budget are left whole, on every family, by every method, alone and in batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from idsel_core import IDSelection, prune
from idsel_core.methods import METHODS, InLLM, Method
from tests.support import tiny
from tests.support.families import FAMILIES
from tests.support.family_prompts import GREEDY, layouts, sizes
from tests.support.llava_prompts import run

ABOVE = 1000


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def variants(name: str, budget: int):
    """A method as it is and, where it can be, as its authors published it."""
    flags = [{}, {"faithful": True}] if "faithful" in {f.name for f in dataclasses.fields(METHODS[name])} else [{}]
    return [METHODS[name](budget, **flag) for flag in flags]


@pytest.mark.feature("small images stay whole")
def test_a_budget_above_the_tokens_is_no_pruning(family, model):
    for layout in layouts(family):
        inputs = family.prompts(layout)
        plain = run(model, inputs, **GREEDY)
        for scope in ("image", "tile"):
            with prune(model, IDSelection(budget=ABOVE), budget_scope=scope) as run_:
                pruned = run(model, inputs, **GREEDY)
            assert torch.equal(plain.sequences, pruned.sequences)
            assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
            counts = [family.counts[size] for size in sizes(layout)]
            assert [(r.before, r.after, r.requested) for r in run_.report] == [(n, n, ABOVE) for n in counts]


@pytest.mark.feature("small images stay whole")
@torch.no_grad()
def test_no_method_touches_an_image_below_its_budget(family, model):
    inputs = family.prompts(((1,), (2, 0)))
    plain = model(**inputs).logits
    for name in METHODS:
        why = family.refused.get(name, "")
        if why.startswith("a smaller image") or (why and issubclass(METHODS[name], InLLM)):
            continue  # What a model does not allow at all; a view that it lacks is not needed.
        for method in variants(name, ABOVE):
            with prune(model, method) as run_:
                assert torch.equal(model(**inputs).logits, plain), method
            assert [r.after for r in run_.report] == [r.before for r in run_.report]


@pytest.mark.feature("small images stay whole")
def test_a_small_image_changes_nothing_for_a_large_one_beside_it(family, model):
    if len({family.counts[size] for size in (0, 1, 2)}) == 1:
        pytest.skip("all images of this family have the same number of tokens")
    small, large = min((0, 1, 2), key=family.counts.get), max((0, 1, 2), key=family.counts.get)
    layout, budget = ((small,), (large,)), family.counts[small] + 1
    inputs = family.prompts(layout)
    for name in ("idselection", "divprune", "tome", "vispruner"):
        knobs = {} if family.has_cls or name != "vispruner" else {"attention": "received"}
        with prune(model, METHODS[name](budget, **knobs)) as run_:
            together = run(model, inputs, **GREEDY)
            for row in (0, 1):
                single = run(model, family.alone(layout, row), **GREEDY)
                torch.testing.assert_close(single.logits[0][0], together.logits[0][row], atol=3e-5, rtol=1e-4)
        first, second, *alone = run_.report
        assert first.indices == list(range(first.before)) and second.after == budget
        assert [first.order, second.order] == [r.order for r in alone]


@pytest.mark.feature("small images stay whole")
@torch.no_grad()
def test_published_variants_and_merged_features_leave_small_images_alone():
    """LLaVA-1.5 has all views that methods read but those of a companion, which a whole image does not need."""
    model, inputs = tiny.build(layers=5), tiny.prompts((1, 2))
    plain = model(**inputs).logits
    for name in METHODS:
        for method in variants(name, tiny.TOKENS + 1):
            with prune(model, method) as run_:
                assert torch.equal(model(**inputs).logits, plain), method
            assert {(r.before, r.after, r.requested) for r in run_.report} == {(36, 36, 37)}


def test_a_wrong_selection_beside_a_small_image_is_told_of():
    @dataclasses.dataclass(frozen=True)
    class Wrong(Method):
        name = "wrong"

        def select(self, tokens):
            return None

    family = FAMILIES["qwen2_5_vl"]
    counts = sorted(family.counts[size] for size in (0, 1))
    assert counts[0] < counts[1]
    with (
        prune(family.build(), Wrong(budget=counts[0] + 1)) as run_,
        pytest.raises(
            TypeError, match=r"select\(\) of method 'wrong' must return a Selection with 1 rows, .* NoneType"
        ),
    ):
        run_.model(**family.prompts(((0,), (1,))))
