"""prune() on Whisper, an encoder-decoder: against no pruning, and against tokens that were cut by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
import threading

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from idsel_core import DiversityOnly, IDSelection, Random, TopK, UniformGrid, adapter_for, prune
from idsel_core.methods import METHODS
from idsel_core.pruning.cross_attention import CrossAttention
from tests.support import tiny_whisper as tiny
from tests.support.families import WHISPER
from tests.support.llava_prompts import Fixed

ALL = UniformGrid(budget=1.0)
CLOSE = {"atol": 3e-5, "rtol": 1e-4}
PICKS = ((3, 17, 8), (40, 1, 22, 9, 30), (34, 0))
RAGGED = Fixed(picks=PICKS)


@pytest.fixture(params=["whisper"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model():
    return tiny.build()


@pytest.fixture(scope="module")
def inputs():
    return tiny.clips()


def states_of(model, inputs):
    with torch.no_grad():
        return model.model.encoder(inputs["input_features"]).last_hidden_state


def cut(states, picks, own, silence="thinned"):
    """Return one clip's tokens and its silence by the formula: as large a share of it, evenly spaced."""
    silent = len(states) - own
    kept = {"thinned": int(silent * len(picks) / own + 0.5), "kept": silent, "dropped": 0}[silence]
    places = [own + int((place + 0.5) * silent / kept) for place in range(kept)]
    return states[sorted(picks) + places][None]


def decoded(model, states, ids, steps):
    """Return logits of each step, and what is chosen, of a plain model that reads these tokens of one clip."""
    ids, logits = list(ids), []
    for _ in range(steps):
        output = model(encoder_outputs=BaseModelOutput(last_hidden_state=states), decoder_input_ids=torch.tensor([ids]))
        logits.append(output.logits[0, -1])
        allowed = logits[-1].clone()
        allowed[tiny.END] = -torch.inf
        ids.append(int(allowed.argmax()))
    return torch.stack(logits), ids[len(ids) - steps :]


@pytest.mark.feature("all kept: bit-equal")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}, {"do_sample": True}],
    ids=["greedy", "beams", "several", "no cache", "sampling"],
)
def test_keeping_all_tokens_is_bit_equal_and_reversible(family, attention, options, inputs):
    model, ids = tiny.build(attention), torch.tensor([tiny.IDS] * 3)
    options = {**tiny.GREEDY, **options}

    def answers():
        torch.manual_seed(5)
        with torch.no_grad():
            return model.generate(**inputs, **options), model(**inputs, decoder_input_ids=ids).logits

    plain = answers()
    for method in (ALL, TopK(budget=1.0, importance="saliency"), IDSelection(budget=500)):
        with prune(model, method) as run:
            pruned = answers()
        assert [(r.before, r.after) for r in run.report] == [(n, n) for n in tiny.TOKENS] * 2
        assert all(torch.equal(a, b) for a, b in zip(plain, pruned, strict=True))
    with prune(model, UniformGrid(budget=2)):
        assert not torch.equal(answers()[1], plain[1])
    assert all(torch.equal(a, b) for a, b in zip(plain, answers(), strict=True))


@pytest.mark.feature("equals shorter prompts")
@pytest.mark.parametrize("silence", ["thinned", "kept", "dropped"])
@torch.no_grad()
def test_pruning_equals_tokens_that_were_cut_by_hand(family, model, inputs, silence):
    states, start = states_of(model, inputs), [tiny.START, tiny.NO_TIMES]
    with prune(model, RAGGED) as run:
        run.backbone.silence = silence
        got = model.generate(**inputs, **tiny.GREEDY, return_dict_in_generate=True, output_logits=True)
        whole = model(**inputs, decoder_input_ids=torch.tensor([start] * 3), use_cache=False).logits
    assert [r.after for r in run.report] == [3, 5, 2] * 2
    assert [r.order for r in run.report[:3]] == [list(picks) for picks in PICKS]
    for row, picks in enumerate(PICKS):
        hand = cut(states[row], picks, tiny.TOKENS[row], silence)
        logits, chosen = decoded(model, hand, start, 6)
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
        assert got.sequences[row, -6:].tolist() == chosen
        torch.testing.assert_close(whole[row, -1], logits[0], **CLOSE)


@pytest.mark.feature("padded batches")
@pytest.mark.feature("beams")
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_clips_of_a_batch_do_not_influence_each_other(family, inputs, options, attention):
    model = tiny.build(attention)
    with prune(model, IDSelection(budget=0.3)) as run:
        together = model.generate(**inputs, **tiny.GREEDY, **options)
        picks = [r.order for r in run.report]
        for row in range(3):
            single = model.generate(**tiny.row(inputs, row), **tiny.GREEDY, **options)
            assert torch.equal(single, together[row : row + 1])
    assert [r.order for r in run.report[3:]] == picks


