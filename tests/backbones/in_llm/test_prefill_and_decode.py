"""Prefill and decoding with drops inside the language model, against a decoder built by hand."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from transformers import StaticCache

from idsel_core import UniformGrid, adapter_for, prune
from idsel_core.backbones._shared.qk_capture import attention_modules, capture_qk
from idsel_core.methods import DART, FastV, PyramidDrop, SparseVLM, VScan
from idsel_core.methods._shared.in_llm import LayerTokens
from idsel_core.selection.result import Selection
from tests.support import in_llm_reference as reference
from tests.support import tiny
from tests.support.images import batch, image
from tests.support.in_llm import DEPTH, METHODS_INSIDE, close, embedded, layers_of, positions, read_alone, rule_of
from tests.support.llava_prompts import GREEDY, LAYOUTS, run


def test_reference_decoder_equals_the_model(model, decoder):
    inputs = tiny.prompts((2,))
    embeddings, images = embedded(model, inputs)
    with torch.no_grad():
        close(model(**inputs).logits[0], decoder.read(embeddings, images).logits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_prefill_and_each_step_equal_the_reference_decoder(model, decoder, method, layout):
    inputs = tiny.prompts(layout)
    width = inputs["input_ids"].shape[1]
    with prune(model, method) as run_, torch.no_grad():
        got, whole = run(model, inputs), model(**inputs, position_ids=positions(inputs), use_cache=True)
    reads = [read_alone(model, decoder, method, tiny.alone(inputs, layout, row)) for row in range(len(layout))]
    # The longest prompt decides how long a layer's cache is.
    lengths = [max(read.cache[layer][0].shape[1] for read in reads) for layer in range(DEPTH)]
    assert [whole.past_key_values.get_seq_length(layer) for layer in range(DEPTH)] == lengths
    assert [got.past_key_values.get_seq_length(layer) for layer in range(DEPTH)] == [n + 4 for n in lengths]
    assert whole.logits.shape[1] == lengths[-1]
    assert (lengths[0] == width) == all(record.layers[0] == tiny.TOKENS for record in run_.report)
    images = iter(run_.report)
    for row, read in enumerate(reads):
        close(whole.logits[row, -len(read.logits) :], read.logits)
        close(got.logits[0][row], read.logits[-1])
        for step, token in enumerate(got.sequences[row, width:-1].tolist()):
            logits = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
            close(got.logits[step + 1][row], logits)
        for kept in read.kept:
            record = next(images)
            assert [drop.indices for drop in record.drops] == kept
            assert record.indices == kept[-1] == sorted(record.order)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_padding_does_not_change_the_logits(model, method, side):
    layout = (2, 0, 1)
    inputs = tiny.prompts(layout, side)
    with prune(model, method), torch.no_grad():
        together = model(**inputs, position_ids=positions(inputs)).logits
        for row in range(len(layout)):
            single = model(**tiny.alone(inputs, layout, row)).logits[0]
            at = slice(-len(single), None) if side == "left" else slice(0, len(single))
            torch.testing.assert_close(together[row, at], single, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method",
    [FastV(1.0), SparseVLM(1.0), PyramidDrop(1.0), DART(1.0), VScan(1.0), VScan(36, budget_convention="final")],
    ids=lambda m: m.name,
)
def test_keeping_all_tokens_is_bit_equal(method, attention):
    model, inputs = tiny.build(attention=attention, layers=DEPTH), tiny.prompts((1, 0, 2))
    plain, plain_logits = run(model, inputs), model(**inputs).logits
    with prune(model, method) as run_:
        pruned, pruned_logits = run(model, inputs), model(**inputs).logits
    assert torch.equal(plain.sequences, pruned.sequences) and torch.equal(plain_logits, pruned_logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    assert all(r.layers == [36] * DEPTH and r.indices == list(range(36)) for r in run_.report)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_eager_attention_gives_the_same_drops_and_logits(model, method):
    inputs = tiny.prompts((1, 2))
    eager = tiny.build(attention="eager", layers=DEPTH)
    results = []
    for one in (model, eager):
        with prune(one, method) as run_:
            results.append((run(one, inputs), run_.report))
    (sdpa, report), (other, other_report) = results
    assert [r.drops for r in report] == [r.drops for r in other_report]
    torch.testing.assert_close(torch.stack(sdpa.logits), torch.stack(other.logits), atol=5e-5, rtol=1e-4)


def test_captured_attention_rows_equal_eager_attention():
    model, inputs = tiny.build(attention="eager", layers=DEPTH), tiny.prompts((1, 2))
    sdpa = tiny.build(layers=DEPTH)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    backbone = adapter_for(sdpa)
    tokens = backbone.visual_tokens(
        backbone.encode(inputs["pixel_values"]), inputs["input_ids"], inputs["attention_mask"]
    )
    slots = [(row, (inputs["input_ids"][row] == tiny.IMAGE).nonzero()[:, 0]) for row in range(2)]
    columns = torch.stack([part for _, all_ in slots for part in all_.split(36)])
    rows, real = torch.tensor([0, 1, 1]), inputs["attention_mask"].bool()
    query_tokens = torch.zeros_like(real)
    query_tokens[:, -3:] = True
    assert len(tokens) == 3
    for layer in range(DEPTH):
        with capture_qk(attention_modules(sdpa.model.language_model)[layer]) as seen, torch.no_grad():
            sdpa(**inputs)
        query, key, scale = seen.tensors()
        one = LayerTokens(
            states=torch.zeros(3, real.shape[1], 1),
            columns=columns,
            real=real[rows],
            text=real[rows],
            query_tokens=query_tokens[rows],
            read=lambda found=(query[rows], key[rows], scale): found,
        )
        wanted = maps[layer][rows][:, :, -3:].mean((1, 2)).gather(1, columns)
        torch.testing.assert_close(one.attention, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_beams_and_samples_do_not_mix_prompts(model, method):
    layout = (2, 1, 0)
    inputs = tiny.prompts(layout)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    with prune(model, method) as run_:
        together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        sampled = model.generate(**inputs, **{**GREEDY, "do_sample": True, "num_return_sequences": 2})
        greedy = model.generate(**inputs, **GREEDY)
        for row in range(len(layout)):
            single = tiny.alone(inputs, layout, row)
            got = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
            assert torch.equal(got, together[3 * row : 3 * row + 3])
            torch.manual_seed(4)
            many = model.generate(**single, **{**GREEDY, "do_sample": True, "num_return_sequences": 64, "top_k": 2})
            alone = model.generate(**single, **GREEDY)
            first = {row[0] for row in many[:, single["input_ids"].shape[1] :].tolist()}
            assert alone[0, single["input_ids"].shape[1]].item() in first and len(first) <= 2
            assert torch.equal(alone[0, -5:], greedy[row, -5:])
    assert sampled.shape == (6, inputs["input_ids"].shape[1] + 5)
    by_image: dict[int, set] = {}
    for record in run_.report[:9]:
        by_image.setdefault(record.image, set()).add(str(record.drops))
    assert all(len(drops) == 1 for drops in by_image.values())


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_beam_scores_equal_the_log_likelihoods_of_their_sequences(model, decoder, method):
    """Each beam's score is the sum of what a pass over its own tokens gives, so caches were not mixed up."""
    inputs = tiny.prompts((1,))
    options = {**GREEDY, "num_beams": 4, "num_return_sequences": 4, "suppress_tokens": None}
    with prune(model, method):
        out = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True, length_penalty=0.0)
    for sequence, score in zip(out.sequences[:, inputs["input_ids"].shape[1] :], out.sequences_scores, strict=True):
        read = read_alone(model, decoder, method, inputs)
        logits, total = read.logits[-1], 0.0
        for token in sequence.tolist():
            total += math.log(reference.softmax(logits)[token])
            logits = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        assert float(score) == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_prompt_lookup_equals_greedy_decoding(model, method):
    inputs = tiny.prompts((1,))
    # A prompt that repeats itself, so that there are candidates already when the prompt is read.
    tail = torch.tensor([[11, 12, 13, 14, 11, 12]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with prune(model, method) as run_:
        wanted = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 12})
        got = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 12}, prompt_lookup_num_tokens=3)
    assert torch.equal(got, wanted)
    assert run_.report[0].drops == run_.report[1].drops


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_manual_decoding_continues_from_the_shorter_cache(model, decoder, method):
    inputs = tiny.prompts((1,))
    read = read_alone(model, decoder, method, inputs)
    tokens = [7, 9, 23, 8]
    with prune(model, method), torch.no_grad():
        out = model(**inputs, use_cache=True)
        kept = copy.deepcopy(out.past_key_values)
        steps = [
            model(input_ids=torch.tensor([[t]]), past_key_values=out.past_key_values).logits[0, -1] for t in tokens
        ]
        at_once = model(input_ids=torch.tensor([tokens]), past_key_values=kept).logits[0]
        with prune(model, UniformGrid(9)):
            model(input_ids=torch.tensor([[3]]), past_key_values=kept)
        two = torch.tensor([[3], [3]])
        with pytest.raises(ValueError, match="the cache holds 1 pruned prompts, but 2 go on from it"):
            model(input_ids=two, past_key_values=kept)
        kept.batch_repeat_interleave(2)
        copies = model(input_ids=two, past_key_values=kept).logits
        torch.testing.assert_close(copies[0], copies[1])
    for token, step, once in zip(tokens, steps, at_once, strict=True):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(step, wanted)
        close(once, wanted)


