"""What models of every family cost, formula against torch's counter; and what methods inside the language model do."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaNextConfig

from idsel_core import IDSelection, Random, adapter_for, get_method, id_select, prune
from idsel_core.backbones import BACKBONES
from idsel_core.selection import greedy
from idsel_core.study.cost import (
    MODELS,
    flops_analytic,
    flops_analytic_step,
    flops_counted,
    flops_counted_step,
    flops_prefill,
    full_budget,
    kv_cache_bytes,
    profile_by,
    read_config,
)
from idsel_core.study.cost.counted import _meta
from idsel_core.study.cost.models import decoder_of
from idsel_core.study.cost.shapes import Size
from tests.support import tiny
from tests.support.families import FAMILIES, Family

FIRST = ((0,),)
INSIDE = ["fastv", "pyramiddrop", "sparsevlm", "dart", "idselection-inside"]
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def image_size(family: Family, inputs: Mapping[str, torch.Tensor]) -> Size:
    """Return height and width of the one image of a prompt, before it was cut into tiles, or mel frames of a clip."""
    if "image_sizes" in inputs:
        return tuple(inputs["image_sizes"][0].tolist())
    if "image_grid_thw" in inputs:
        return tuple(
            family.config().vision_config.patch_size * side for side in inputs["image_grid_thw"][0, 1:].tolist()
        )
    if "feature_attention_mask" in inputs:
        return int(inputs["feature_attention_mask"].sum())
    pixels = inputs["pixel_values"]
    tiles, (height, width) = pixels.shape[:-3].numel(), pixels.shape[-2:]
    # The last of several tiles is a thumbnail.
    return height, width * max(1, tiles - 1)


@each_family
@pytest.mark.parametrize("last", [False, True])
def test_analytic_flops_equal_counted_flops_with_every_family(family, last):
    """The formula agrees with what torch counts of the whole model, and of the model without weights."""
    # Larger numbers are images of prompts that hold several.
    size = min(2, max(family.counts)) if last else 0
    config, inputs = family.config(), family.alone(((size,),), 0)
    model, shown = family.build("eager"), image_size(family, inputs)
    whole = full_budget(config, shown)
    assert whole == family.counts[size]
    text = inputs["input_ids"].shape[1] - whole
    last_logits = {} if family.name == "qwen2_audio" else {"logits_to_keep": 1}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs, **last_logits)
    cost = flops_analytic(config, whole, text, image_size=shown)
    assert cost.total == counter.get_total_flops()
    assert cost == flops_counted(config, whole, text, image_size=shown)
    for profile in (7, (whole, 7, 2)):
        assert flops_analytic(config, profile, text, image_size=shown) == flops_counted(
            config, profile, text, image_size=shown
        )
    assert flops_analytic_step(config, 7, text) == flops_counted_step(config, 7, text)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_flops_of_a_video_equal_what_torch_counts(name):
    config = FAMILIES[name].config()
    vision = config.vision_config
    side = 2 * vision.spatial_merge_size * vision.patch_size
    for frames, planes in ((1, 1), (2, 1), (5, 3)):
        shown = (frames, side, 2 * side)
        whole = full_budget(config, shown)
        assert whole == planes * full_budget(config, shown[1:])
        cost = flops_analytic(config, whole - 1, 9, image_size=shown)
        assert cost == flops_counted(config, whole - 1, 9, image_size=shown)
        assert cost.tower == planes * flops_analytic(config, 1, 9, image_size=shown[1:]).tower
    with pytest.raises(ValueError, match="a video must have 1 frame or more, not 0"):
        full_budget(config, (0, side, side))


def test_videos_of_other_families_are_refused():
    message = "video of model type 'llava_next' is not counted yet; counted are: qwen2_5_vl, qwen2_vl, qwen3_vl"
    with pytest.raises(ValueError, match=message):
        full_budget(FAMILIES["llava_next"].config(), (4, 24, 24))


def test_every_family_is_counted():
    assert sorted(MODELS) == sorted(name for name, backbone in BACKBONES.items() if not backbone.encoder_decoder)


@each_family
def test_analytic_flops_equal_those_of_a_pruned_generate(family):
    model, inputs = family.build("eager"), family.alone(FIRST, 0)
    text, shown = inputs["input_ids"].shape[1] - family.counts[0], image_size(family, inputs)
    with prune(model, Random(5)), FlopCounterMode(display=False) as counter:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    steps = [flops_analytic_step(model.config, 5, text + step) for step in range(2)]
    parts = [flops_analytic(model.config, 5, text, image_size=shown), *steps]
    assert counter.get_total_flops() == sum(part.total for part in parts)


@each_family
@pytest.mark.parametrize("importance", ["saliency", "instruction", "unified"])
def test_flops_of_scores_equal_what_torch_counts(family, importance):
    model, inputs = family.build("eager"), family.alone(FIRST, 0)
    backbone, method = adapter_for(model), IDSelection(5, importance=importance)
    with torch.no_grad():
        encoded = backbone.encode(**backbone.image_arguments(inputs))
        text = torch.ones_like(inputs["input_ids"])
        tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"], question_mask=text)
        with FlopCounterMode(display=False) as counter:
            method.scores(tokens)
    text, shown = inputs["input_ids"].shape[1] - family.counts[0], image_size(family, inputs)
    cost = flops_analytic(model.config, 5, text, image_size=shown, method=method)
    assert cost.scores == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        id_select(tokens.encoder_features[0], torch.rand(family.counts[0]), 5, trace=True)
    method = IDSelection(5, importance=importance, features="encoder")
    assert flops_analytic(model.config, 5, text, image_size=shown, method=method).greedy == counter.get_total_flops()


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("budget", [20, 33])
@pytest.mark.parametrize("convention", ["average", "final"])
def test_analytic_flops_of_methods_inside_the_language_model_are_exact(name, budget, convention, monkeypatch):
    # The formula is that of the torch backend; on a CPU the lazy one computes other products.
    monkeypatch.setattr(greedy, "_choose_backend", lambda *_: "torch")
    layers = 6
    scored = {"importance": "saliency"} if name == "idselection-inside" else {}
    model = tiny.build("clip", "eager", layers)
    method = get_method(name, budget=budget, budget_convention=convention, **scored)
    # Words that are all alike rate all or none, and then all count.
    ids = torch.tensor([[tiny.IMAGE] * tiny.TOKENS + [7] * 9])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 24, 24)}
    with prune(model, method) as run, torch.no_grad(), FlopCounterMode(display=False) as counter:
        cache = model(**inputs, logits_to_keep=1, use_cache=True).past_key_values
    profile = profile_by(method, tiny.TOKENS, layers)
    assert profile == run.report[0].layers
    assert len(set(profile)) > 1
    cost = flops_analytic(model.config, profile, 9, method=method)
    assert cost.total == counter.get_total_flops()
    assert cost.select > 0
    assert cost.language_model == flops_prefill(model.config, profile, 9).total
    drops = [layer for layer in method.drop_layers(layers) if profile[layer] < profile[layer - 1]]
    counts, decoder = counter.get_flop_counts(), decoder_of(model.config)
    chosen = 0
    for layer, tokens in enumerate(profile):
        name = f"LlavaForConditionalGeneration.model.language_model.layers.{layer}"
        own, found = decoder.layer(tokens + 9, (tokens + 9) ** 2), sum(counts[name].values())
        assert sum(counts[f"{name}.mlp"].values()) == own.mlp
        assert counts[f"{name}.self_attn"][torch.ops.aten.bmm] == own.attention or layer in drops
        # A choice is counted in the layer that reads what is left.
        assert (found > own.total) == (layer in drops)
        chosen += found - own.total
    earlier = (
        2 * tiny.TOKENS * 9 * decoder.hidden if method.name == "sparsevlm" else 0
    )  # the words that match the image
    if method.name == "idselection-inside":
        earlier = flops_analytic(model.config, profile[0], 9, method=IDSelection(profile[0], **scored)).select
    assert chosen + earlier == cost.select
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_cache_bytes(model.config, profile, 9, torch.float32) == held


def test_a_profile_that_the_method_does_not_give_is_refused():
    model = tiny.build("clip", "eager", 6)
    method = get_method("pyramiddrop", budget=20)
    with pytest.raises(ValueError, match=r"keeps 36, 20, 11, 6 of 36 tokens, but visual_tokens says 20"):
        flops_analytic(model.config, 20, 9, method=method)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("llava_next", None, "images of type 'llava_next' have no fixed size: give image_size"),
        ("qwen2_vl", None, "images of type 'qwen2_vl' have no fixed size: give image_size"),
        (
            "qwen2_vl",
            (12, 16),
            "image_size must be multiples of 8 x 8 pixels, as the processor gives images, not 12 x 16",
        ),
        ("internvl", (24, 36), "image_size must be multiples of 24 x 24 pixels"),
        ("llava_onevision", None, "images of type 'llava_onevision' have no fixed size: give image_size"),
        ("llava_next_video", None, "images of type 'llava_next_video' have no fixed size: give image_size"),
        ("idefics3", None, "images of type 'idefics3' have no fixed size: give image_size"),
        ("smolvlm", (24, 36), "image_size must be multiples of 36 x 36 pixels"),
        ("gemma3", 24, "images of type 'gemma3' are 32 x 32 pixels, not 24 x 24"),
        ("paligemma", 3, "image_size must be at least a patch, 4 x 4 pixels, not 3 x 3"),
        ("qwen2_audio", 2, "an audio clip must have 3 to 100 mel frames, not 2"),
        ("qwen2_audio", 101, "an audio clip must have 3 to 100 mel frames, not 101"),
        ("qwen2_audio", (24, 36), "the size of an audio clip is one number, its mel frames, not 24 x 36"),
    ],
)
def test_sizes_that_a_family_does_not_take_are_refused(name, size, message):
    with pytest.raises(ValueError, match=message):
        full_budget(FAMILIES[name].config(), size)


def test_a_configuration_without_a_fixed_image_size_is_read_without_size(tmp_path):
    FAMILIES["llava_next"].config().save_pretrained(tmp_path)
    config, size = read_config(tmp_path)
    assert isinstance(config, LlavaNextConfig)
    assert size is None


@pytest.mark.parametrize("window", [2, 9, 20, 256])
def test_a_sliding_window_caches_the_end_of_a_prompt(window):
    """What a layer's cache holds, and what the next token therefore reads."""
    family = FAMILIES["gemma3"]
    model, inputs = family.build("eager", window=window), family.alone(FIRST, 0)
    text = inputs["input_ids"].shape[1] - family.counts[0]
    with prune(model, Random(5)), FlopCounterMode(display=False) as counter:
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    config = family.config(window=window)
    steps = [flops_analytic_step(config, 5, text + step) for step in range(5)]
    assert counter.get_total_flops() == sum(part.total for part in [flops_analytic(config, 5, text), *steps])
    for step in (0, 4):
        assert steps[step] == flops_counted_step(config, 5, text + step)
    held = sum(tensor.nbytes for layer in answer.past_key_values.layers for tensor in (layer.keys, layer.values))
    assert kv_cache_bytes(config, 5, text + 5, torch.float32) == held