def test_silence_behind_a_clip_is_thinned_evenly(model, inputs):
    """Every share of the silence is spread over all of it, at most one token away from the share."""
    backbone = adapter_for(model)
    for own in (1, 7, 21, 49, 50):
        for kept in range(1, own + 1):
            places = backbone._silent(50 - own, kept, own).tolist()
            assert len(places) == int((50 - own) * kept / own + 0.5)
            assert places == sorted(set(places)) and all(0 <= place < 50 - own for place in places)
            gaps = [b - a for a, b in itertools.pairwise(places)]
            assert not gaps or max(gaps) - min(gaps) <= 1
    backbone.silence = "muted"
    encoded = backbone.encode(**inputs)
    with pytest.raises(ValueError, match="silence must be one of thinned, kept, dropped, not 'muted'"):
        backbone.cross_attended(encoded, ALL.select(backbone.visual_tokens(encoded, torch.tensor([tiny.IDS] * 3))))


def test_a_share_counts_the_clip_s_own_tokens_and_no_method_takes_silence(model, inputs):
    for method in (IDSelection(0.5), TopK(0.5), DiversityOnly(0.5), Random(0.5), UniformGrid(0.5)):
        with prune(model, method) as run:
            model.generate(**inputs, **tiny.GREEDY)
        assert [(r.before, r.after) for r in run.report] == [(21, 11), (50, 25), (35, 18)]
        assert all(max(r.indices) < r.before for r in run.report)


@torch.no_grad()
def test_saliency_is_the_attention_that_a_token_receives_from_its_clip(model, inputs):
    backbone = adapter_for(model)
    encoded = backbone.encode(**inputs, tower_depths=(0.0,))
    tokens = backbone.visual_tokens(encoded, torch.tensor([tiny.IDS] * 3))
    heads = tiny.build("eager").model.encoder(inputs["input_features"], output_attentions=True).attentions
    for view, layer in ((tokens.saliency, 2), (tokens.at_depth("received_attention", 0.0), 0)):
        for clip, own in enumerate(tiny.TOKENS):
            wanted = heads[layer][clip, :, :own, :own].mean((0, 1))
            torch.testing.assert_close(view[clip, :own], wanted, atol=1e-6, rtol=1e-4)
    assert tokens.keys.shape == (3, 50, 4, 8) and encoded.grid[0, 20].tolist() == [0, 20]


@pytest.mark.feature("question")
@torch.no_grad()
def test_instruction_is_the_cross_attention_of_what_the_decoder_starts_with(family, model, inputs):
    backbone, eager = adapter_for(model), tiny.build("eager")
    encoded = backbone.encode(**inputs)
    ids = torch.tensor([tiny.IDS, [tiny.START, 7, 9], [tiny.START, 5, 0]])
    real = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    tokens = backbone.visual_tokens(encoded, ids, real)
    for layer in (0, 1):
        for clip, own in enumerate(tiny.TOKENS):
            length = int(real[clip].sum())
            heads = eager(
                input_features=inputs["input_features"][clip : clip + 1],
                decoder_input_ids=ids[clip : clip + 1, :length],
                output_attentions=True,
            ).cross_attentions[layer][0]
            for which, first in (("words", 0), ("last", length - 1))[: 1 + layer]:
                rows = heads[:, first:length, :own]
                wanted = (rows / rows.sum(-1, keepdim=True)).mean((0, 1))
                got = tokens.with_instruction(layer, which).instruction_attention[clip, :own]
                torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-3)
    with pytest.raises(ValueError, match="instruction layer 2 does not exist; the decoder has 2"):
        tokens.with_instruction(2).instruction_attention  # noqa: B018


def test_generate_selects_for_the_tokens_that_it_starts_with(model, inputs):
    """The last selection of a call is the one that its answer was decoded with."""
    backbone, method = adapter_for(model), TopK(5, importance="instruction")
    encoded = backbone.encode(**inputs)
    wanted = method.select(backbone.visual_tokens(encoded, torch.tensor([[tiny.START, tiny.NO_TIMES]] * 3))).order
    other = method.select(backbone.visual_tokens(encoded, torch.tensor([[tiny.START, 3, 9]] * 3))).order
    assert not torch.equal(wanted, other)
    with prune(model, method) as run:
        model.generate(**inputs, **tiny.GREEDY)
        model(**inputs, decoder_input_ids=torch.tensor([[tiny.START, 3, 9]] * 3))
    assert [r.order for r in run.report] == [*wanted.tolist(), *other.tolist()]


