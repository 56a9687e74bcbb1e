"""Callbacks of generate() see the prompts as they were given, and the model stays what it was for everyone else."""

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from idsel_core import TopK, UniformGrid, prune
from tests.support import families, tiny
from tests.support.families import FAMILIES
from tests.support.llava_prompts import same, state
from tests.support.tiny import TinyLlava

GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [families.IMAGE, families.VIDEO]}
LAYOUT = ((1,), (0,))
METHOD = UniformGrid(budget=0.5)


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request):
    return TinyLlava() if request.param == "llava" else FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


class Seen(StoppingCriteria, LogitsProcessor):
    """Remembers what it was told; changes nothing."""

    def __init__(self, answer):
        self.ids, self.answer = [], answer

    def __call__(self, input_ids, scores, **_):
        self.ids.append(input_ids.clone())
        return scores if self.answer is None else torch.full((len(input_ids),), self.answer)


class Stream:
    def __init__(self):
        self.given, self.ended = [], False

    def put(self, value):
        self.given.append(value.clone())

    def end(self):
        self.ended = True


@pytest.mark.feature("callbacks see the prompt")
def test_criteria_and_processors_are_told_the_prompt_as_given(family, model):
    inputs = family.prompts(LAYOUT)
    criterion, processor = Seen(False), Seen(None)
    callbacks = {
        "stopping_criteria": StoppingCriteriaList([criterion]),
        "logits_processor": LogitsProcessorList([processor]),
    }
    with prune(model, METHOD):
        plain = model.generate(**inputs, **GREEDY)
        told = model.generate(**inputs, **GREEDY, **callbacks)
    assert torch.equal(plain, told)
    for step, ids in enumerate(processor.ids):
        assert torch.equal(ids, told[:, : inputs["input_ids"].shape[1] + step])
    for step, ids in enumerate(criterion.ids):
        assert torch.equal(ids, told[:, : inputs["input_ids"].shape[1] + step + 1])


@pytest.mark.feature("callbacks see the prompt")
def test_a_criterion_that_counts_the_prompt_stops_where_the_caller_means(family, model):
    inputs = family.prompts(LAYOUT)
    length = inputs["input_ids"].shape[1]

    class After(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            return torch.full((len(input_ids),), input_ids.shape[1] >= length + 2)

    with prune(model, METHOD):
        output = model.generate(**inputs, **GREEDY, stopping_criteria=[After()])
    assert output.shape[1] == length + 2


@pytest.mark.feature("callbacks see the prompt")
def test_beams_show_each_prompt_to_its_callbacks(family, model):
    inputs, processor = family.prompts(LAYOUT), Seen(None)
    with prune(model, METHOD):
        model.generate(**inputs, **GREEDY, num_beams=3, logits_processor=[processor])
    width = inputs["input_ids"].shape[1]
    for ids in processor.ids:
        assert torch.equal(ids[:, :width], inputs["input_ids"].repeat_interleave(3, 0))


@pytest.mark.feature("callbacks see the prompt")
def test_a_streamer_is_given_the_prompt_first(family, model):
    inputs, streamer = family.alone(LAYOUT, 0), Stream()
    with prune(model, METHOD):
        output = model.generate(**inputs, **GREEDY, streamer=streamer)
    assert torch.equal(streamer.given[0], inputs["input_ids"]) and streamer.ended
    assert torch.equal(torch.cat([given.flatten() for given in streamer.given]), output[0])


def test_allowed_tokens_are_asked_for_with_the_prompt_as_given():
    clip, inputs, seen = tiny.build(), tiny.prompts((1, 1)), []

    def allowed(prompt, tokens):
        seen.append((prompt, tokens.clone()))
        return list(range(3, 80))

    with prune(clip, METHOD):
        output = clip.generate(**inputs, max_new_tokens=3, do_sample=False, prefix_allowed_tokens_fn=allowed)
    for prompt, tokens in seen:
        assert torch.equal(tokens, output[prompt, : len(tokens)])
        assert len(tokens) >= inputs["input_ids"].shape[1]


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_forward_by_name_is_pruned_as_a_call_is(family, model):
    inputs = family.alone(LAYOUT, 0)
    with prune(model, METHOD) as run:
        called, by_name = model(**inputs).logits, model.forward(**inputs).logits
    assert torch.equal(called, by_name)
    assert [record.call for record in run.report] == [0, 1]
    assert run.report[0].after < run.report[0].before


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_wrappers_are_looked_through(family, model):
    class Peft(nn.Module):
        """What PEFT does: ``forward`` of the inner model by its name, all else by __getattr__."""

        def __init__(self, base):
            super().__init__()
            self.base = base

        def get_base_model(self):
            return self.base

        def generate(self, *args, **kwargs):
            return self.base.generate(*args, **kwargs)

        def forward(self, *args, **kwargs):
            return self.base.forward(*args, **kwargs)

    inputs = family.alone(LAYOUT, 0)
    with prune(model, METHOD):
        wanted = model.generate(**inputs, **GREEDY)
        logits = model(**inputs).logits
    wrapped = Peft(model)
    with prune(wrapped, METHOD) as run:
        assert torch.equal(wrapped.generate(**inputs, **GREEDY), wanted)
        assert torch.equal(wrapped(**inputs).logits, logits)
        assert torch.equal(nn.DataParallel(model, device_ids=[])(**inputs).logits, logits)
    assert len(run.report) == 3
    with prune(nn.DataParallel(wrapped, device_ids=[]), METHOD) as run:
        assert torch.equal(wrapped(**inputs).logits, logits)
    assert len(run.report) == 1


@pytest.mark.feature("copies are plain models")
@torch.no_grad()
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_made_inside_a_block_is_a_plain_model(family, way):
    model, inputs = family.build(), family.alone(LAYOUT, 0)
    whole = model.generate(**inputs, **GREEDY)
    if way == "pickle":
        try:
            pickle.dumps(model)
        except AttributeError as error:
            pytest.skip(f"transformers' own hooks cannot be pickled once the model has run: {error}")
    with prune(model, METHOD) as run:
        other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
        assert torch.equal(other.generate(**inputs, **GREEDY), whole)
        assert not run.report
        for parameter in other.parameters():
            parameter.zero_()
        assert not torch.equal(other(**inputs).logits, model(**inputs).logits)
    assert torch.equal(model.generate(**inputs, **GREEDY), whole)
    assert other(**inputs).logits.abs().max() == 0
    with prune(other, METHOD) as run:
        other(**inputs)
    assert len(run.report) == 1


@pytest.mark.feature("leaves no trace")
@torch.no_grad()
def test_what_the_model_remembers_is_what_it_was_before(family):
    model, inputs = family.build(), family.alone(LAYOUT, 0)
    model.generate(**inputs, **GREEDY)
    before, remembered = state(model), getattr(model.base_model, "rope_deltas", None)
    with prune(model, METHOD):
        model.generate(**family.alone(((1, 0),), 0), **GREEDY)
    after = getattr(model.base_model, "rope_deltas", None)
    assert after is remembered
    assert same(state(model), before)


def test_a_call_kept_from_inside_the_block_runs_whole_after_it():
    clip, inputs = tiny.build(), tiny.prompts((1,))
    whole = clip.generate(**inputs, max_new_tokens=4, do_sample=False)
    with prune(clip, TopK(budget=4, importance="saliency")) as run:
        generate = clip.generate
    assert torch.equal(generate(**inputs, max_new_tokens=4, do_sample=False), whole)
    assert not run.report