@pytest.mark.parametrize(("name", "knobs"), [("gemma3", {"window": 6}), ("gemma3", {"window": 20}), ("paligemma", {})])
def test_causal_pairs_equal_those_that_masks_allow(name, knobs):
    family = FAMILIES[name]
    config, inputs = family.config(**knobs), family.alone(FIRST, 0)
    ids = inputs["input_ids"]
    seen = family.beside(family.build("eager", **knobs), inputs, torch.ones_like(ids[0], dtype=torch.bool))
    kinds = config.text_config.layer_types if name == "gemma3" else [None] * 3
    masks = [seen["attention_mask"] if kind is None else seen["attention_mask"][kind] for kind in kinds]
    text = ids.shape[1] - family.counts[0]
    cost = flops_prefill(config, family.counts[0], text, attention="causal")
    assert cost.attention == sum(4 * int(mask.sum()) * 32 for mask in masks)


def test_large_images_of_onevision_are_scaled_down():
    family = FAMILIES["llava_onevision"]
    sizes = [(96, 48), (96, 40), (48, 48), (90, 48)]
    model = family.build()
    for size in sizes:
        pixels = torch.zeros(1, 9 if size[0] > 48 else 5, 3, 24, 24)
        with torch.no_grad():
            found = model.get_image_features(pixels, torch.tensor([size]), return_dict=True).pooler_output[0]
        assert full_budget(family.config(), size) == len(found)


@pytest.mark.parametrize("name", ["llava_next", "llava_next_video"])
def test_tiles_with_a_class_token_are_refused(name):
    config = FAMILIES[name].config(vision_feature_select_strategy="full")
    with pytest.raises(ValueError, match=f"of type '{name}' must leave one token a patch, not 'full'"):
        full_budget(config, (24, 24))


def test_a_number_that_needs_weights_is_refused():
    with _meta(), pytest.raises(RuntimeError, match="asks for a number that is not known without weights"):
        torch.ones(1, device="meta").item()


def test_tiles_of_internvl_come_with_a_thumbnail():
    config = FAMILIES["internvl"].config()
    assert [full_budget(config, size) for size in (None, (24, 48), (48, 48))] == [9, 27, 45]
    assert flops_analytic(config, 7, 9, image_size=(48, 48)) == flops_counted(config, 7, 9, image_size=(48, 48))