def test_the_language_is_detected_from_the_selected_tokens(model, inputs):
    """Detection reads the clips before the decoder's start is known; the report holds what the answer was made of."""
    model = copy.deepcopy(model)
    settings = model.generation_config
    settings.is_multilingual, settings.lang_to_id = True, {"<|en|>": 51, "<|de|>": 52}
    settings.task_to_id = {"transcribe": 53, "translate": 54}
    plain = model.generate(**inputs, **tiny.GREEDY)
    with prune(model, ALL):
        assert torch.equal(model.generate(**inputs, **tiny.GREEDY), plain)
    with prune(model, IDSelection(4)) as run:
        model.generate(**inputs, **tiny.GREEDY)
    assert [r.call for r in run.report] == [0, 0, 0] and [r.after for r in run.report] == [4, 4, 4]


@pytest.mark.feature("methods")
@pytest.mark.parametrize("name", METHODS)
def test_each_method_prunes_or_is_refused(family, model, inputs, name):
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    knobs = {"attention": "received"} if "attention" in known else {}
    method = METHODS[name](7, **knobs)
    if name in WHISPER.refused:
        with pytest.raises(ValueError, match=re.escape(WHISPER.refused[name])), prune(model, method):
            model.generate(**inputs, **tiny.GREEDY)
        return
    with prune(model, method) as run:
        model.generate(**inputs, **tiny.GREEDY)
    after = [r.after for r in run.report]
    assert sum(after) == 21 if method.shares_budget else after == [7] * 3


@pytest.mark.feature("bfloat16")
@torch.no_grad()
def test_half_precision_runs(family, model, inputs):
    half = copy.deepcopy(model).to(torch.bfloat16)
    given = {**inputs, "input_features": inputs["input_features"].bfloat16()}
    with prune(half, IDSelection(budget=0.3)) as run:
        logits = half(**given, decoder_input_ids=torch.tensor([tiny.IDS] * 3), use_cache=False).logits
    assert logits.dtype == torch.bfloat16 and bool(logits.isfinite().all())
    assert [r.after for r in run.report] == [6, 15, 11]


@pytest.mark.feature("labels, gradients")
def test_labels_and_gradients_work(family, model, inputs):
    labels = torch.tensor([[3, 4, 9]] * 3)
    with prune(model, UniformGrid(4)):
        model(**inputs, labels=labels).loss.backward()
    for weight in (model.model.encoder.conv1.weight, model.model.decoder.embed_tokens.weight):
        assert weight.grad is not None and bool(weight.grad.isfinite().all()) and bool(weight.grad.any())
    model.zero_grad()


@pytest.mark.feature("leaves no trace")
def test_pruning_leaves_no_trace(family, model, inputs):
    def state():
        hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), m.__dict__.get("config")) for m in model.modules()]
        return hooks, [vars(part).get("forward") for part in (model, model.model, model.model.encoder)]

    before = state()
    for method in (UniformGrid(4), METHODS["evs"](4)):
        with pytest.raises((KeyError, ValueError)), prune(model, method):
            model.generate(**inputs, **tiny.GREEDY)
            raise KeyError
        assert state() == before


@pytest.mark.feature("every entrance prunes")
@torch.no_grad()
def test_every_entrance_prunes(family, model, inputs):
    ids = torch.tensor([tiny.IDS] * 3)
    with prune(model, UniformGrid(4)) as run:
        model.generate(inputs["input_features"], attention_mask=inputs["attention_mask"], **tiny.GREEDY)
        logits = model(**inputs, decoder_input_ids=ids).logits
        hidden = model.model(**inputs, decoder_input_ids=ids).last_hidden_state
    assert [r.after for r in run.report] == [4] * 9
    torch.testing.assert_close(model.proj_out(hidden), logits)


@torch.no_grad()
def test_decoding_by_hand_goes_on_from_the_shorter_cache(model, inputs):
    """A filled cache decides what is read, inside a block and after it."""
    single, picks = tiny.row(inputs, 0), PICKS[0]
    wanted, chosen = decoded(model, cut(states_of(model, single)[0], picks, 21), tiny.IDS, 3)
    with prune(model, Fixed(picks=(picks,))) as run:
        out = model(**single, decoder_input_ids=torch.tensor([tiny.IDS]))
        assert out.past_key_values.cross_attention_cache.get_seq_length() == 3 + int(29 * 3 / 21 + 0.5)
        step = {**single, "past_key_values": out.past_key_values}
        out = model(**step, decoder_input_ids=torch.tensor([chosen[:1]]))
        torch.testing.assert_close(out.logits[0, -1], wanted[1], **CLOSE)
    out = model(**step, decoder_input_ids=torch.tensor([chosen[1:2]]))
    torch.testing.assert_close(out.logits[0, -1], wanted[2], **CLOSE)
    assert len(run.report) == 1


