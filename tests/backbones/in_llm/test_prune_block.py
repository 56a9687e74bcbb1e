"""Drops inside the language model within `prune`: records, refusals, and the model after the block."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaModel, StaticCache

from idsel_core import UniformGrid, prune
from idsel_core.backbones.in_llm.checks import check_decoder
from idsel_core.methods import FastV, PyramidDrop, SparseVLM
from tests.support import tiny
from tests.support.in_llm import METHODS_INSIDE
from tests.support.llava_prompts import GREEDY, run, same, state


def test_report_lists_each_drop(model):
    inputs = tiny.prompts((1, 2))
    with prune(model, SparseVLM(24)) as run_:
        model.generate(**inputs, **GREEDY)
        model(**tiny.alone(inputs, (1, 2), 0))
        model.generate(**tiny.prompts((0,)), **GREEDY)
    assert [(r.call, r.image) for r in run_.report] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for record in run_.report:
        assert record.before == 36 and record.requested == 24 and record.select_ms > 0
        assert abs(record.average - 24) <= 0.5 and record.average == np.mean(record.layers)
        assert record.layers[0] == 36 and record.after == record.layers[-1] == record.drops[-1].after
        assert [drop.layer for drop in record.drops] == [1, 2, 3]
        for earlier, later in pairwise(record.drops):
            assert set(later.indices) < set(earlier.indices)
        # Merged tokens are counted but have no index.
        assert all(len(drop.indices) < drop.after for drop in record.drops)
        assert record.indices == record.drops[-1].indices


def test_prune_restores_the_model(model):
    inputs = tiny.prompts((1, 2))
    run(model, inputs)
    before = state(model)
    for method in METHODS_INSIDE:
        with prune(model, method):
            assert not same(state(model), before)
            run(model, inputs)
            model(**inputs)
        assert same(state(model), before)

    @dataclasses.dataclass(frozen=True)
    class Failing(FastV):
        name = "failing"

        def choose(self, tokens, counts):
            raise RuntimeError("on purpose")

    for call in (partial(run, model, inputs), partial(model, **inputs)):
        for method in (FastV(1), Failing(20)):
            with prune(model, method) as run_:
                inside = state(model)
                with pytest.raises((RuntimeError, ValueError)):
                    call()
                assert same(state(model), inside) and run_.report == []
                model(**tiny.prompts((0,)))
                assert same(state(model), inside)
            assert same(state(model), before)
            with pytest.raises((RuntimeError, ValueError)), prune(model, method):
                call()
            assert same(state(model), before)


def test_innermost_of_nested_blocks_decides(model):
    inputs = tiny.prompts((1,))
    run(model, inputs)
    before = state(model)
    with prune(model, FastV(20)) as outer:
        model(**inputs)
        with prune(model, UniformGrid(9)) as inner:
            model(**inputs)
            model.generate(**inputs, **GREEDY)
            with prune(model, PyramidDrop(20)) as innermost:
                model.generate(**inputs, **GREEDY)
        model.generate(**inputs, **GREEDY)
    assert [r.layers for r in outer.report] == [[36, 16, 16, 16, 16]] * 2
    assert [r.layers for r in inner.report] == [[9] * 5] * 2
    assert [r.layers[0] for r in innermost.report] == [36] and innermost.report[0].after < 20
    assert same(state(model), before)


def test_text_only_prompts_are_not_changed(model):
    inputs = tiny.prompts((0, 0))
    plain, logits = model.generate(**inputs, **GREEDY), model(**inputs).logits
    for method in METHODS_INSIDE:
        with prune(model, method) as run_:
            assert torch.equal(model.generate(**inputs, **GREEDY), plain)
            assert torch.equal(model(**inputs).logits, logits)
        assert run_.report == []


def test_reset_cache_forgets_its_drops(model):
    inputs, text = tiny.prompts((1,)), tiny.prompts((0,))
    with torch.no_grad():
        plain = model(**text, use_cache=True)
        wanted = model(input_ids=torch.tensor([[5]]), past_key_values=plain.past_key_values).logits
        cache = DynamicCache()
        with prune(model, PyramidDrop(20)):
            model(**inputs, past_key_values=cache)
            cache.reset()
            model(**text, past_key_values=cache)
            assert torch.equal(model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, r"reads the prompt, whole and once: generate\(\) needs use_cache=True"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "needs use_cache=True"),
        ({"prefill_chunk_size": 5}, "needs prefill_chunk_size=None"),
        ({"cache_implementation": "static", "disable_compile": True}, "with a DynamicCache, .* not with StaticCache"),
        ({"cache_implementation": "paged"}, "does not support continuous batching"),
    ],
)
def test_generate_refuses_unsupported_options(model, options, message):
    for method in (FastV(20), PyramidDrop(20)):
        with prune(model, method), pytest.raises(ValueError, match=message):
            model.generate(**tiny.prompts((1,)), **{**GREEDY, **options})


def test_forward_refuses_unsupported_inputs(model):
    inputs = tiny.prompts((1,))
    with prune(model, FastV(20)):
        with pytest.raises(ValueError, match="the logits are shorter than the labels"):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match=r"with a DynamicCache, .* not with StaticCache"):
            model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=64))
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="cannot add an image to a cache"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match=r"attention_mask must be \(prompts, tokens\), not"):
            model(input_ids=torch.tensor([[3]]), past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 47))
    for method, least in ((FastV(5), 8), (PyramidDrop(5), 8), (SparseVLM(5), 9)):
        with prune(model, method), pytest.raises(ValueError, match=f"the least budget for this model is {least}"):
            model(**inputs)
    with prune(model, SparseVLM(24)), pytest.raises(ValueError, match="no word of it follows image 0"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :-7], "attention_mask": None})


def test_unsupported_decoders_are_refused(model):
    with pytest.raises(
        ValueError, match="tokens cannot be dropped inside Linear, which lacks layers, norm, rotary_emb"
    ):
        check_decoder(torch.nn.Linear(1, 1))
    sliding = copy.copy(model.model.language_model)
    sliding.config = copy.deepcopy(sliding.config)
    sliding.config.sliding_window = 4
    with pytest.raises(ValueError, match="LlamaModel, whose layers do not all attend to the whole prompt"):
        check_decoder(sliding)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    decoder = LlamaModel(config)
    check_decoder(decoder)
    decoder.gradient_checkpointing = True
    decoder.train()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        check_decoder(decoder)
    check_decoder(decoder.eval())