def test_manual_decoding_of_a_padded_batch_takes_the_mask_of_the_full_prompts(model):
    inputs, method = tiny.prompts((1, 2)), SparseVLM(24)
    token = torch.tensor([[7], [9]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with prune(model, method), torch.no_grad():
        out = model(**inputs, position_ids=positions(inputs), use_cache=True)
        where = {"attention_mask": mask, "position_ids": inputs["attention_mask"].sum(1, keepdim=True)}
        step = model(input_ids=token, past_key_values=out.past_key_values, **where).logits
        for row in range(2):
            single = model(**tiny.alone(inputs, (1, 2), row), use_cache=True)
            alone = model(input_ids=token[row : row + 1], past_key_values=single.past_key_values).logits[0]
            torch.testing.assert_close(step[row], alone, atol=5e-5, rtol=1e-4)
        # A later token that the mask hides is not seen.
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        where["position_ids"] = where["position_ids"] + 1
        results = []
        for hidden in (False, True):
            for other in (11, 12):
                now = copy.deepcopy(out.past_key_values)
                now.crop(-1)
                model(
                    input_ids=torch.tensor([[other], [9]]),
                    past_key_values=now,
                    **{**where, "attention_mask": mask[:, :-1]},
                )
                mask[0, -2] = int(not hidden)
                results.append(
                    model(input_ids=token, past_key_values=now, **{**where, "attention_mask": mask}).logits[0]
                )
        assert not torch.allclose(results[0], results[1]) and torch.equal(results[2], results[3])


def test_images_of_different_sizes_keep_their_own_budgets(model):
    @dataclasses.dataclass(frozen=True)
    class TwoStages(FastV):
        """Keeps every third token of the first image before the language model, all of the others."""

        name = "two-stages"

        def counts(self, full, entering, depth):
            return torch.tensor([[9]] + [[15]] * (len(full) - 1))

        def select(self, tokens):
            order = torch.arange(36).expand(len(tokens), 36).clone()
            order[0, 12:] = -1
            order[0, :12] = torch.arange(0, 36, 3)
            return Selection.from_order(order, torch.zeros(len(tokens), 36), self.budget)

    inputs, layout = tiny.prompts((1, 2)), (1, 2)
    method = TwoStages(0.25, budget_convention="final", layer=2)
    with prune(model, method) as run_, torch.no_grad():
        out = model(**inputs, use_cache=True)
    first, *others = run_.report
    assert first.layers == [12, 12, 9, 9, 9] and [r.layers for r in others] == [[36, 36, 15, 15, 15]] * 2
    assert first.before == 36 and first.after == 9 and first.average == pytest.approx(10.2)
    assert set(first.indices) < set(range(0, 36, 3)) and first.drops[0].indices == first.indices
    with prune(model, method), torch.no_grad():
        single = model(**tiny.alone(inputs, layout, 0)).logits[0]
        torch.testing.assert_close(out.logits[0, -len(single) :], single, atol=5e-5, rtol=1e-4)


def test_drops_of_different_sizes_are_padded(model):
    @dataclasses.dataclass(frozen=True)
    class Uneven(PyramidDrop):
        name = "uneven"

        def counts(self, full, entering, depth):
            return torch.tensor([[9, 4, 2], [30, 20, 10]])[: len(full)]

    single = tiny.prompts((1,))
    pair = {name: torch.cat([single[name], single[name]]) for name in ("input_ids", "pixel_values")}
    with prune(model, Uneven(20)) as run_:
        together, alone = run(model, pair), run(model, {name: value[:1] for name, value in pair.items()})
    assert [r.layers for r in run_.report] == [[36, 9, 9, 4, 2], [36, 30, 30, 20, 10], [36, 9, 9, 4, 2]]
    first = torch.stack(together.logits)[:, :1]
    torch.testing.assert_close(first, torch.stack(alone.logits), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kept_positions", ["compact", "keep"])
@pytest.mark.parametrize("kind", [FastV, PyramidDrop, SparseVLM, DART])
def test_selection_before_the_llm_precedes_drops_inside(model, decoder, kind, kept_positions):
    class Before:
        """Lets evenly spread tokens enter."""

        def select(self, tokens):
            return UniformGrid(16).select(tokens)

    both = dataclasses.dataclass(frozen=True)(type("Both", (Before, kind), {}))
    where = {"layer": 2} if kind in (FastV, DART) else {"layers": (1, 3)}
    inputs, method = tiny.prompts((1,)), both(6, budget_convention="final", **where)
    counts = method.counts(torch.tensor([36]), torch.tensor([16]), DEPTH).tolist()
    with prune(model, method, kept_positions) as run_, torch.no_grad():
        got = run(model, inputs)
    before = UniformGrid(16).select(batch(image(0))).indices[0].tolist()
    embeddings, (columns,) = embedded(model, inputs)
    gone = [column for token, column in enumerate(columns) if token not in before]
    begin = [column for column in range(len(embeddings)) if column not in gone]
    read = decoder.read(
        np.delete(embeddings, gone, 0),
        [list(range(columns[0], columns[0] + 16))],
        method.drop_layers(DEPTH),
        counts,
        **rule_of(method),
        begin=begin if kept_positions == "keep" else None,
    )
    assert run_.report[0].layers == layers_of(16, counts[0], method.drop_layers(DEPTH), DEPTH)
    assert [drop.indices for drop in run_.report[0].drops] == [[before[i] for i in kept] for kept in read.kept[0]]
    close(got.logits[0][0], read.logits[-1])
    for step, token in enumerate(got.sequences[0, inputs["input_ids"].shape[1] : -1].tolist()):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(got.logits[step + 1][0], wanted)


@pytest.mark.parametrize("kept_positions", ["compact", "keep"])
def test_entering_tokens_take_compact_or_kept_positions(model, decoder, kept_positions):
    inputs, method = tiny.prompts((1,)), VScan(12, left=0.2)
    with prune(model, method, kept_positions), torch.no_grad():
        got = run(model, inputs)
    read = read_alone(model, decoder, method, inputs, kept_positions == "compact")
    close(got.logits[0][0], read.logits[-1])
    for step, token in enumerate(got.sequences[0, inputs["input_ids"].shape[1] : -1].tolist()):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(got.logits[step + 1][0], wanted)


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize("convention", ["average", "final"])
def test_two_stage_methods_run_at_every_budget(depth, convention):
    model, inputs = tiny.build(layers=depth), tiny.prompts((1,))
    for budget in range(1, tiny.TOKENS + 1):
        with prune(model, VScan(budget, budget_convention=convention)) as run_, torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
        (record,) = run_.report
        assert abs(record.average - budget) <= 0.5 if convention == "average" else record.after == budget


def test_two_stage_method_may_skip_its_drop(model):
    inputs = tiny.prompts((1, 2))
    results = []
    for convention in ("average", "final"):
        with prune(model, VScan(9, layer=None, budget_convention=convention)) as run_:
            results.append(run(model, inputs, use_cache=False))
            assert model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=128)).logits.shape[1]
        assert all(r.layers == [9] * DEPTH and r.drops == [] and len(r.indices) == 9 for r in run_.report)
    assert torch.equal(torch.stack(results[0].logits), torch.stack(results[1].logits))


def test_a_prompt_may_end_in_its_image(model):
    inputs = tiny.prompts((1,))
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, :-7], "attention_mask": None}
    for method in (FastV(20), PyramidDrop(12), DART(20)):
        with prune(model, method) as run_:
            model.generate(**inputs, **GREEDY)
        assert abs(run_.report[0].average - method.budget) <= 0.5


