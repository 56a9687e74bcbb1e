"""Further ways to call a model inside a block, on every family: each gives the tokens of the plainest call."""

import pytest
import torch

from idsel_core import IDSelection, TopK, UniformGrid, adapter_for, prune
from idsel_core.methods import FastV
from tests.support.families import FAMILIES
from tests.support.family_prompts import BARRED, GREEDY
from tests.support.tiny import TinyLlava

LAYOUT = ((1,), (0,))
METHOD = TopK(budget=5, importance="saliency")
PER_PROMPT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request):
    return TinyLlava() if request.param == "llava" else FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


@pytest.fixture(scope="module")
def inputs(family):
    """Prompts of which one shows a video, where the family has them, and deepstack or tiles, where it has these."""
    return family.prompts(((1,), (-1,)) if -1 in getattr(family, "counts", ()) else LAYOUT)


@pytest.fixture(scope="module")
def wanted(model, inputs):
    with prune(model, METHOD):
        return model.generate(**inputs, **GREEDY)


def labels_of(inputs):
    return inputs["input_ids"].masked_fill(torch.isin(inputs["input_ids"], torch.tensor([0, *BARRED])), -100)


def test_empty_pixels_are_none(family, model):
    text = family.prompts(((),))
    plain = model.generate(**text, **GREEDY)
    shown = family.prompts(LAYOUT)
    names = [name for name in adapter_for(model).image_inputs if name in shown]
    for none in ({name: shown[name][:0] for name in names}, {name: [] for name in names}):
        with prune(model, METHOD) as run:
            assert torch.equal(model.generate(**text, **none, **GREEDY), plain)
        assert not run.report
    with prune(model, METHOD), pytest.raises(ValueError, match="image placeholders, but there are no"):
        model.generate(**{**shown, **{name: shown[name][:0] for name in names}}, **GREEDY)


def test_lists_in_place_of_tensors_are_refused_by_name(family, model):
    shown = family.prompts(LAYOUT)
    name = next(name for name in adapter_for(model).pixel_inputs if name in shown)
    for wrong in (name, "attention_mask"):
        with (
            prune(model, METHOD),
            pytest.raises(ValueError, match=f"{wrong} must be a tensor, not a list: give return"),
        ):
            model.generate(**{**shown, wrong: list(shown[wrong])}, **GREEDY)


def test_prompts_may_be_positional(model, inputs, wanted):
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with prune(model, METHOD):
        assert torch.equal(model.generate(inputs["input_ids"], **rest, **GREEDY), wanted)
        assert torch.equal(model.generate(inputs=inputs["input_ids"], **rest, **GREEDY), wanted)
        with torch.no_grad():
            assert torch.equal(model(inputs["input_ids"], **rest).logits, model(**inputs).logits)


def test_inference_mode_may_be_inside_or_outside(model, inputs, wanted):
    with prune(model, METHOD), torch.inference_mode():
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)
    with torch.inference_mode(), prune(model, METHOD):
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)
    with prune(model, METHOD):
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)


@torch.no_grad()
def test_autocast_prunes(model, inputs):
    with prune(model, IDSelection(budget=5)) as run, torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**inputs).logits.dtype == torch.bfloat16
        model.generate(**inputs, **GREEDY)
    assert [r.after for r in run.report] == [5] * 4
    assert [r.order for r in run.report[:2]] == [r.order for r in run.report[2:]]


def test_training_mode_changes_no_answer(model, inputs, wanted):
    model.train()
    try:
        with prune(model, METHOD):
            assert torch.equal(model.generate(**inputs, **GREEDY), wanted)
    finally:
        model.eval()


@pytest.mark.feature("labels, gradients")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing_gives_the_same_gradients_also_after_the_block(family, inputs):
    found = []
    for checkpointing in (False, True):
        model = family.build().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        with prune(model, METHOD):
            out = model(**inputs, labels=labels_of(inputs), use_cache=False)
        out.loss.backward()
        found.append((out.loss.item(), model.get_input_embeddings().weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1])


def test_errors_inside_leave_the_block_as_it_was(model, inputs, wanted):
    def fail(*_):
        raise RuntimeError("on purpose")

    with prune(model, METHOD) as run:
        hook = model.lm_head.register_forward_hook(fail)
        for call in (model.generate, model):
            with pytest.raises(RuntimeError, match="on purpose"):
                call(**inputs)
        hook.remove()
        assert not run.report
        assert torch.equal(model.generate(**inputs, **GREEDY), wanted)
    assert len(run.report) == 2


def test_an_inner_block_that_fails_gives_back_to_the_outer_one(model, inputs):
    with prune(model, UniformGrid(budget=4)) as outer:
        with prune(model, UniformGrid(budget=6)) as inner:
            model.generate(**inputs, **GREEDY)
            with pytest.raises(ValueError, match=r"fastv|drop"), prune(model, FastV(budget=1)):
                model.generate(**inputs, **GREEDY)
            model.generate(**inputs, **GREEDY)
        model.generate(**inputs, **GREEDY)
    assert [r.after for r in outer.report] == [4] * 2 and [r.after for r in inner.report] == [6] * 4


def test_several_returned_sequences_are_those_of_repeated_prompts(family, model):
    single = family.alone(LAYOUT, 0)
    repeated = {
        name: value.repeat_interleave(3, 0) if name in PER_PROMPT else torch.cat([value] * 3)
        for name, value in single.items()
    }
    options = {**GREEDY, "do_sample": True}
    with prune(model, METHOD) as run:
        torch.manual_seed(0)
        several = model.generate(**single, **options, num_return_sequences=3)
        torch.manual_seed(0)
        assert torch.equal(model.generate(**repeated, **options), several)
    assert [r.call for r in run.report] == [0, 1, 1, 1]


def test_transition_scores_of_beams_add_up(family, model):
    options = {**GREEDY, "num_beams": 2, "num_return_sequences": 2, "output_scores": True, "length_penalty": 0.0}
    with prune(model, METHOD):
        out = model.generate(**family.alone(LAYOUT, 0), **options, return_dict_in_generate=True)
    scores = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    torch.testing.assert_close(scores.sum(1), out.sequences_scores)
