"""The block of prune(): what it reports, and the model after it."""

from __future__ import annotations

import dataclasses
import gc

import pytest
import torch

from idsel_core import IDSelection, Method, Selection, UniformGrid, prune
from idsel_core.methods import FastV
from tests.support import tiny
from tests.support.llava_prompts import GREEDY, ragged, run, same, state

ALL = UniformGrid(budget=1.0)


@pytest.fixture(scope="module")
def clip():
    return tiny.build("clip")


def test_report_lists_each_image_of_each_call(clip):
    inputs, layout = tiny.prompts((1, 2)), (1, 2)
    method = IDSelection(budget=0.25, importance="saliency")
    with prune(clip, method) as run_:
        clip.generate(**inputs, **GREEDY)
        clip(**tiny.alone(inputs, layout, 0))
        clip.generate(**tiny.prompts((0,)), **GREEDY)
    assert [(r.call, r.image) for r in run_.report] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert {(r.before, r.after, r.requested) for r in run_.report} == {(36, 9, 0.25)}
    first = run_.report[0]
    assert first.indices == sorted(first.order) and len(set(first.order)) == 9
    assert run_.report[3].indices == first.indices
    assert all(r.encode_ms > 0 and r.select_ms > 0 for r in run_.report)


def test_prune_restores_the_model(clip):
    inputs = tiny.prompts((1, 2))
    method = IDSelection(budget=5)
    run(clip, inputs)  # transformers installs hooks of its own in the first call
    before = state(clip)
    with prune(clip, method):
        assert not same(state(clip), before)
        run(clip, inputs)
    assert same(state(clip), before)
    for fault in ("block", "method", "tower"):
        method = FastV(budget=1) if fault == "method" else IDSelection(budget=5)
        with pytest.raises((RuntimeError, ValueError)), prune(clip, method):
            if fault == "block":
                raise RuntimeError("on purpose")
            if fault == "tower":
                inputs = {**inputs, "pixel_values": inputs["pixel_values"][:, :2]}
            run(clip, inputs)
        assert same(state(clip), before), fault


def test_innermost_of_nested_blocks_decides(clip):
    inputs, method = tiny.prompts((1,)), ragged(1)
    run(clip, inputs)
    before = state(clip)
    outer, inner = prune(clip, UniformGrid(budget=4)), prune(clip, UniformGrid(budget=9))
    with outer:
        clip(**inputs)
        with inner:
            clip(**inputs)
            clip.generate(**inputs, **GREEDY)
        clip.generate(**inputs, **GREEDY)
        with outer:
            clip(**inputs)
    assert [r.after for r in outer.report] == [4, 4, 4]
    assert [r.after for r in inner.report] == [9, 9]
    assert same(state(clip), before)
    with inner:
        clip(**inputs)
    assert len(inner.report) == 3 and same(state(clip), before)
    # Left in the wrong order.
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    clip(**inputs)
    inner.__exit__(None, None, None)
    assert len(inner.report) == 4 and same(state(clip), before)
    with prune(clip, method), pytest.raises(ValueError), prune(clip, FastV(budget=1)):
        clip(**inputs)
    assert same(state(clip), before)


def test_prune_restores_a_user_defined_generate():
    model = tiny.build("clip")
    own = model.generate
    model.generate = own
    with prune(model, ALL):
        assert model.generate is not own
    assert model.__dict__["generate"] is own


def test_a_pruned_model_can_be_freed():
    model = tiny.build("clip")
    with prune(model, IDSelection(budget=4)):
        run(model, tiny.prompts((1,)))
    import weakref

    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("returned", ["tensor", "none", "one row"])
def test_a_method_that_returns_no_selection_of_all_images_is_refused(returned):
    @dataclasses.dataclass(frozen=True)
    class Wrong(Method):
        name = "wrong"

        def select(self, tokens):
            one = Selection.from_order(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 36), 1)
            return {"tensor": torch.zeros(2, 1), "none": None, "one row": one}[returned]

    with prune(tiny.build(), Wrong(budget=1)) as run, pytest.raises(TypeError, match="must return a Selection with 2"):
        run.model(**tiny.prompts((1, 1)))
