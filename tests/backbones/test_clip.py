"""CLIP as a companion: its own shared space, by plain arithmetic, and the methods that read it."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, PreTrainedTokenizerFast

from idsel_core import ClipCompanion, IDSelection, adapter_for, get_method, prune
from idsel_core.backbones import Relevance
from tests.support import tiny
from tests.support.families import FAMILIES

LONGEST = 8
WORDS = 40
"""CLIP knows fewer words than the LVLM."""
UNKNOWN, START, STOP, FILL = range(WORDS, WORDS + 4)


def words(count: int, **special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that has a word for each number."""
    special = {"unk_token": "<unknown>", **special}
    vocabulary = {f"w{number}": number for number in range(count)}
    vocabulary |= {token: count + place for place, token in enumerate(special.values())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if "bos_token" in special:
        ends = [(special[end], vocabulary[special[end]]) for end in ("bos_token", "eos_token")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def clip_tokenizer():
    tokenizer = words(WORDS, bos_token="<start>", eos_token="<end>", pad_token="<pad>")
    tokenizer.model_max_length = LONGEST
    return tokenizer


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(2)
    text = CLIPTextConfig(
        vocab_size=WORDS + 4,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        bos_token_id=START,
        eos_token_id=STOP,
        pad_token_id=FILL,
    )
    config = CLIPConfig(text_config=text, vision_config=tiny.TOWERS["clip"](), projection_dim=8)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def companion(clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return ClipCompanion.from_pretrained(folder, words(tiny.VOCABULARY))


def with_tower_of(clip, layer: int):
    """Return a LLaVA whose tower is that of `clip`."""
    model = tiny.build("clip", vision_feature_layer=layer)
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


def questions(inputs):
    """Return the text of each prompt, as CLIP's token ids, by hand."""
    for ids in inputs["input_ids"]:
        text = ids[~torch.isin(ids, torch.tensor([tiny.BOS, tiny.IMAGE, tiny.PAD]))]
        told = [number if number < WORDS else UNKNOWN for number in text.tolist()]
        yield [START, *told[: LONGEST - 2], STOP]


@torch.no_grad()
def test_relevance_is_the_cosine_in_the_space_of_clip(clip, companion):
    model, inputs = with_tower_of(clip, -2), tiny.prompts((1, 1))
    backbone = adapter_for(model, companion)
    encoded = backbone.encode(inputs["pixel_values"])
    got = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"]).relevance
    norm, projection = clip.vision_model.post_layernorm, clip.visual_projection.weight.double()
    for row, ids in enumerate(questions(inputs)):
        x = encoded.encoder_features[row].double()
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        patches = (x * norm.weight.double() + norm.bias.double()) @ projection.T
        text = clip.double().get_text_features(torch.tensor([ids])).pooler_output[0]
        clip.float()
        wanted = torch.nn.functional.cosine_similarity(patches, text[None], dim=-1)
        torch.testing.assert_close(got[row].double(), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_only_last_layer_features_equal_clip_s_projected_patches(clip, companion):
    pixels = tiny.prompts((1,))["pixel_values"]
    states = clip.vision_model(pixels).last_hidden_state[:, 1:]
    own = clip.visual_projection(clip.vision_model.post_layernorm(states))
    last, before = (
        companion.project(adapter_for(with_tower_of(clip, layer)).encode(pixels).encoder_features) for layer in (-1, -2)
    )
    torch.testing.assert_close(last, own, atol=1e-5, rtol=1e-4)
    assert (before - own).abs().max() > 0.1


def test_companion_does_not_keep_the_tower_s_layers(companion):
    names = [name for name, _ in companion.clip.named_parameters()]
    assert not any("vision_model.encoder" in name for name in names)
    assert isinstance(companion, Relevance)


@torch.no_grad()
def test_question_embeddings_do_not_depend_on_the_batch(companion):
    ids = torch.tensor([[5, 6, 7, 0, 0], [50, 60, 9, 10, 11]])
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    together = companion.embed_text(ids, real)
    alone = torch.cat([companion.embed_text(ids[:1, :3], real[:1, :3]), companion.embed_text(ids[1:], real[1:])])
    torch.testing.assert_close(together, alone)
    # CLIP knows neither w50 nor w60.
    torch.testing.assert_close(together[1:], companion.embed_text(torch.tensor([[70, 80, 9, 10, 11]]), real[1:]))


@torch.no_grad()
def test_long_questions_are_truncated_before_the_end_token(companion):
    first = torch.arange(2, 2 + LONGEST - 2)[None]
    long = torch.cat([first, torch.full((1, 20), 30)], 1)
    short, cut = (companion.embed_text(ids, torch.ones_like(ids)) for ids in (first, long))
    torch.testing.assert_close(short, cut)


@torch.no_grad()
def test_question_text_can_be_cleaned(clip):
    cleaned = ClipCompanion(clip, clip_tokenizer(), words(tiny.VOCABULARY), lambda text: text.removesuffix(" w9"))
    ids = torch.tensor([[5, 6, 9]])
    wanted = cleaned.embed_text(ids[:, :2], torch.ones(1, 2))
    torch.testing.assert_close(cleaned.embed_text(ids, torch.ones(1, 3)), wanted)


METHODS = {
    "cdpruner": get_method("cdpruner", budget=7, negated=True),
    "trim": get_method("trim", budget=7, negated=True),
    "relevance": IDSelection(budget=7, importance="relevance"),
}


@pytest.mark.feature("relevance from CLIP")
@pytest.mark.parametrize("name", METHODS)
def test_methods_read_clip_on_llava(clip, companion, name):
    model, inputs = with_tower_of(clip, -2), tiny.prompts((1, 2))
    with prune(model, METHODS[name], relevance=companion) as run, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape == (2, inputs["input_ids"].shape[1] + 2)
    assert [record.after for record in run.report] == [7, 7, 7]


@pytest.mark.feature("relevance from CLIP")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llava_next"])
def test_methods_read_clip_on_llava_next(companion, family, name):
    family = FAMILIES[family]
    model, inputs = family.build(), family.prompts(((1,), (2, 0)))
    with prune(model, METHODS[name], relevance=companion) as run, torch.no_grad():
        model(**inputs)
    assert [record.after for record in run.report] == [7, 7, 7]


@torch.no_grad()
def test_newline_tokens_have_no_relevance(companion):
    family = FAMILIES["llava_next"]
    inputs = family.prompts(((1,),))
    backbone = adapter_for(family.build(), companion)
    encoded = backbone.encode(**backbone.image_arguments(inputs))
    relevance = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"]).relevance
    newline = encoded.grid[0, :, 0] < 0
    assert newline.any() and (relevance[0, newline] == 0).all() and (relevance[0, ~newline] != 0).all()


def test_other_models_and_widths_are_refused_as_companion(clip, companion):
    with pytest.raises(TypeError, match="clip must be a CLIPModel, not VisionTextDualEncoderModel"):
        ClipCompanion(tiny.companion(), clip_tokenizer(), words(5))
    with pytest.raises(ValueError, match="this CLIP projects features of width 32, the vision tower gives 31"):
        companion.project(torch.zeros(1, 2, 31))
