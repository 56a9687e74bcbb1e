"""Going on from the cache of a pruned call: second and third turns, decoding by hand, and caches that refuse."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle

import pytest
import torch
from transformers import DynamicCache, StaticCache

from idsel_core import TopK, UniformGrid, adapter_for, prune
from idsel_core.methods import FastV, IDSelectionInside, PyramidDrop, VScan
from tests.support.families import PAD
from tests.support.family_prompts import BARRED, CLOSE, by_hand, modes, of_prompt, ragged
from tests.support.llava_prompts import Fixed, same, state
from tests.support.turns import ALL_FAMILIES, GREEDY, MIXED, SECOND, STEPS, THIRD, conversation, padded

REFUSED = r"this cache holds prompts that prune\(\) shortened, so it does not fit them: go on from it by model\(...\)"
BEHIND = 8
"""Columns of text behind the last image of a prompt."""
INSIDE = (
    FastV(budget=7, budget_convention="final"),
    PyramidDrop(budget=6, budget_convention="final"),
    IDSelectionInside(budget=5, times=2.0, budget_convention="final"),
)
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


@pytest.fixture(scope="module")
def llava():
    return ALL_FAMILIES["llava"].build()


def second(model, cache, texts=SECOND, **options):
    """Return the answers to new text alone; the answers before were not read."""
    new, real = padded(texts)
    arguments = {"input_ids": new, "attention_mask": real, "past_key_values": cache}
    return model.generate(**arguments, **{**GREEDY, **options})[:, new.shape[1] :]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
@torch.no_grad()
def test_rows_and_columns_of_a_cache_can_be_taken(name):
    family = ALL_FAMILIES[name]
    model, inputs = family.build(), family.prompts(MIXED)
    for method in (ragged(family, MIXED), *(INSIDE if name in WITH_DROPS else [])):
        with prune(model, method) as run:
            first = model(**inputs, use_cache=True).past_key_values
            wanted = second(model, copy.deepcopy(first))
            for rows in ([2, 0], [1], [0, 0, 2]):
                cache = copy.deepcopy(first)
                cache.batch_select_indices(torch.tensor(rows))
                before = len(run.report)
                assert torch.equal(second(model, cache, [SECOND[row] for row in rows]), wanted[rows])
                images = [len(MIXED[row]) for row in rows]
                assert len(run.report) - before == sum(images)
            repeated, reordered, cropped = (copy.deepcopy(first) for _ in range(3))
            repeated.batch_repeat_interleave(2)
            texts = [text for text in SECOND for _ in range(2)]
            assert torch.equal(second(model, repeated, texts), wanted.repeat_interleave(2, 0))
            reordered.reorder_cache(torch.tensor([1, 2, 0]))
            assert torch.equal(second(model, reordered, [SECOND[row] for row in (1, 2, 0)]), wanted[[1, 2, 0]])
            # Other text is read, and forgotten; then the last words of the prompt are, and are read again.
            second(model, cropped, THIRD)
            cropped.crop(first.get_seq_length() - cropped.get_seq_length())
            assert torch.equal(second(model, copy.deepcopy(cropped)), wanted)
            for columns, more in ((2, 2), (BEHIND, BEHIND - 2)):
                cropped.crop(-more)
                last = inputs["input_ids"][:, -columns:].tolist()
                ids = [[*words, *text] for words, text in zip(last, SECOND, strict=True)]
                assert torch.equal(second(model, copy.deepcopy(cropped), ids), wanted)
            cropped.crop(-1)
            with pytest.raises(ValueError, match="the cache was cropped so far that an image may be gone: give the"):
                second(model, cropped)


@torch.no_grad()
def test_answers_that_ended_early_are_not_read_on(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    rows = [by_hand(family, model, MIXED, row, method.picks, STEPS)[1] for row in range(3)]
    end = rows[0][0]
    lengths = [row.index(end) + 1 if end in row else STEPS for row in rows]
    assert lengths[0] == 1 and max(lengths) == STEPS
    with prune(model, method):
        options = {**GREEDY, "eos_token_id": end}
        first = model.generate(**inputs, **options, return_dict_in_generate=True)
        new, real = padded(SECOND)
        new = torch.cat([first.sequences[:, -1:], new], 1)
        still = torch.tensor([[length == STEPS] for length in lengths]).long()
        got = model.generate(
            input_ids=new,
            attention_mask=torch.cat([still, real], 1),
            past_key_values=first.past_key_values,
            **GREEDY,
        )
    for row, length in enumerate(lengths):
        _, chosen, _ = by_hand(family, model, MIXED, row, method.picks, length, said=(SECOND[row],))
        answered = got[row, new.shape[1] :].tolist()
        assert chosen == rows[row][:length] + answered[:length]
        assert answered == by_hand_after(family, model, row, method, length)


@pytest.mark.parametrize("ends", [BARRED[0], [BARRED[0], PAD]], ids=["one end", "padding ends too"])
@torch.no_grad()
def test_answers_that_a_criterion_ended_early_are_not_read_on(llava, ends):
    """What ``generate`` pads them with is nothing that was said."""
    family, model = ALL_FAMILIES["llava"], llava
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    width = inputs["input_ids"].shape[1]

    def stop(input_ids, scores):
        return torch.tensor([True, False, input_ids.shape[1] > width + 1])

    with prune(model, method):
        options = {**GREEDY, "eos_token_id": ends, "pad_token_id": PAD, "stopping_criteria": [stop]}
        first = model.generate(**inputs, **options, return_dict_in_generate=True)
        assert (first.sequences[:, width:] == PAD).tolist() == [[False, True, True], [False] * 3, [False, False, True]]
        new, real = padded(SECOND)
        new = torch.cat([first.sequences[:, -1:], new], 1)
        mask = torch.cat([torch.tensor([[0], [1], [0]]), real], 1)
        got = model.generate(input_ids=new, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
    for row, length in enumerate((1, 3, 2)):
        assert got[row, new.shape[1] :].tolist() == by_hand_after(family, model, row, method, length)


def by_hand_after(family, model, row, method, length):
    """Answer in `length` tokens, then the second text in as many as all tests do."""
    single, text = family.alone(MIXED, row), SECOND[row]
    with prune(model, one_row(method, row)):
        out = model.generate(**single, **{**GREEDY, "max_new_tokens": length}, return_dict_in_generate=True)
        ids = torch.tensor([[int(out.sequences[0, -1]), *text]])
        cache = out.past_key_values
        for token in ids[0, :-1].tolist():
            model(input_ids=torch.tensor([[token]]), past_key_values=cache)
        return decoded(model, cache, ids[:, -1:])[0].tolist()


@torch.no_grad()
def test_searches_and_samples_go_on(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    beams = {**GREEDY, "num_beams": 2}
    with prune(model, method):
        first = model(**inputs, use_cache=True).past_key_values
        new, real = padded(SECOND)
        with pytest.raises(ValueError, match=r"call batch_repeat_interleave\(2\) of the cache before"):
            second(model, copy.deepcopy(first), num_beams=2)
        repeated = copy.deepcopy(first)
        repeated.batch_repeat_interleave(2)
        got = second(model, repeated, num_beams=2)
        whole = torch.cat([inputs["input_ids"], new], 1)
        mask = torch.cat([inputs["attention_mask"], real], 1)
        pixels = pixels_of(model, inputs)
        assert torch.equal(got, model.generate(input_ids=whole, attention_mask=mask, **pixels, **beams)[:, -STEPS:])
        searched = model.generate(**inputs, **beams, return_dict_in_generate=True).past_key_values
        with pytest.raises(ValueError, match=r"the beams of a search, .*: crop\(\) the 2 tokens behind the prompt"):
            second(model, searched, [SECOND[0]] * 6)
        searched.crop(-2)
        assert torch.equal(second(model, searched, num_beams=2), got)
        # Samples have rows of their own.
        torch.manual_seed(0)
        options = {**GREEDY, "do_sample": True, "num_return_sequences": 2, "return_dict_in_generate": True}
        sampled = model.generate(**inputs, **options)
        ids = torch.cat([sampled.sequences[:, -1:], new.repeat_interleave(2, 0)], 1)
        spare = copy.deepcopy(sampled.past_key_values)
        assert model.generate(input_ids=ids, past_key_values=sampled.past_key_values, **GREEDY).shape == (6, 9)
        # No two samples of a prompt are copies, unless their answers are forgotten.
        for options in ({"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}):
            with pytest.raises(ValueError, match="2 rows of the cache as copies of one prompt, but row 1 is none of"):
                second(model, copy.deepcopy(spare), **options)
        spare.crop(-2)
        assert torch.equal(second(model, spare, num_beams=2), got)


@torch.no_grad()
def test_rows_with_other_images_or_unknown_words_are_no_copies(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs = family.prompts(((1,), (1,)))
    inputs["input_ids"] = inputs["input_ids"][:1].repeat(2, 1)
    with prune(model, UniformGrid(3)):
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="row 1 is none of row 0"):
            second(model, cache, [SECOND[0]], num_beams=2)
        cache.batch_select_indices(torch.tensor([1, 1]))
        assert second(model, copy.deepcopy(cache), [SECOND[0]], num_beams=2).shape == (1, STEPS)
        embeddings = model.get_input_embeddings()(torch.tensor([[5, 6], [7, 8]]))
        model(inputs_embeds=embeddings, past_key_values=cache)
        with pytest.raises(ValueError, match="row 1 is none of row 0"):
            second(model, cache, [SECOND[0]], num_beams=2)


@torch.no_grad()
def test_static_and_windowed_caches_go_on(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    with prune(model, method):
        wanted = second(model, generate(model, inputs).past_key_values)
        static = StaticCache(config=model.config, max_cache_len=128)
        model.generate(**inputs, **GREEDY, past_key_values=static, disable_compile=True)
        assert torch.equal(second(model, static, disable_compile=True), wanted)
    with pytest.raises(ValueError, match=REFUSED):
        second(model, static, disable_compile=True)
    family = ALL_FAMILIES["gemma3"]
    model, inputs, method = family.build(window=16), family.prompts(MIXED), ragged(family, MIXED)
    with prune(model, method):
        got = second(model, model(**inputs, use_cache=True).past_key_values)
    for row in range(3):
        with prune(model, one_row(method, row)):
            cache = model(**family.alone(MIXED, row), use_cache=True).past_key_values
            for token in SECOND[row][:-1]:
                model(input_ids=torch.tensor([[token]]), past_key_values=cache)
            assert torch.equal(decoded(model, cache, torch.tensor([[SECOND[row][-1]]]))[0], got[row])
    model = family.build(window=64)
    inputs = family.prompts(((1,),))
    padding = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0}
    wide = {
        name: torch.nn.functional.pad(value, (40, 0), value=padding[name]) if name in padding else value
        for name, value in inputs.items()
    }
    for each in (inputs, wide):
        with prune(model, ragged(family, ((1,),)), positions="keep"):
            cache = model(**each, use_cache=True).past_key_values
            assert second(model, copy.deepcopy(cache), [SECOND[0]]).shape == (1, STEPS)
            with pytest.raises(ValueError, match='positions="keep" cannot be had for 69 tokens, prompt and answer'):
                second(model, cache, [tuple(range(3, 41))])


@torch.no_grad()
def test_a_turn_that_does_not_fit_is_refused(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    new = padded(SECOND)[0]
    with prune(model, method):
        first = generate(model, inputs)
        cache, width = first.past_key_values, inputs["input_ids"].shape[1]
        before = {"sequences": first.sequences, "attention_mask": inputs["attention_mask"]}
        whole = conversation(family, inputs, before, SECOND)
        other = {**inputs, "pixel_values": inputs["pixel_values"] + 1}
        moved = torch.cat([torch.zeros(3, 1, dtype=torch.long), whole["input_ids"]], 1)
        image = torch.cat([whole["input_ids"], torch.full((3, 1), 90)], 1)
        hidden = whole["attention_mask"].clone()
        hidden[:, width - 1] = 0
        edited = whole["input_ids"].clone()
        edited[:, width] += 1
        # An answer of another length.
        shorter = torch.cat([whole["input_ids"][:, :width], whole["input_ids"][:, width + 1 :]], 1)
        at = torch.arange(new.shape[1])[None].expand(3, -1)
        cases = [
            ({"input_ids": moved}, "does not begin with the prompts that the cache was filled with, column by column"),
            ({**whole, "input_ids": edited}, "goes on from other tokens than those in the cache"),
            ({"input_ids": shorter}, "goes on from other tokens than those in the cache"),
            ({"input_ids": image}, "cannot add an image to a cache"),
            ({"input_ids": new, "pixel_values": inputs["pixel_values"]}, "cannot add an image to a cache"),
            ({**whole, **pixels_of(model, other)}, "pixel_values holds other images than those"),
            ({"input_ids": first.sequences[:, : width + 1]}, "all of which the cache holds already"),
            ({**whole, "attention_mask": hidden}, "hides other columns of the prompts than in the call"),
            ({"input_ids": new, "attention_mask": torch.ones(3, 7)}, "attention_mask has 7 columns, but the shortened"),
            ({"input_ids": new, "attention_mask": [[1] * 5] * 3}, "attention_mask must be a tensor, not a list"),
            ({"input_ids": new.tolist()}, "input_ids must be a tensor, not a list"),
            ({**whole, "pixel_values": list(inputs["pixel_values"])}, "pixel_values must be a tensor, not a list"),
            ({"input_ids": new, "question_mask": new > 0}, "question_mask can change nothing in a call that goes on"),
            ({"input_ids": new[:2]}, "the cache holds 3 pruned prompts, but 2 go on from it"),
            ({"input_ids": new, "position_ids": at}, "only model.* takes them: prune.* knows where a shortened cache"),
        ]
        for arguments, message in cases:
            length = cache.get_seq_length()
            with pytest.raises(ValueError, match=message):
                model.generate(**arguments, **GREEDY, past_key_values=cache)
            assert cache.get_seq_length() == length
        assert torch.equal(model.generate(**whole, **GREEDY, past_key_values=cache)[:, :width], inputs["input_ids"])


@torch.no_grad()
def test_new_prompt_text_of_paligemma_is_refused():
    """Its prompt would have to attend to it."""
    family = ALL_FAMILIES["paligemma"]
    model, inputs = family.build(), family.prompts(MIXED)
    with prune(model, ragged(family, MIXED)):
        first = generate(model, inputs)
        before = {"sequences": first.sequences, "attention_mask": inputs["attention_mask"]}
        whole = conversation(family, inputs, before, SECOND)
        whole["token_type_ids"] = torch.zeros_like(whole["input_ids"])
        with pytest.raises(ValueError, match="token_type_ids are 0 at new text, so the prompt in the cache would"):
            model.generate(**whole, **GREEDY, past_key_values=first.past_key_values)


@torch.no_grad()
def test_caches_that_were_not_shortened_are_left_alone(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs = family.prompts(MIXED)
    first = generate(model, inputs)
    before = {"sequences": first.sequences, "attention_mask": inputs["attention_mask"]}
    whole = conversation(family, inputs, before, SECOND)
    wanted = model.generate(**whole, **GREEDY, past_key_values=copy.deepcopy(first.past_key_values))
    with prune(model, ragged(family, MIXED)) as run:
        got = model.generate(**whole, **GREEDY, past_key_values=first.past_key_values)
        # A cache that is empty again is as good as new.
        cache = DynamicCache(config=model.config)
        model(**inputs, past_key_values=cache)
        cache.reset()
    assert torch.equal(got, wanted) and type(cache) is DynamicCache
    assert [record.source for record in run.report] == ["tower"] * 3
    again = model.generate(**inputs, **GREEDY, past_key_values=cache)
    assert torch.equal(again, first.sequences)


@torch.no_grad()
def test_a_call_that_fails_leaves_a_cache_that_knows(llava):
    family, model = ALL_FAMILIES["llava"], llava
    inputs, cache = family.prompts(MIXED), DynamicCache(config=model.config)

    def stop(input_ids, scores):
        raise RuntimeError("enough")

    with prune(model, ragged(family, MIXED)), pytest.raises(RuntimeError, match="enough"):
        model.generate(**inputs, **GREEDY, past_key_values=cache, stopping_criteria=[stop])
    assert cache.get_seq_length()
    with pytest.raises(ValueError, match=REFUSED):
        model(input_ids=torch.ones(3, 1, dtype=torch.long), past_key_values=cache)


def tower_passes(model):
    """Count passes of the vision tower from now on."""
    passes = []
    names = ("vision_tower", "image_tower", "visual", "vision_model", "audio_tower")
    tower = next(getattr(model.model, name) for name in names if hasattr(model.model, name))
    hook = tower.register_forward_hook(lambda *_: passes.append(1))
    return passes, hook


@torch.no_grad()
def test_kept_encodings_are_picked_from_anew(family, model):
    inputs, method = family.prompts(MIXED), TopK(budget=5, importance="instruction")
    later = {**inputs, "input_ids": inputs["input_ids"].clone()}
    later["input_ids"][:, -3:] = torch.tensor([[70, 71, 72]])
    passes, hook = tower_passes(model)
    try:
        with prune(model, method) as plain:
            wanted = [model.generate(**each, **GREEDY) for each in (inputs, later)]
        alone = len(passes)
        with prune(model, method, keep_encodings=1) as run:
            got = [model.generate(**each, **GREEDY) for each in (inputs, later)]
        assert len(passes) == alone + alone // 2
    finally:
        hook.remove()
    assert all(map(torch.equal, got, wanted))
    assert [record.order for record in run.report] == [record.order for record in plain.report]
    first, last = ([record.order for record in run.report if record.call == call] for call in (0, 1))
    assert first != last
    assert [record.source for record in run.report] == ["tower"] * 3 + ["kept encoding"] * 3


@torch.no_grad()
def test_encodings_are_kept_of_the_same_images_alone(llava):
    family, model = ALL_FAMILIES["llava"], llava
    one, other = (family.prompts(MIXED, seed=seed) for seed in (0, 1))

    def sources(*calls, keep=1, **options):
        with prune(model, UniformGrid(3), keep_encodings=keep) as run:
            for inputs in calls:
                model.generate(**inputs, **GREEDY, **options)
        return ["kept" if "kept" in run.report[3 * call].source else "new" for call in range(len(calls))]

    assert sources(one, one, other, one) == ["new", "kept", "new", "new"]
    assert sources(one, other, one, other, keep=2) == ["new", "new", "kept", "kept"]
    assert sources(one, one, keep=0) == ["new", "new"]
    run = prune(model, UniformGrid(3), keep_encodings=1)
    for _ in range(2):  # nothing outlives a block
        with run:
            model.generate(**one, **GREEDY)
    assert {record.source for record in run.report} == {"tower"}
    with run:
        model.generate(**one, **GREEDY)
        weight = model.model.vision_tower.embeddings.patch_embedding.weight
        weight.mul_(1.0)
        model.generate(**one, **GREEDY)
        with torch.enable_grad():
            model(**one)
    assert {record.source for record in run.report} == {"tower"}
    projector = next(p for p in model.model.multi_modal_projector.parameters() if p.ndim == 2)
    with run:
        before = len(run.report)
        model.generate(**one, **GREEDY)
        projector.data += 0.25  # which does not change the version of the weight
        model.generate(**one, **GREEDY)
        projector.data -= 0.25
    assert {record.source for record in run.report[before:]} == {"tower"}
    buffer = model.model.vision_tower.embeddings.position_ids
    tower = model.model.vision_tower

    @contextlib.contextmanager
    def training():
        tower.train()
        yield
        tower.eval()

    @contextlib.contextmanager
    def other_buffer():
        buffer.data = buffer.flip(-1)
        yield
        buffer.data = buffer.flip(-1)

    @contextlib.contextmanager
    def other_setting():
        layer, model.config.vision_feature_layer = model.config.vision_feature_layer, -1
        yield
        model.config.vision_feature_layer = layer

    for changed in (training(), other_buffer(), other_setting(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with prune(model, UniformGrid(3), keep_encodings=4) as again:
            model.generate(**one, **GREEDY)
            with changed:
                model.generate(**one, **GREEDY)
            model.generate(**one, **GREEDY)
        images = len(again.report) // 3
        sources = [record.source for record in again.report[::images]]
        assert sources == ["tower", "tower", "kept encoding"], changed
    for wrong in (-1, True, 1.5, None):
        with pytest.raises(ValueError, match="keep_encodings must be a number of calls, or 0 to keep none, not"):
            prune(model, UniformGrid(3), keep_encodings=wrong)


def test_weights_made_in_inference_mode_keep_encodings():
    family = ALL_FAMILIES["llava"]
    with torch.inference_mode():
        model, inputs = family.build(), family.prompts(MIXED)
        assert next(model.parameters()).is_inference()
        with prune(model, UniformGrid(3), keep_encodings=1) as run:
            first, again = (model.generate(**inputs, **GREEDY) for _ in range(2))
            model.model.vision_tower.embeddings.patch_embedding.weight.mul_(2.0)
            model.generate(**inputs, **GREEDY)
    assert torch.equal(first, again)
    assert [run.report[3 * call].source for call in range(3)] == ["tower", "kept encoding", "tower"]


@torch.no_grad()
def test_adapters_that_act_are_part_of_an_encoding():
    peft = pytest.importorskip("peft")
    family = ALL_FAMILIES["llava"]
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    model, inputs = peft.get_peft_model(family.build(), settings), family.prompts(MIXED)
    model.add_adapter("other", settings)
    with prune(model, UniformGrid(3), keep_encodings=1) as run:
        for _ in range(2):
            model.generate(**inputs, **GREEDY)
        with model.disable_adapter():
            model.generate(**inputs, **GREEDY)
        model.generate(**inputs, **GREEDY)
        model.set_adapter("other")
        model.generate(**inputs, **GREEDY)
    sources = [run.report[3 * call].source for call in range(5)]
    assert sources == ["tower", "kept encoding", *["tower"] * 3]