def test_given_positions_are_compacted_after_each_drop(model):
    inputs = tiny.prompts((1,))
    moved = torch.arange(inputs["input_ids"].shape[1])[None] + 7
    for method in METHODS_INSIDE:
        if method.name == "dart":
            continue
        with prune(model, method), torch.no_grad():
            torch.testing.assert_close(
                model(**inputs, position_ids=moved).logits, model(**inputs).logits, atol=5e-4, rtol=1e-3
            )


def test_logits_do_not_need_a_cache_or_a_mask(model):
    inputs = {**tiny.prompts((1,)), "attention_mask": None}
    for method in METHODS_INSIDE:
        with prune(model, method), torch.no_grad():
            wanted = model(**inputs, use_cache=True).logits
            assert torch.equal(model(**inputs, use_cache=False).logits, wanted)


def test_gradients_flow_through_kept_tokens(model):
    inputs = tiny.prompts((1, 2))
    with prune(model, PyramidDrop(20)):
        model(**inputs).logits.square().mean().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


def test_half_precision_runs(model):
    half, inputs = copy.deepcopy(model).to(torch.bfloat16), tiny.prompts((1, 2))
    for method in METHODS_INSIDE:
        with prune(half, method):
            assert model.generate(**inputs, **GREEDY).shape == half.generate(**inputs, **GREEDY).shape


def test_hidden_states_have_the_length_of_each_layer(model):
    inputs = tiny.prompts((1,))
    with prune(model, FastV(20)), torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    text = inputs["input_ids"].shape[1] - 36
    assert [state.shape[1] for state in states] == [text + 36] * 2 + [text + 16] * 4
