"""Drops inside the language model without `prune`, and methods of one's own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from idsel_core import TopK, adapter_for, prune
from idsel_core.backbones.in_llm.hooks import dropping
from idsel_core.methods import FastV, InLLM
from idsel_core.methods._shared.in_llm import most_attended
from tests.support import tiny
from tests.support.in_llm import DEPTH, METHODS_INSIDE
from tests.support.llava_prompts import GREEDY


def test_dropping_equals_prune(model):
    """What an evaluation does: encode once, then ask with any method."""
    inputs = tiny.prompts((1, 2))
    backbone = adapter_for(model)
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"], tower_depths=(0.25,)), **prompts)
    assert tokens.decoder_layers == DEPTH
    for method in [*METHODS_INSIDE, TopK(7, importance="saliency")]:
        selection = method.select(tokens)
        short = backbone.shorten(prompts, tokens, selection)
        with dropping(backbone, method, tokens, selection, short) as passage:
            got = model.generate(**short, **GREEDY)
        with prune(model, method) as run_:
            wanted = model.generate(**inputs, **GREEDY)
        assert torch.equal(got[:, short["input_ids"].shape[1] :], wanted[:, inputs["input_ids"].shape[1] :])
        assert passage.layers.tolist() == [r.layers for r in run_.report]
        assert [row.tolist() for row in passage.left.rows()] == [r.indices for r in run_.report]
        assert passage.left.requested == method.budget


def test_passage_serves_one_call(model):
    inputs = tiny.prompts((1,))
    backbone, method = adapter_for(model), FastV(20)
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"]), **prompts)
    selection = method.select(tokens)
    short = backbone.shorten(prompts, tokens, selection)
    with dropping(backbone, method, tokens, selection, short), pytest.raises(ValueError, match="needs use_cache=True"):
        model.generate(**short, **GREEDY, use_cache=False)
    short = backbone.shorten(prompts, tokens, selection)
    with dropping(backbone, method, tokens, selection, short), pytest.raises(ValueError, match="no prefill_chunk_size"):
        model.generate(**short, **GREEDY, prefill_chunk_size=5)


def test_a_user_method_needs_drop_layers_and_a_choice(model):
    @dataclasses.dataclass(frozen=True)
    class Late(InLLM):
        name = "late"
        positions = "compact"
        attention_from = "after"

        def drop_layers(self, num_layers):
            return (num_layers - 1,)

        def choose(self, tokens, counts):
            return most_attended(tokens, counts)

    with prune(model, Late(30)) as run_:
        model.generate(**tiny.prompts((1,)), **GREEDY)
    assert run_.report[0].layers == [36, 36, 36, 36, 6]
