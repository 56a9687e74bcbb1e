"""The views that peers read beside those of ID-Selection, against eager attention and by hand."""

from __future__ import annotations

import pytest
import torch

from idsel_core import Companion, Unavailable, VisualTokens, adapter_for
from tests.support import tiny

CLOSE = {"atol": 1e-6, "rtol": 1e-4}
DEPTHS = (0.0, 0.3, 1.0)


@pytest.fixture(scope="module")
def clip():
    return tiny.build("clip")


def views(model, inputs, relevance=None, tower_depths=DEPTHS) -> VisualTokens:
    backbone = adapter_for(model, relevance)
    encoded = backbone.encode(inputs["pixel_values"], tower_depths=tower_depths)
    return backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"])


@pytest.mark.parametrize(("depth", "layer"), [(0.0, 0), (0.3, 0), (0.5, 1), (0.67, 1), (1.0, 2)])
@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_attention_at_a_depth_is_that_of_its_tower_layer(tower, depth, layer):
    inputs = tiny.prompts((1, 1))
    tokens = views(tiny.build(tower), inputs, tower_depths=(depth,))
    eager = tiny.build(tower, attention="eager").model.vision_tower
    attention = eager(inputs["pixel_values"], output_attentions=True).attentions[layer].mean(1)
    crop = attention.shape[1] - tiny.TOKENS
    got = tokens.at_depth("received_attention", depth)
    torch.testing.assert_close(got, attention.mean(1)[:, crop:], **CLOSE)
    if crop:
        torch.testing.assert_close(tokens.at_depth("cls_attention", depth), attention[:, 0, crop:], **CLOSE)
    else:
        for name in ("cls_attention", "wide_cls_attention"):
            with pytest.raises(Unavailable, match=rf"{name}@{depth:g} is not available: .* no \[CLS\] token"):
                tokens.at_depth(name, depth)
        with pytest.raises(Unavailable, match=r"no \[CLS\] token"):
            _ = tokens.cls_features


def test_a_depth_that_was_not_encoded_is_refused_with_the_remedy(clip):
    tokens = views(clip, tiny.prompts((1,)), tower_depths=())
    with pytest.raises(
        Unavailable,
        match=r"keys@0.25 is not available: encode the images with it: encode\(..., tower_depths=\(0.25,\)\)",
    ):
        tokens.at_depth("keys", 0.25)
    with pytest.raises(ValueError, match=r"depth must be a share of the tower's layers, 0 to 1, not 1\.5"):
        views(clip, tiny.prompts((1,)), tower_depths=(1.5,))


def test_keys_and_wide_cls_attention_are_those_of_the_layer(clip):
    inputs = tiny.prompts((1, 1))
    tokens, tower = views(clip, inputs), clip.model.vision_tower
    states = {}
    hooks = [
        getattr(tower.encoder.layers[layer].self_attn, name).register_forward_hook(
            lambda *call, at=(layer, name): states.update({at: call[2]})
        )
        for layer, name in ((1, "k_proj"), (2, "k_proj"), (2, "q_proj"))
    ]
    hidden = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    # Layer 1 feeds the projector, layer 2 is the last one.
    keys, last, query = (states[at] for at in ((1, "k_proj"), (2, "k_proj"), (2, "q_proj")))
    assert tokens.keys.shape == (2, 36, 4, 8)
    torch.testing.assert_close(tokens.keys.flatten(2), keys[:, 1:], **CLOSE)
    torch.testing.assert_close(tokens.at_depth("keys", 1.0).flatten(2), last[:, 1:], **CLOSE)
    wide = (query[:, :1] @ last.mT / 32**0.5).softmax(-1)[:, 0, 1:]
    torch.testing.assert_close(tokens.at_depth("wide_cls_attention", 1.0), wide, **CLOSE)
    torch.testing.assert_close(tokens.cls_features, hidden[-2][:, 0], **CLOSE)
    assert {"keys", "keys@1", "wide_cls_attention@1", "cls_features"} == tokens.computed


def test_cls_features_of_several_layers_are_concatenated_like_patches():
    model, inputs = tiny.build("clip", vision_feature_layer=[-3, -2]), tiny.prompts((1,))
    tokens = views(model, inputs)
    hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert torch.equal(tokens.cls_features, torch.cat([hidden[-3][:, 0], hidden[-2][:, 0]], -1))
    assert tokens.cls_features.shape[-1] == tokens.encoder_features.shape[-1]


def test_capturing_a_layer_for_two_views_does_not_change_the_tower(clip):
    inputs = tiny.prompts((1,))
    plain, watched = (views(clip, inputs, tower_depths=tower_depths) for tower_depths in ((), (0.67, 0.6, 0.0)))
    assert torch.equal(plain.features, watched.features)
    assert torch.equal(plain.cls_attention, watched.at_depth("cls_attention", 0.6))


def test_projecting_encoder_features_gives_the_features(clip):
    tokens = views(clip, tiny.prompts((1, 1)))
    assert torch.equal(tokens.project(tokens.encoder_features), tokens.features)
    bare = VisualTokens(tokens.features, tokens.mask, tokens.grid)
    with pytest.raises(Unavailable, match="projector is not available"):
        bare.project(tokens.encoder_features)


def test_word_similarity_is_computed_from_the_inputs_of_the_language_model(clip):
    inputs = tiny.prompts((2, 1))
    tokens = views(clip, inputs)
    got = tokens.word_similarity
    for image, row in enumerate((0, 0, 1)):
        ids = inputs["input_ids"][row]
        words = clip.get_input_embeddings()(ids[~torch.isin(ids, torch.tensor([tiny.BOS, tiny.IMAGE, tiny.PAD]))])
        wanted = torch.cosine_similarity(tokens.features[image][:, None], words[None], dim=-1)
        torch.testing.assert_close(got[image, :, : len(words)], wanted, **CLOSE)
        assert bool((got[image, :, len(words) :] == -torch.inf).all())
    assert got.shape[2] == 12 and bool((got[2] == -torch.inf).any())


def test_relevance_product_is_the_cosine_times_the_norms(clip):
    dual, inputs = tiny.companion(), tiny.prompts((1, 1))
    tokens = views(clip, inputs, relevance=Companion(dual))
    norms = dual.visual_projection(tokens.encoder_features).norm(dim=-1)
    ratio = tokens.relevance_product / (tokens.relevance * norms)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=1e-4)
    with pytest.raises(Unavailable, match="relevance_product is not available: no image-text companion"):
        _ = views(clip, inputs).relevance_product


@pytest.mark.parametrize("name", ["frames", "crops"])
def test_a_single_image_has_no_frames_and_no_crops(clip, name):
    with pytest.raises(Unavailable, match=f"{name} is not available: the images are "):
        getattr(views(clip, tiny.prompts((1,))), name)
