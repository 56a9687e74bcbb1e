"""What LLaVA-OneVision has of its own: tiles scaled down, images whole among several, pooled frames of videos."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import LlavaOnevisionImageProcessorPil, SiglipVisionConfig
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from idsel_core import Companion, TopK, Unavailable, adapter_for, prune
from idsel_core.methods import CDPruner, Downsample, VisionZip
from tests.support import families, tiny
from tests.support.families import FAMILIES, clip
from tests.support.family_prompts import CLOSE, GREEDY, MIXED, tokens_of

FAMILY = FAMILIES["llava_onevision"]
VIDEOS = ((-1,), (0, -2))
SEVERAL = ((1,), (), (3, 4))


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


def received(model, pixels, layer):
    """Return the mean attention that each patch receives, (tiles, rows, columns), as eager attention gives it."""
    tower = model.model.vision_tower
    return (
        tower(pixels, output_attentions=True).attentions[layer].mean((1, 2)).unflatten(1, (-1, pixels.shape[-1] // 4))
    )


@torch.no_grad()
def test_tokens_have_the_columns_of_the_model_s_packing(model):
    """96 x 40 pixels on 4 x 2 tiles: 24 rows and 10 of 12 columns, for which 18 and 7 are left."""
    _, encoded, tokens = tokens_of(FAMILY, model, MIXED)
    assert tokens.lengths.tolist() == [140, 180, 78]
    assert tokens.grid[1, :36].tolist() == [[row, column] for row in range(6) for column in range(6)]
    assert tokens.crops[1, :36].tolist() == [[-1, -1]] * 36
    grid, crops = tokens.grid[1, 36:].view(18, 8, 2), tokens.crops[1, 36:].view(18, 8, 2)
    for row in range(18):
        for column in range(7):
            # The nearest of the patches between which linear interpolation looks, of two the first.
            nearest = math.ceil((2 * row + 1) * 12 / 18 - 1), 1 + math.ceil((2 * column + 1) * 5 / 7 - 1)
            assert (6 * crops[row, column] + grid[row, column]).tolist() == list(nearest)
            assert bool((grid[row, column] >= 0).all()) and bool((grid[row, column] < 6).all())
        assert grid[row, 7].tolist() == [-1, -1] and crops[row, 7].tolist() == crops[row, 6].tolist()
    newline = (tokens.grid[1, :180] < 0).all(1)
    assert torch.equal(tokens.features[1, :180][newline], model.model.image_newline.expand(18, -1))
    assert not tokens.saliency[1, :180][newline].any() and not encoded.encoder_features[1, :180][newline].any()


@torch.no_grad()
def test_attention_rows_are_computed_per_tile_and_resized_with_the_tokens():
    eager = FAMILY.build("eager")
    inputs, _, tokens = tokens_of(FAMILY, FAMILY.build(), MIXED, (0.0,))
    for image, tiles in ((0, (2, 2)), (1, (4, 2)), (2, (1, 1))):
        # Layer 2, the last one, feeds the projector.
        for view, layer in ((tokens.saliency, 2), (tokens.at_depth("received_attention", 0.0), 0)):
            count = 1 + tiles[0] * tiles[1]
            of_tile = received(eager, inputs["pixel_values"][image, :count], layer)
            mosaic = of_tile[1:].view(*tiles, 6, 6).transpose(1, 2).reshape(1, 6 * tiles[0], 6 * tiles[1])
            mosaic = unpad_image(mosaic, inputs["image_sizes"][image])
            if image == 1:
                mosaic = functional.interpolate(mosaic[None], (18, 7), mode="bilinear")[0]
            wanted = torch.cat([of_tile[0].flatten(), functional.pad(mosaic[0], (0, 1)).flatten()])
            torch.testing.assert_close(view[image, : len(wanted)], wanted, atol=1e-6, rtol=1e-4)
    assert tokens.keys.shape == (3, 180, 4, 8)


@torch.no_grad()
def test_each_of_several_images_is_one_tile(model):
    _, encoded, tokens = tokens_of(FAMILY, model, SEVERAL)
    assert encoded.placeholders.tolist() == [140, 37, 37]
    for image in (1, 2):
        assert tokens.crops[image, :37].tolist() == [[-1, -1]] * 37
        assert tokens.grid[image, 36].tolist() == [-1, -1] and tokens.grid[image, 35].tolist() == [5, 5]
    with prune(model, TopK(budget=5, importance="saliency"), budget_scope="tile") as run_:
        model(**FAMILY.prompts(SEVERAL))
    assert [r.after for r in run_.report] == [25, 5, 5]


@pytest.mark.parametrize("side", [24, 28])
@torch.no_grad()
def test_frames_are_pooled(side):
    """Of 7 x 7 patches, 4 x 4 tokens are left, which lie between patches that count unlike."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision = SiglipVisionConfig(**vision, image_size=side, patch_size=4, vision_use_head=False)
    knobs = {"vision_config": vision, "vision_feature_layer": [-3, -2]}
    model, eager = FAMILY.build(**knobs), FAMILY.build("eager", **knobs)
    pixels = torch.randn(2, 3, 3, side, side, generator=torch.Generator().manual_seed(0))
    backbone = adapter_for(model)
    encoded = backbone.encode(pixel_values_videos=pixels)
    pooled, cells = (side // 4 + 1) // 2, ((side // 4 + 1) // 2) ** 2
    assert encoded.placeholders.tolist() == [3 * cells + 1] * 2
    for video in range(2):
        wanted = received(eager, pixels[video], 1).flatten(1)[..., None]
        wanted = functional.pad(model.model.apply_pooling(wanted).flatten(), (0, 1))
        torch.testing.assert_close(encoded.views["received_attention"]()[video], wanted, atol=1e-6, rtol=1e-4)
    assert encoded.grid[1, :-1].view(3, pooled, pooled, 2)[2, 1, 0].tolist() == [1, 0]
    assert encoded.grid[:, -1].tolist() == [[-1, -1]] * 2
    assert encoded.views["frames"]()[0].tolist() == [0] * cells + [1] * cells + [2] * (cells + 1)
    torch.testing.assert_close(backbone.project(encoded.encoder_features), encoded.features, **CLOSE)
    wanted = model.model.get_video_features(pixels, return_dict=True).pooler_output
    assert torch.equal(encoded.features, wanted)


@torch.no_grad()
def test_one_batch_may_hold_images_and_videos(model):
    inputs, encoded, tokens = tokens_of(FAMILY, model, VIDEOS, (0.0,))
    assert encoded.video.tolist() == [False, True, True]
    backbone = adapter_for(model)
    images = backbone.encode(inputs["pixel_values"], image_sizes=inputs["image_sizes"])
    videos = backbone.encode(pixel_values_videos=inputs["pixel_values_videos"])
    for view in ("received_attention", "keys"):
        both = encoded.views[view]()
        assert torch.equal(both[:1], images.views[view]()) and torch.equal(both[1:, :28], videos.views[view]())
        assert not both[1:, 28:].any()
    assert encoded.views["image_key"]().tolist() == [
        *images.views["image_key"]().tolist(),
        *videos.views["image_key"]().tolist(),
    ]
    assert torch.equal(tokens.frames[1:, :28], videos.views["frames"]()) and bool((tokens.frames[0] == -1).all())
    assert torch.equal(tokens.crops[:1], images.views["crops"]()) and bool((tokens.crops[1:] == -1).all())
    assert "received_attention@0" in encoded.views
    with prune(model, TopK(budget=4, importance="saliency"), budget_scope="tile") as run_:
        model(**inputs)
    assert [r.after for r in run_.report] == [8, 4, 4]


@torch.no_grad()
def test_relevance_of_frames_is_that_of_pooled_patches(model):
    companion = Companion(tiny.companion())
    inputs = FAMILY.prompts(VIDEOS)
    backbone = adapter_for(model, companion)
    encoded = backbone.encode(**backbone.image_arguments(inputs))
    got = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"]).relevance
    states = []
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.model.get_video_features(inputs["pixel_values_videos"], return_dict=True)
    hook.remove()
    pooled = model.model.apply_pooling(states[0]).reshape(2, 27, 32)
    # All text of a prompt asks.
    marks = torch.tensor([families.BOS, families.PAD, families.IMAGE, families.VIDEO])
    for video in (0, 1):
        ids = inputs["input_ids"][video]
        text = ids[~torch.isin(ids, marks)][None]
        asked = companion.embed_text(text, torch.ones_like(text))
        wanted = functional.cosine_similarity(companion.project(pooled[video]), asked)
        torch.testing.assert_close(got[1 + video, :27], wanted, **CLOSE)
        assert got[1 + video, 27] == 0
    with prune(model, CDPruner(6), relevance=companion) as run_:
        model(**inputs)
    assert [r.after for r in run_.report] == [6, 6, 6]


@torch.no_grad()
def test_towers_with_a_cls_token_give_cls_attention():
    model = FAMILY.build(vision_config=clip(), vision_feature_select_strategy="default")
    eager = FAMILY.build("eager", vision_config=clip(), vision_feature_select_strategy="default")
    inputs, _, tokens = tokens_of(FAMILY, model, SEVERAL)
    output = eager.model.vision_tower(inputs["pixel_values"][1, :1], output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(tokens.saliency[1, :36], output.attentions[-1][0].mean(0)[0, 1:], **CLOSE)
    again = adapter_for(model).project(tokens.cls_features[:, None])
    wanted = model.model.multi_modal_projector(output.hidden_states[-1][:, 0])
    torch.testing.assert_close(again[1], wanted, **CLOSE)
    with prune(model, VisionZip(budget=8, attention="cls")) as run_:
        model(**inputs)
        with pytest.raises(
            Unavailable, match=r"cls_features is not available: .* or a video was given, which has one for each"
        ):
            model(**FAMILY.prompts(((-1,),)))
    assert [r.after for r in run_.report] == [8, 8, 8]
    assert "cls_attention" in tokens_of(FAMILY, model, VIDEOS)[1].views


@torch.no_grad()
def test_merged_tokens_enter_the_projector_as_one():
    """Means of patches, and of a patch and a newline, as in LLaVA-NeXT, and means of what lies between patches."""
    model = FAMILY.build()
    _, encoded, _ = tokens_of(FAMILY, model, MIXED)
    backbone, (whole, scaled, _) = adapter_for(model), encoded.encoder_features
    newline = whole[int((encoded.grid[0] < 0).all(1).nonzero()[0])]
    merged = torch.stack([(whole[0] + whole[1]) / 2, (whole[2] + newline) / 2, newline, (scaled[40] + scaled[41]) / 2])
    projector = model.model.multi_modal_projector
    patches, weights = ((scaled[40] + scaled[41]) / 2)[:128].view(4, 32), (scaled[40] + scaled[41])[128:] / 2
    assert bool((weights > 0).all())
    wanted = [projector((whole[0] + whole[1])[:32] / 2), projector(whole[2, :32] / 2), model.model.image_newline]
    wanted.append((projector(patches) * weights[:, None]).sum(0))
    torch.testing.assert_close(backbone.project(merged[None])[0], torch.stack(wanted), **CLOSE)


@torch.no_grad()
def test_aspect_ratio_of_a_call_is_inferred_from_its_tokens(model):
    """At most nine tiles' worth of tokens: as many as there are."""
    inputs = FAMILY.prompts(((2,),))
    ids = inputs["input_ids"][0].tolist()
    at = ids.index(families.IMAGE)
    count = 36 + 24 * 11
    ids[at : at + 180] = [families.IMAGE] * count
    inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    plain = model.generate(**inputs, vision_aspect_ratio="anyres_max_9", **GREEDY)
    with prune(model, TopK(budget=1.0)) as run_:
        assert torch.equal(model.generate(**inputs, vision_aspect_ratio="anyres_max_9", **GREEDY), plain)
    assert [r.before for r in run_.report] == [count]


@pytest.mark.parametrize("several", [False, True])
@torch.no_grad()
def test_token_counts_equal_those_of_the_processor(model, several):
    """A bright spot at the lower right of a tall picture is in the lower right tile, or at the right of the whole."""
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 24, "width": 24}, image_grid_pinpoints=model.config.image_grid_pinpoints
    )
    picture = np.zeros((96, 40, 3), dtype=np.uint8)
    spot = picture.copy()
    spot[84:96, 28:40] = 255
    backbone, found = adapter_for(model), []
    for last in (picture, spot):
        images = [Image.fromarray(picture), Image.fromarray(last)] if several else [Image.fromarray(last)]
        given = dict(processor([images], return_tensors="pt"))
        found.append(backbone.encode(**given))
    assert found[0].placeholders.tolist() == ([37, 37] if several else [180])
    changed = (found[1].encoder_features - found[0].encoder_features)[-1].norm(dim=1)
    if not several:
        changed[:36] = 0
    place, crop = found[0].grid[-1, changed.argmax()], found[0].views["crops"]()[-1, changed.argmax()]
    assert crop.tolist() == ([-1, -1] if several else [3, 1])
    assert int(place[0]) >= 3 and int(place[1]) >= 3
    ids = torch.tensor([[1, *[families.IMAGE] * int(found[0].placeholders.sum()), 7, 8]])
    with prune(model, TopK(budget=9)) as run_:
        model.generate(input_ids=ids, **given, **GREEDY)
    assert [r.after for r in run_.report] == [9, 9][: 1 + several]


