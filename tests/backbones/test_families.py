"""prune() on every family: against no pruning at all, and against shorter sequences built by hand."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import warnings

import pytest
import torch

from idsel_core import IDSelection, TopK, adapter_for, prune
from idsel_core.backbones import BACKBONES, Encoded
from idsel_core.families import INPUT_KINDS, SPEECH
from idsel_core.methods import METHODS, InLLM
from tests.support import families
from tests.support.families import FAMILIES, OF_VIDEOS
from tests.support.family_prompts import (
    ALL,
    BARRED,
    CLOSE,
    GREEDY,
    MIXED,
    by_hand,
    layouts,
    modes,
    of_prompt,
    ragged,
    sizes,
    tokens_of,
)
from tests.support.llava_prompts import CHUNKS, Fixed, run
from tests.support.project import RECORD

SALIENT = TopK(budget=1.0, importance="saliency")
SEARCHES = {
    "sampling": {"do_sample": True},
    "beams": {"num_beams": 3},
    "several": {"num_beams": 3, "num_return_sequences": 2},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def test_every_family_is_tested():
    assert set(FAMILIES) | {"llava", "whisper"} == set(BACKBONES)


def test_what_is_known_of_families_without_their_models_is_what_these_do():
    assert set(INPUT_KINDS) == set(BACKBONES)
    assert {name for name, backbone in BACKBONES.items() if backbone.encoder_decoder} == set(SPEECH)
    of_clips = {name for name, backbone in BACKBONES.items() if "input_features" in backbone.image_inputs}
    assert {name for name, kind in INPUT_KINDS.items() if kind == "audio"} == of_clips


def test_recorded_features_are_those_of_the_tests(features):
    """All of these tests pass where this one does; so the record is true if it has what they show, and no more."""
    recorded = json.loads(RECORD.read_text())
    again = "pytest -m feature --record-families"
    for name, shown in features.items():
        assert shown <= set(recorded.get(name, {})) <= set(BACKBONES), f"write {RECORD.name} anew: {again}"
        assert set(recorded[name].values()) <= {"passed", "skipped"}, f"write {RECORD.name} anew: {again}"


@pytest.mark.fast_for(attention=["sdpa"])
@pytest.mark.feature("all kept: bit-equal")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_keeping_all_tokens_is_bit_equal_and_reversible(family, attention):
    model = family.build(attention)
    for layout in layouts(family):
        inputs = family.prompts(layout)
        plain, plain_logits = run(model, inputs, **GREEDY), model(**inputs).logits
        for positions in modes(family):
            for method in (ALL, SALIENT):
                with prune(model, method, positions):
                    pruned, pruned_logits = run(model, inputs, **GREEDY), model(**inputs).logits
                assert torch.equal(plain.sequences, pruned.sequences)
                assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
                assert torch.equal(plain_logits, pruned_logits)
        with prune(model, ragged(family, layout)):
            assert not torch.equal(run(model, inputs, **GREEDY).logits[0], plain.logits[0])
        again = run(model, inputs, **GREEDY)
        assert torch.equal(plain.sequences, again.sequences)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, again.logits, strict=True))
        assert torch.equal(model(**inputs).logits, plain_logits)


@pytest.mark.feature("all kept: bit-equal")
@pytest.mark.parametrize("search", SEARCHES)
def test_keeping_all_tokens_is_bit_equal_in_search(family, model, search):
    for layout in [((1,), (), (0,))] if family.mixes_in_search else layouts(family):
        inputs, options = family.prompts(layout), {**GREEDY, **SEARCHES[search]}
        torch.manual_seed(5)
        plain = model.generate(**inputs, **options)
        with prune(model, ALL):
            torch.manual_seed(5)
            assert torch.equal(model.generate(**inputs, **options), plain)


@pytest.mark.feature("equals shorter prompts")
@torch.no_grad()
def test_pruning_equals_a_shortened_prompt(family, model):
    for layout in layouts(family):
        inputs, method = family.prompts(layout), ragged(family, layout)
        for positions in modes(family):
            wanted = [by_hand(family, model, layout, row, method.picks, 4, positions) for row in range(len(layout))]
            with prune(model, method, positions):
                got, whole = run(model, inputs, **GREEDY), model(**inputs, use_cache=True)
            longest = max(length for *_, length in wanted)
            assert got.past_key_values.get_seq_length() == longest + 3
            assert whole.past_key_values.get_seq_length() == longest
            assert whole.logits.shape[1] == inputs["input_ids"].shape[1]
            for row, (logits, chosen, _) in enumerate(wanted):
                torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
                torch.testing.assert_close(whole.logits[row, -1], logits[0], **CLOSE)
                assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen
            assert torch.equal(got.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@torch.no_grad()
def test_manual_decoding_continues_from_the_shorter_cache(family, model):
    layout = ((1, 0),)
    method = ragged(family, layout)
    wanted = by_hand(family, model, layout, 0, method.picks, 3)[0]
    with prune(model, method):
        out = model(**family.prompts(layout), use_cache=True)
        for step in (1, 2):
            token = wanted[step - 1].clone()
            token[BARRED] = -torch.inf
            out = model(input_ids=token.argmax()[None, None], past_key_values=out.past_key_values)
            torch.testing.assert_close(out.logits[0, -1], wanted[step], **CLOSE)


@pytest.mark.feature("padded batches")
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_change_the_logits(family, model, side):
    for layout in layouts(family):
        with prune(model, IDSelection(budget=0.4, importance="unified")):
            batch = model(**family.prompts(layout, side)).logits
            for row in range(len(layout)):
                single = model(**family.alone(layout, row)).logits[0]
                at = slice(-len(single), None) if side == "left" else slice(0, len(single))
                torch.testing.assert_close(batch[row, at], single, **CLOSE)


@pytest.mark.feature("beams")
def test_beams_and_samples_do_not_mix_prompts(family, model):
    for layout in layouts(family):
        inputs, method = family.prompts(layout), ragged(family, layout)
        options = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
        with prune(model, method):
            together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for row, prompt in enumerate(layout):
            if prompt:
                single = family.alone(layout, row)
                with prune(model, Fixed(picks=of_prompt(layout, row, method.picks))):
                    got = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
                assert torch.equal(got, together[3 * row : 3 * row + 3])


@pytest.mark.feature("static cache, chunked prefill")
@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}, CHUNKS],
    ids=lambda options: next(iter(options)),
)
def test_generation_options_give_the_same_tokens(family, model, options):
    for layout in layouts(family):
        inputs = family.prompts(layout)
        if "prefill_chunk_size" in options and not family.causal:
            # In pieces, tokens miss later ones of their image, with and without pruning.
            plain = run(model, inputs, **GREEDY, **options)
            with prune(model, ALL):
                pruned = run(model, inputs, **GREEDY, **options)
            assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
            continue
        with prune(model, ragged(family, layout)):
            assert torch.equal(model.generate(**inputs, **GREEDY, **options), model.generate(**inputs, **GREEDY))


def test_prompt_lookup_equals_greedy_decoding(family, model):
    inputs = family.prompts(((1,),))
    with prune(model, ragged(family, ((1,),))):
        wanted = model.generate(**inputs, **GREEDY)
        assert torch.equal(model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=2), wanted)


def test_text_only_prompts_are_not_changed(family, model):
    inputs = family.prompts(((), ()))
    plain, logits = model.generate(**inputs, **GREEDY), model(**inputs).logits
    with prune(model, IDSelection(budget=5)) as run_:
        assert torch.equal(model.generate(**inputs, **GREEDY), plain)
        assert torch.equal(model(**inputs).logits, logits)
    assert run_.report == []


def test_budget_shares_count_the_tokens_of_each_image(family, model):
    for layout in layouts(family):
        for share in (0.05, 0.5):
            with prune(model, IDSelection(budget=share)) as run_, torch.no_grad():
                model(**family.prompts(layout))
            assert [r.before for r in run_.report] == [family.counts[size] for size in sizes(layout)]
            assert [r.after for r in run_.report] == [max(1, int(share * r.before + 0.5)) for r in run_.report]


@pytest.mark.feature("methods")
@pytest.mark.parametrize("name", METHODS)
def test_each_method_prunes_or_is_refused(family, model, name):
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    knobs = {
        "attention": "cls" if family.has_cls else "received",
        "importance": "unified",
        "budget_convention": "final",
    }
    knobs = {knob: value for knob, value in knobs.items() if knob in known}
    # Smaller images keep their shape, so that few budgets can be met.
    budget = 4 if name == "downsample" else 7
    inputs, method = family.prompts(MIXED), METHODS[name](budget, **knobs)
    if name in family.refused:
        with pytest.raises(ValueError, match=re.escape(family.refused[name])), prune(model, method):
            model.generate(**inputs, **GREEDY)
        return
    with prune(model, method) as run_:
        out = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    after = [r.after for r in run_.report]
    if method.shares_budget:
        assert sum(after) == 3 * budget
        return
    assert after == [budget] * 3
    assert all(len(r.drops) == len(method.drop_layers(3)) for r in run_.report if isinstance(method, InLLM))
    text = (inputs["input_ids"] > 0) & ~torch.isin(inputs["input_ids"], torch.tensor(BARRED))
    longest = int((text.sum(1) + budget * torch.tensor([1, 0, 2])).max()) + 3
    assert out.past_key_values.get_seq_length(2) == longest


@pytest.mark.parametrize("name", OF_VIDEOS)
def test_video_methods_prune_videos(family, model, name):
    if -1 not in family.counts:
        pytest.skip("no videos")
    known = METHODS[name].__dataclass_fields__
    knobs = {"attention": "cls" if family.has_cls else "received"} if "attention" in known else {}
    for budget in (2, 7, 1.0):
        with prune(model, METHODS[name](budget, **knobs)) as run_, torch.no_grad():
            out = model(**family.prompts(((-1,), (-2,)))).logits
        wanted = [family.counts[size] if budget == 1.0 else budget for size in (-1, -2)]
        assert [r.after for r in run_.report] == wanted and bool(out.isfinite().all())
        if budget == 1.0:
            with torch.no_grad():
                assert torch.equal(out, model(**family.prompts(((-1,), (-2,)))).logits)


@torch.no_grad()
def test_projecting_encoder_features_gives_the_features(family, model):
    for layout in layouts(family):
        _, encoded, tokens = tokens_of(family, model, layout)
        again = tokens.project(encoded.encoder_features)
        torch.testing.assert_close(again[tokens.mask], tokens.features[tokens.mask], **CLOSE)


@torch.no_grad()
def test_instruction_attention_equals_eager_attention(family, model):
    eager = family.build("eager")
    for layout in [((1,), (0,)), ((-1,),)][: len(layouts(family))]:
        for layer in (0, 1):
            inputs, encoded, tokens = tokens_of(family, model, layout)
            images = torch.isin(inputs["input_ids"], torch.tensor(BARRED))
            after = (inputs["input_ids"] != families.PAD) & (images.flip(1).long().cumsum(1).flip(1) == 0)
            tokens = adapter_for(model).visual_tokens(
                encoded, inputs["input_ids"], inputs["attention_mask"], question_mask=after
            )
            for row in range(len(layout)):
                single = family.alone(layout, row)
                heads = eager(**single, output_attentions=True).attentions[layer][0]
                columns = torch.isin(single["input_ids"][0], torch.tensor(BARRED)).nonzero()[:, 0]
                for which, first in (("words", int(columns[-1]) + 1), ("last", heads.shape[1] - 1))[: 1 + layer]:
                    wanted = heads[:, first:][..., columns]
                    wanted = (wanted / wanted.sum(-1, keepdim=True)).mean((0, 1))
                    got = tokens.with_instruction(layer, which).instruction_attention[row, : len(columns)]
                    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-3)


@torch.no_grad()
def test_stored_encodings_give_the_same_selection(family, model):
    for layout in layouts(family):
        inputs, encoded, tokens = tokens_of(family, model, layout)
        method = IDSelection(budget=5, importance="unified")
        stored = Encoded.from_tensors(encoded.tensors())
        again = adapter_for(model).visual_tokens(stored, inputs["input_ids"], inputs["attention_mask"])
        assert torch.equal(method.select(again).order, method.select(tokens).order)
        with prune(model, method) as run_:
            model(**inputs)
        assert [r.order for r in run_.report] == method.select(tokens).order.tolist()
        last = torch.tensor([len(encoded) - 1])
        assert torch.equal(encoded.take(last).placeholders, encoded.placeholders[last])


@pytest.mark.feature("labels, gradients")
def test_labels_are_shortened_and_gradients_flow(family, model):
    inputs = family.prompts(MIXED)
    labels = inputs["input_ids"].masked_fill(torch.isin(inputs["input_ids"], torch.tensor([0, *BARRED])), -100)
    with prune(model, ragged(family, MIXED)):
        out = model(**inputs, labels=labels)
    out.loss.backward()
    weight = model.get_input_embeddings().weight
    assert torch.isfinite(weight.grad).all() and weight.grad.any()
    assert any(
        p.grad is not None and p.grad.any()
        for n, p in model.named_parameters()
        if any(part in n for part in ("vision", "visual", "_tower"))
    )
    model.zero_grad()


@pytest.mark.feature("bfloat16")
@torch.no_grad()
def test_half_precision_runs(family, model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    for layout in layouts(family):
        with warnings.catch_warnings(), prune(half, IDSelection(budget=6, features="encoder")) as run_:
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "the chat template of this model is not known")
            assert half(**family.prompts(layout)).logits.dtype == torch.bfloat16
        assert {r.after for r in run_.report} == {6}


def test_mismatched_inputs_are_refused(family, model):
    inputs = family.prompts(((1,),))
    images = set(adapter_for(model).image_inputs)
    with prune(model, ALL):
        wanted = " or ".join(adapter_for(model).pixel_inputs)
        with pytest.raises(ValueError, match=f"image placeholders, but there are no {wanted}"):
            model(**{name: value for name, value in inputs.items() if name not in images})
        ids = inputs["input_ids"].clone()
        ids[ids == families.IMAGE] = torch.tensor([families.IMAGE, *[5] * (family.counts[1] - 1)])
        with pytest.raises(ValueError, match=r"the prompts hold 1 image placeholders .* the \d image\(s\) fill"):
            model(**{**inputs, "input_ids": ids})
    for layout in (((1,),), ((0, 1),), ((-1,),))[: 3 if -1 in family.counts else 2]:
        inputs = family.prompts(layout)
        columns = torch.isin(inputs["input_ids"][0], torch.tensor(BARRED)).nonzero()[:, 0]
        width = inputs["input_ids"].shape[1]
        for kept in (slice(None, int(columns[-1]) - 1), slice(int(columns[0]) + 2, None)):
            cut = {k: v[:, kept] if v.shape == (1, width) else v for k, v in inputs.items()}
            with prune(model, ALL), pytest.raises(ValueError, match=r"truncated\? Leave out truncation and max_length"):
                model.generate(**cut, **GREEDY)
            with prune(model, ALL), pytest.raises(ValueError, match=r"truncated\? Leave out truncation and max_length"):
                model(**cut)
    if family.axes > 1:
        with pytest.raises(ValueError, match=r'positions="compact" cannot be had: .* have 3 axes'):
            prune(model, ALL, positions="compact")
