"""What Gemma 3 has of its own: averaged patches, tokens that attend to later ones of their image, and windows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Gemma3ImageProcessorPil, Gemma3Processor, PreTrainedTokenizerFast

from idsel_core import TopK, Unavailable, UniformGrid, adapter_for, prune
from tests.support import families
from tests.support.families import IMAGE
from tests.support.family_prompts import CLOSE, GREEDY, MIXED, by_hand, ragged, tokens_of
from tests.support.llava_prompts import run

FAMILY = families.FAMILIES["gemma3"]
WINDOW = 24


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


@pytest.fixture(scope="module")
def narrow():
    """Return a model whose windows are shorter than prompts, also than pruned ones."""
    return FAMILY.build(window=WINDOW)


@torch.no_grad()
def test_pooled_tokens_average_the_attention_of_their_patches(model):
    inputs, encoded, tokens = tokens_of(FAMILY, model, MIXED, (0.0,))
    output = FAMILY.build("eager").model.vision_tower(inputs["pixel_values"], output_attentions=True)
    states = output.last_hidden_state.view(-1, 8, 8, 32)
    for image in range(3):
        for token in range(16):
            row, column = tokens.grid[image, token].tolist()
            assert (row, column) == (token // 4, token % 4)
            square = (image, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            for view, layer in ((tokens.saliency, 2), (tokens.at_depth("received_attention", 0.0), 0)):
                patches = output.attentions[layer].mean((1, 2)).view(-1, 8, 8)
                torch.testing.assert_close(view[image, token], patches[square].mean(), atol=1e-6, rtol=1e-4)
            mean = states[square].flatten(0, 1).mean(0)
            torch.testing.assert_close(encoded.encoder_features[image, token], mean, **CLOSE)


@torch.no_grad()
def test_sliding_windows_count_the_kept_columns(narrow):
    inputs, method = FAMILY.prompts(MIXED), ragged(FAMILY, MIXED)
    plain = run(narrow, inputs, **GREEDY)
    with prune(narrow, UniformGrid(budget=1.0)):
        pruned = run(narrow, inputs, **GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    with prune(narrow, method):
        got = run(narrow, inputs, **GREEDY)
    for row in range(len(MIXED)):
        logits, chosen, length = by_hand(FAMILY, narrow, MIXED, row, method.picks, 4)
        assert row < 2 or length > WINDOW
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
        assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen


@torch.no_grad()
def test_kept_positions_need_prompts_within_the_sliding_window(narrow):
    inputs, method = FAMILY.prompts(MIXED), ragged(FAMILY, MIXED)
    length = int(inputs["attention_mask"].sum(1).max())
    why = r'positions="keep" cannot be had for {} tokens, prompt and answer: .* within 24 columns'
    with prune(narrow, method, "keep"):
        with pytest.raises(ValueError, match=why.format(length)):
            narrow(**inputs)
        with pytest.raises(ValueError, match=why.format(length + 4)):
            narrow.generate(**inputs, **GREEDY)
    short = {name: values[:1, -24:-3] for name, values in inputs.items() if name != "pixel_values"}
    short |= {"pixel_values": inputs["pixel_values"][:1]}
    with prune(narrow, TopK(budget=4, importance="saliency"), "keep") as run_:
        narrow(**short)
        narrow.generate(**short, max_new_tokens=3, do_sample=False)
        with pytest.raises(ValueError, match=why.format(25)):
            narrow.generate(**short, max_new_tokens=4, do_sample=False)
        with pytest.raises(ValueError, match=why.format(30)):
            narrow.generate(**short, max_length=30, do_sample=False)
    assert [r.after for r in run_.report] == [4, 4]


@torch.no_grad()
def test_instruction_attention_needs_a_window_that_reaches_the_image(narrow):
    _, _, tokens = tokens_of(FAMILY, narrow, ((1, 0),))
    with pytest.raises(
        Unavailable, match="layer 0 attends to 24 columns, and image 0 and the words that ask are 44 apart"
    ):
        _ = tokens.instruction_attention
    assert tokens.with_instruction(1).instruction_attention.shape == (2, 16)


@torch.no_grad()
def test_attention_is_causal_without_token_types(model):
    inputs, method = FAMILY.prompts(MIXED), ragged(FAMILY, MIXED)
    del inputs["token_type_ids"]
    plain = run(model, inputs, **GREEDY)
    with prune(model, UniformGrid(budget=1.0)):
        pruned = run(model, inputs, **GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    with prune(model, method):
        got = run(model, inputs, **GREEDY).logits
    causal = Causal(**{field.name: getattr(FAMILY, field.name) for field in dataclasses.fields(FAMILY)})
    for row in range(len(MIXED)):
        logits, *_ = by_hand(causal, model, MIXED, row, method.picks, 1)
        torch.testing.assert_close(got[0][row], logits[0], **CLOSE)
    types = FAMILY.prompts(MIXED)["token_type_ids"]
    with prune(model, method):
        assert not torch.allclose(run(model, {**inputs, "token_type_ids": types}, **GREEDY).logits[0], got[0])


class Causal(families.Gemma3):
    def beside(self, model, inputs, keep):
        return {}


@torch.no_grad()
def test_token_counts_equal_those_of_the_processor(model):
    """Crops that the processor adds are images of their own."""
    special = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    words = {"<pad>": 0, "what": 3, "is": 4, "\n\n": 96, "<unk>": 2, "<boi>": 92, "<eoi>": 93, "<image>": IMAGE}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=special
    )
    cutter = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(cutter, tokenizer, image_seq_length=16)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    options = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    options |= {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16}
    given = processor(text=["what is <boi> what", "is <boi> is"], images=[[picture], [picture]], **options)
    given = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")}
    assert len(given["pixel_values"]) == 6
    plain_ids = model.generate(**given, **GREEDY)
    with prune(model, TopK(budget=1.0, importance="saliency")):
        assert torch.equal(model.generate(**given, **GREEDY), plain_ids)
    with prune(model, TopK(budget=7, importance="saliency")) as run_:
        model.generate(**given, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(16, 7)] * 6
    short = adapter_for(model).shorten(given, *_chosen(model, given))
    assert torch.equal(short["token_type_ids"], (short["input_ids"] == IMAGE).long())


def _chosen(model, given):
    backbone = adapter_for(model)
    encoded = backbone.encode(given["pixel_values"])
    tokens = backbone.visual_tokens(encoded, given["input_ids"], given["attention_mask"])
    return tokens, TopK(budget=3, importance="saliency").select(tokens)