def test_inputs_that_cannot_be_encoded_are_refused(model):
    backbone, inputs = adapter_for(model), FAMILY.prompts(SEVERAL)
    pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
    with pytest.raises(ValueError, match="pixel_values or pixel_values_videos must be given"):
        backbone.encode()
    with pytest.raises(ValueError, match=r"pixel_values_videos must be \(videos, frames, 3, height, width\), not"):
        backbone.encode(pixel_values_videos=pixels[0])
    with pytest.raises(ValueError, match="images of any resolution need image_sizes"):
        backbone.encode(pixels)
    with pytest.raises(ValueError, match="batch_num_images names 2 images, but there are sizes of 3"):
        backbone.encode(pixels, image_sizes=sizes, batch_num_images=torch.tensor([2]))
    with pytest.raises(Unavailable, match="a smaller image is not available: this model cuts images into tiles of"):
        backbone.target_grid(Downsample(budget=4), pixel_values=pixels)
    whole = FAMILY.build(vision_config=clip(), vision_feature_select_strategy="full")
    with pytest.raises(ValueError, match=r"36 patches of each tile must enter the projector, not 37: .*\"default\""):
        adapter_for(whole).encode(pixels[1:], image_sizes=sizes[1:], batch_num_images=torch.tensor([2]))


@torch.no_grad()
def test_patches_match_images_of_published_size():
    """27 x 27 patches a tile, up to 6 x 6 tiles, at most nine tiles' worth of tokens."""
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=384, patch_size=14
    )
    model = FAMILY.build(vision_config=vision, image_grid_pinpoints=None, vision_aspect_ratio="anyres_max_9")
    backbone, generator = adapter_for(model), torch.Generator().manual_seed(0)
    scaled = 0
    for size in torch.randint(40, 2600, (24, 2), generator=generator):
        (tiles,) = backbone._tiles(size[None], {})
        values = torch.randn(tiles, 27 * 27, 3, generator=generator)
        wanted, _ = model.model.pack_image_features([values], [size], torch.full((3,), 7.0), "anyres_max_9")
        patches, grid, crops = backbone._places(tiles, 0, size, {})
        shown = (grid >= 0).all(1)
        torch.testing.assert_close(patches.mean(values.flatten(0, 1))[shown], wanted[0][shown], atol=1e-4, rtol=1e-4)
        assert bool((wanted[0][~shown] == 7).all()) and not patches.weights[~shown].any()
        # No two tokens have one place.
        places = torch.cat([crops, grid], 1)[shown]
        assert len(places.unique(dim=0)) == len(places)
        scaled += bool((patches.weights.amax(1)[shown] < 1).any())
    assert 4 < scaled < 20