def test_encodings_are_kept(model, inputs):
    with prune(model, IDSelection(5), keep_encodings=1) as run:
        first, again = (model.generate(**inputs, **tiny.GREEDY) for _ in range(2))
    assert torch.equal(first, again)
    assert [r.source for r in run.report] == ["tower"] * 3 + ["kept encoding"] * 3


@pytest.mark.feature("copies are plain models")
def test_copies_are_plain_models(family, model, inputs):
    plain = model.generate(**inputs, **tiny.GREEDY)
    with prune(model, UniformGrid(2)):
        copied = copy.deepcopy(model)
        pruned = model.generate(**inputs, **tiny.GREEDY)
        assert torch.equal(copied.generate(**inputs, **tiny.GREEDY), plain)
    assert not torch.equal(pruned, plain)


@pytest.mark.feature("threads")
def test_threads_keep_their_own_blocks(family, model, inputs):
    wanted, got = {}, {}

    def answer(into, budget):
        with prune(model, UniformGrid(budget)) as run:
            into[budget] = model.generate(**inputs, **tiny.GREEDY), [r.after for r in run.report]

    for budget in (2, 9, 20):
        answer(wanted, budget)
    threads = [threading.Thread(target=answer, args=(got, budget)) for budget in (2, 9, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for budget, (sequences, after) in wanted.items():
        assert torch.equal(got[budget][0], sequences) and got[budget][1] == after


def test_what_cannot_be_pruned_is_refused_with_a_reason(model, inputs):
    ids = torch.tensor([tiny.IDS] * 3)
    spectra = inputs["input_features"]
    refused = [
        ({"input_features": spectra}, "a clip needs attention_mask, .* return_attention_mask=True"),
        ({**inputs, "attention_mask": inputs["attention_mask"][:, :50]}, r"attention_mask must be \(3, 100\)"),
        ({**inputs, "attention_mask": inputs["attention_mask"].flip(1)}, "clips begin at step 0"),
        ({**inputs, "attention_mask": 0 * inputs["attention_mask"]}, "audio clip 0 is empty"),
        ({**inputs, "return_timestamps": True}, "return_timestamps tells the time by the places of all tokens"),
        ({**inputs, "cache_implementation": "static"}, "prune.. cannot fill a static cache"),
        ({**inputs, "question_mask": ids}, "question_mask marks words of a prompt, which this encoder-decoder has not"),
        ({"encoder_outputs": (states_of(model, inputs),)}, "give input_features instead of encoder_outputs"),
        (
            {"input_features": torch.cat([spectra] * 2, 2), "attention_mask": torch.ones(3, 200)},
            "input_features have 200 steps, but prune.. reads one window of 100",
        ),
    ]
    for given, why in refused:
        with prune(model, UniformGrid(0.5)), pytest.raises(ValueError, match=why):
            model.generate(**given, **tiny.GREEDY)
    with prune(model, UniformGrid(0.5)):
        with pytest.raises(ValueError, match="nothing can go on from a cache of them: give use_cache=False"):
            model(**inputs, decoder_input_ids=ids, use_cache=True)
        assert model(**inputs, decoder_input_ids=ids).past_key_values is None
        with pytest.raises(ValueError, match="decoder_input_ids, not as embeddings"):
            model(**inputs, decoder_inputs_embeds=torch.zeros(3, 2, 32))
    for positions in ("compact", "other"):
        with pytest.raises(ValueError, match=f"positions='{positions}' cannot be had"):
            prune(model, ALL, positions=positions)
    assert prune(model, ALL, positions="keep").positions == "keep"


def test_clips_that_are_read_anew_are_refused(model, inputs):
    """As generate() does with the parts that a fallback of the temperature repeats."""
    backbone = adapter_for(model)
    encoded = backbone.encode(**inputs)
    crossing = CrossAttention(backbone, ALL, encoded, inputs["input_features"])
    with crossing.reading():
        for other in (inputs["input_features"][:2], inputs["input_features"].flip(0)):
            with pytest.raises(ValueError, match="reads parts of the clips anew"):
                model.model.encoder(other)


def test_spec_augment_is_refused(model, inputs):
    model = copy.deepcopy(model).train()
    model.config.apply_spec_augment = True
    with prune(model, ALL), pytest.raises(ValueError, match=r"SpecAugment.* set apply_spec_augment=False"):
        model(**inputs, labels=torch.tensor([[3, 4]] * 3))


def test_a_decoder_alone_is_refused():
    from transformers import WhisperForCausalLM

    config = copy.deepcopy(tiny.build().config)
    with pytest.raises(ValueError, match="WhisperForCausalLM has no encoder: give a WhisperForConditionalGeneration"):
        adapter_for(WhisperForCausalLM(config))
