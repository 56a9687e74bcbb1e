"""What PaliGemma has of its own: prompts whose tokens all see each other, and suffixes that do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import interpolate
from transformers import Gemma2Config, PaliGemmaProcessor, PreTrainedTokenizerFast, SiglipImageProcessorPil

from idsel_core import TopK, adapter_for, prune
from tests.support import families
from tests.support.families import BOS, IMAGE, TEXT
from tests.support.family_prompts import ALL, CLOSE, GREEDY, MIXED, by_hand, ragged, tokens_of
from tests.support.llava_prompts import run

FAMILY = families.FAMILIES["paligemma"]


class PaliGemma2(families.PaliGemma):
    """The same with Gemma 2, whose layers attend within a window of the answer."""

    def text(self):
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        knobs = {"sliding_window": 24, "layer_types": layers, "final_logit_softcapping": None}
        knobs["attn_logit_softcapping"] = 2.0
        return Gemma2Config(**TEXT, head_dim=8, query_pre_attn_scalar=8, **knobs)

    def beside(self, model, inputs, keep):
        mask = super().beside(model, inputs, keep)["attention_mask"]
        return {"attention_mask": dict.fromkeys(("sliding_attention", "full_attention"), mask)}


SECOND = PaliGemma2("paligemma", FAMILY.counts)


class WithSuffix(families.PaliGemma):
    """The last four words are an answer, each of which sees what is before it."""

    def marked(self, ids):
        types = torch.zeros_like(ids)
        types[:, -4:] = 1
        return {"token_type_ids": types}

    def beside(self, model, inputs, keep):
        types = self.marked(inputs["input_ids"])["token_type_ids"][0, keep]
        seen = torch.ones(len(types), len(types)).tril().bool()
        return {"attention_mask": (seen | ((types == 0) & (types == 0)[:, None]))[None, None]}


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


@torch.no_grad()
def test_suffix_tokens_attend_to_the_tokens_before_them(model):
    family = WithSuffix("paligemma", FAMILY.counts)
    inputs, method = family.prompts(MIXED), ragged(family, MIXED)
    labels = inputs["input_ids"].masked_fill(inputs["token_type_ids"] == 0, -100)
    plain = model(**inputs, labels=labels)
    with prune(model, ALL):
        pruned = model(**inputs, labels=labels)
    assert torch.equal(plain.logits, pruned.logits) and torch.equal(plain.loss, pruned.loss)
    for positions in ("compact", "keep"):
        with prune(model, method, positions):
            short = model(**inputs, labels=labels)
        for row in (0, 2):
            logits, *_ = by_hand(family, model, MIXED, row, method.picks, 1, positions)
            torch.testing.assert_close(short.logits[row, -1], logits[0], **CLOSE)
    assert not torch.allclose(model(**{**inputs, **FAMILY.marked(inputs["input_ids"])}).logits, plain.logits)


@torch.no_grad()
def test_sliding_window_layers_read_the_whole_prompt():
    model = SECOND.build("eager")
    inputs, method = SECOND.prompts(MIXED), ragged(SECOND, MIXED)
    plain = run(model, inputs, **GREEDY)
    with prune(model, ALL):
        pruned = run(model, inputs, **GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    with prune(model, method):
        got = run(model, inputs, **GREEDY)
    for row in (0, 2):
        logits, chosen, length = by_hand(SECOND, model, MIXED, row, method.picks, 4)
        assert row == 0 or length > 24
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
        assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen
    layout = ((1,), (0,))
    _, _, tokens = tokens_of(SECOND, model, layout)
    for row in range(2):
        single = SECOND.alone(layout, row)
        columns = single["input_ids"][0] == IMAGE
        words = ~torch.isin(single["input_ids"][0], torch.tensor([BOS, IMAGE]))
        for layer, heads in enumerate(model(**single, output_attentions=True).attentions):
            for which, asking in (("words", words.nonzero()[:, 0]), ("last", torch.tensor([-1])))[: 1 + layer]:
                wanted = heads[0][:, asking][..., columns]
                wanted = (wanted / wanted.sum(-1, keepdim=True)).mean((0, 1))
                got = tokens.with_instruction(layer, which).instruction_attention[row]
                torch.testing.assert_close(got, wanted, **CLOSE)
    with (
        prune(model, method, "keep"),
        pytest.raises(ValueError, match=r'positions="keep" cannot be had for \d+ tokens'),
    ):
        model.generate(**inputs, **GREEDY)


def test_calls_without_token_types_are_refused(model):
    inputs = FAMILY.prompts(MIXED)
    del inputs["token_type_ids"]
    with prune(model, ALL), pytest.raises(ValueError, match="PaliGemma needs token_type_ids, as its processor gives"):
        model.generate(**inputs, **GREEDY)


@torch.no_grad()
def test_tower_encodes_smaller_images(model):
    pixels = FAMILY.prompts(MIXED)["pixel_values"]
    encoded = adapter_for(model).encode(pixels, (2, 2))
    small = interpolate(pixels, size=[8, 8], mode="bicubic", antialias=True)
    wanted = model.model.get_image_features(small, interpolate_pos_encoding=True, return_dict=True).pooler_output
    torch.testing.assert_close(encoded.features, wanted)
    assert encoded.placeholders.tolist() == [36] * 3


@torch.no_grad()
def test_token_counts_equal_those_of_the_processor(model):
    words = {"<pad>": 0, "<bos>": 1, "what": 3, "is": 4, "\n": 96, "<unk>": 2, "<image>": IMAGE}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>"}
    cutter = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    cutter.image_seq_length = 36
    processor = PaliGemmaProcessor(cutter, PreTrainedTokenizerFast(tokenizer_object=plain, **names))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 30, 3), dtype=np.uint8))
    options = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
    given = processor(text=["<image> what is what", "<image> is"], images=[[picture], [picture]], **options)
    given = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")}
    plain_ids = model.generate(**given, **GREEDY)
    with prune(model, TopK(budget=1.0, importance="saliency")):
        assert torch.equal(model.generate(**given, **GREEDY), plain_ids)
    with prune(model, TopK(budget=7, importance="saliency")) as run_:
        model.generate(**given, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(36, 7)] * 2
