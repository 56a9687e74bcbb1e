"""Going on from the cache of a pruned call: second and third turns, decoding by hand, and caches that refuse."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from idsel_core import UniformGrid, adapter_for, prune
from idsel_core.methods import FastV, PyramidDrop, VScan
from tests.support.chat import ALL_FAMILIES, GREEDY, MIXED, SECOND, STEPS, THIRD, conversation, padded
from tests.support.family_prompts import BARRED, CLOSE, by_hand, modes, of_prompt, ragged
from tests.support.llava_prompts import Fixed, same, state

REFUSED = r"this cache holds prompts that prune\(\) shortened, so it does not fit them: go on from it by model\(...\)"
INSIDE = (FastV(budget=7, budget_convention="final"), PyramidDrop(budget=6, budget_convention="final"))
WITH_DROPS = [name for name, family in ALL_FAMILIES.items() if not {"fastv", "pyramiddrop"} & set(family.refused)]


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def family(request):
    return ALL_FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def pixels_of(model, inputs):
    return {name: value for name, value in inputs.items() if name in adapter_for(model).image_inputs}


def answer(model, cache, **arguments):
    """Return the new tokens, and the output."""
    out = model.generate(**arguments, **GREEDY, past_key_values=cache, return_dict_in_generate=True, output_logits=True)
    return out.sequences[:, arguments["input_ids"].shape[1] :], out


def decoded(model, cache, ids, **first):
    """Return what a loop of forward passes answers to these new tokens."""
    chosen = []
    for _ in range(STEPS):
        logits = model(input_ids=ids, past_key_values=cache, **first).logits[:, -1]
        logits[:, BARRED] = -torch.inf
        ids, first = logits.argmax(-1, keepdim=True), {}
        chosen.append(ids)
    return torch.cat(chosen, 1)


@pytest.mark.feature("chat")
@torch.no_grad()
def test_turns_go_on_as_by_hand(family, model):
    """The whole conversation, with pixels or without, then new text alone, with each of its masks."""
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    for positions in modes(family):
        wanted = [
            by_hand(family, model, MIXED, row, method.picks, STEPS, positions, (SECOND[row], THIRD[row]))
            for row in range(3)
        ]
        tokens = torch.tensor([chosen for _, chosen, _ in wanted]).unflatten(1, (3, STEPS))
        logits = torch.stack([values for values, _, _ in wanted]).unflatten(1, (3, STEPS))
        with prune(model, method, positions) as run:
            first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            spare = copy.deepcopy(first.past_key_values)
            whole = conversation(
                family, inputs, {"sequences": first.sequences, "attention_mask": inputs["attention_mask"]}, SECOND
            )
            got, second = answer(model, first.past_key_values, **whole)
            assert torch.equal(got, tokens[:, 1])
            torch.testing.assert_close(torch.stack(second.logits, 1), logits[:, 1], **CLOSE)
            assert torch.equal(second.sequences[:, : whole["input_ids"].shape[1]], whole["input_ids"])
            got, _ = answer(model, copy.deepcopy(spare), **whole, **pixels_of(model, inputs))
            assert torch.equal(got, tokens[:, 1])
            # The last token of an answer is not in the cache yet.
            new, real = padded(THIRD)
            new = torch.cat([second.sequences[:, -1:], new], 1)
            real = torch.cat([torch.ones(3, 1, dtype=torch.long), real], 1)
            given = torch.cat([whole["attention_mask"], torch.ones(3, STEPS - 1, dtype=torch.long), real], 1)
            for mask in (real, given):
                got, _ = answer(model, copy.deepcopy(second.past_key_values), input_ids=new, attention_mask=mask)
                assert torch.equal(got, tokens[:, 2])
            got = decoded(model, copy.deepcopy(second.past_key_values), new, attention_mask=real)
            assert torch.equal(got, tokens[:, 2])
        calls = {record.call: record.source for record in run.report}
        assert list(calls.values()) == ["tower", *["cache"] * (4 + STEPS)]
        assert len({(r.before, r.after, tuple(r.indices)) for r in run.report if r.image == 0}) == 1


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_turns_go_on_from_forward(family, model, side):
    inputs, method = family.prompts(MIXED, side), ragged(family, MIXED)
    new, real = padded(SECOND)
    with prune(model, method):
        cache = model(**inputs, use_cache=True).past_key_values
        spare = copy.deepcopy(cache)
        got = model(input_ids=new, attention_mask=real, past_key_values=cache).logits[:, -1]
        whole = conversation(
            family, inputs, {"sequences": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}, SECOND
        )
        again = model(**whole, past_key_values=spare).logits
    assert again.shape[1] == new.shape[1]
    for row in range(3):
        single = family.alone(MIXED, row)
        with prune(model, one_row(method, row)):
            alone = model(**single, use_cache=True).past_key_values
            for token in SECOND[row]:
                wanted = model(input_ids=torch.tensor([[token]]), past_key_values=alone).logits[0, -1]
        torch.testing.assert_close(got[row], wanted, **CLOSE)
        torch.testing.assert_close(again[row, -1], wanted, **CLOSE)


def one_row(method, row):
    return Fixed(picks=of_prompt(MIXED, row, method.picks) or ((0,),))


@pytest.mark.parametrize("name", WITH_DROPS)
@torch.no_grad()
def test_turns_go_on_where_tokens_are_dropped_inside(name):
    """In a padded batch as token by token alone, which is checked against a reference of its own elsewhere."""
    family = ALL_FAMILIES[name]
    model, inputs = family.build(), family.prompts(MIXED)
    for method in (*INSIDE, VScan(budget=8, budget_convention="final")) if name == "llava" else INSIDE:
        with prune(model, method):
            first = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
            spare = copy.deepcopy(first.past_key_values)
            whole = conversation(
                family, inputs, {"sequences": first.sequences, "attention_mask": inputs["attention_mask"]}, SECOND
            )
            got, _ = answer(model, first.past_key_values, **whole)
            new, real = padded(SECOND)
            alone, _ = answer(
                model,
                spare,
                input_ids=torch.cat([first.sequences[:, -1:], new], 1),
                attention_mask=torch.cat([torch.ones(3, 1, dtype=torch.long), real], 1),
            )
            assert torch.equal(alone, got)
            for row in range(3):
                ids = first.sequences[row, -STEPS:].tolist() + list(SECOND[row])
                single = model.generate(
                    **family.alone(MIXED, row), **{**GREEDY, "max_new_tokens": 1}, return_dict_in_generate=True
                )
                for token in ids[:-1]:
                    model(input_ids=torch.tensor([[token]]), past_key_values=single.past_key_values)
                wanted = decoded(model, single.past_key_values, torch.tensor([[ids[-1]]]))
                assert torch.equal(got[row], wanted[0])


def generate(model, inputs, **options):
    return model.generate(**inputs, **GREEDY, return_dict_in_generate=True, **options)


@torch.no_grad()
def test_a_shortened_cache_refuses_outside_blocks(family, model):
    inputs = family.prompts(MIXED)
    generate(model, inputs)  # hooks of transformers itself come with the first call
    methods = [ragged(family, MIXED), *([INSIDE[0]] if family.name in WITH_DROPS else [])]
    for method in methods:
        before = state(model)
        with prune(model, method):
            out = generate(model, inputs)
        assert same(state(model), before)
        assert out.past_key_values.get_seq_length() < out.sequences.shape[1] or method in INSIDE
        whole = conversation(
            family, inputs, {"sequences": out.sequences, "attention_mask": inputs["attention_mask"]}, SECOND
        )
        packed = io.BytesIO()
        pickle.dump(out.past_key_values, packed)
        packed.seek(0)
        repeated = copy.deepcopy(out.past_key_values)
        repeated.batch_select_indices(torch.arange(3))
        repeated.crop(-1)
        for cache in (
            out.past_key_values,
            copy.copy(out.past_key_values),
            copy.deepcopy(out.past_key_values),
            pickle.load(packed),
            repeated,
        ):
            for call in (
                lambda cache=cache, whole=whole: model.generate(**whole, **GREEDY, past_key_values=cache),
                lambda cache=cache: model.generate(input_ids=padded(SECOND)[0], **GREEDY, past_key_values=cache),
                lambda cache=cache: model(input_ids=torch.ones(3, 1, dtype=torch.long), past_key_values=cache),
            ):
                length = cache.get_seq_length()
                with pytest.raises(ValueError, match=REFUSED):
                    call()
                assert cache.get_seq_length() == length


@torch.no_grad()
def test_a_block_of_another_model_refuses(family, model):
    inputs, other, method = family.prompts(MIXED), copy.deepcopy(model), ragged(family, MIXED)
    with prune(model, method):
        cache = generate(model, inputs).past_key_values
    new = padded(SECOND)[0]
    with prune(other, method), pytest.raises(ValueError, match=r"by another model \(a copy is another one\)"):
        other.generate(input_ids=new, **GREEDY, past_key_values=cache)
    # Another block of the same model does not.
    with prune(model, UniformGrid(3)):
        assert model.generate(input_ids=new, **GREEDY, past_key_values=cache).shape[1] == new.shape[1] + STEPS
