"""What families that read videos frame by frame share, and what LLaVA-NeXT-Video and Video-LLaVA have of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import VideoLlavaImageProcessor

from idsel_core import TopK, Unavailable, adapter_for, prune
from idsel_core.methods import EVS, Downsample, VisionZip
from tests.support import families
from tests.support.families import FAMILIES, clip
from tests.support.family_prompts import CLOSE, GREEDY, tokens_of

NEXT, VIDEO = FAMILIES["llava_next_video"], FAMILIES["video_llava"]
BY_FRAME = {"llava_onevision": (9, 1), "llava_next_video": (9, 0), "video_llava": (37, 0)}
"""Tokens of a frame, and newlines at the end."""
VIDEOS = ((-1,), (0, -2))


@pytest.mark.parametrize("name", BY_FRAME)
@torch.no_grad()
def test_evs_keeps_tokens_that_change_between_frames(name):
    """A video that changes in its last frame, at the lower right."""
    model, (cells, newlines) = FAMILIES[name].build(), BY_FRAME[name]
    pixels = torch.randn(1, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1, 1)
    still, moved = pixels.clone(), pixels.clone()
    moved[0, 2, :, 16:, 16:] = 5.0
    ids = torch.tensor([[1, *[families.VIDEO] * (3 * cells + newlines), 7, 8]])
    off_grid = [cells * frame for frame in range(3)] if cells == 37 else [3 * cells] * newlines
    first = sorted({*range(cells), *off_grid})
    with prune(model, EVS(budget=len(first) + 1)) as run_:
        model(input_ids=ids, pixel_values_videos=still)
        model(input_ids=ids, pixel_values_videos=moved)
    assert all(set(first) < set(r.indices) for r in run_.report)
    # Of frames that are the same, the first token of the second is as new as any.
    assert set(run_.report[0].indices) - set(first) == {cells + (cells == 37)}
    (changed,) = set(run_.report[1].indices) - set(first)
    backbone = adapter_for(model)
    place = backbone.encode(pixel_values_videos=moved).grid[0, changed].tolist()
    assert changed >= 2 * cells and min(place) >= (4 if cells == 37 else 2)


@pytest.mark.parametrize("name", BY_FRAME)
@torch.no_grad()
def test_frame_scores_equal_image_scores(name):
    family, (cells, newlines) = FAMILIES[name], BY_FRAME[name]
    eager = family.build("eager")
    inputs, encoded, tokens = tokens_of(family, family.build(), VIDEOS, (0.0,))
    tower = eager.model.video_tower if name == "video_llava" else eager.model.vision_tower
    feeding = 2 if name == "llava_onevision" else 1
    for video, pixels in enumerate(inputs["pixel_values_videos"]):
        attentions = tower(pixels, output_attentions=True).attentions
        for depth, layer in (("", feeding), ("@0", 0)):
            heads = attentions[layer].mean(1)
            kinds = {"received_attention": heads.mean(1)}
            if family.has_cls:
                kinds["cls_attention"] = heads[:, 0]
            for kind, rows in kinds.items():
                if cells == 9:
                    rows = functional.avg_pool2d(rows[:, -36:].view(3, 6, 6), 2).flatten(1)
                wanted = functional.pad(rows.flatten(), (0, newlines))
                got = encoded.views[kind + depth]()[1 + video, : len(wanted)]
                torch.testing.assert_close(got, wanted, atol=1e-6, rtol=1e-4)
    numbers = [frame for frame in range(3) for _ in range(cells)] + [2] * newlines
    assert tokens.frames[1, : len(numbers)].tolist() == tokens.frames[2, : len(numbers)].tolist() == numbers
    assert bool((tokens.frames[0] == -1).all())
    assert torch.equal(tokens.mask.sum(1), encoded.placeholders) and encoded.video.tolist() == [False, True, True]


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
@torch.no_grad()
def test_llava_next_video_pools_before_the_projector(mode):
    """Of 7 x 7 patches, 3 x 3 tokens are made; the last row and column is left out."""
    vision = clip()
    vision.image_size = 28
    model = NEXT.build(vision_config=vision, spatial_pool_mode=mode)
    pixels = torch.randn(2, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    backbone = adapter_for(model)
    encoded = backbone.encode(pixel_values_videos=pixels)
    assert encoded.placeholders.tolist() == [27, 27]
    assert encoded.grid[1].view(3, 3, 3, 2)[2, 1, 0].tolist() == [1, 0]
    torch.testing.assert_close(backbone.project(encoded.encoder_features), encoded.features, **CLOSE)
    eager = NEXT.build("eager", vision_config=vision, spatial_pool_mode=mode)
    rows = eager.model.vision_tower(pixels[1], output_attentions=True).attentions[1].mean(1)[:, 0, 1:]
    wanted = functional.avg_pool2d(rows.view(3, 7, 7), 2).flatten()
    torch.testing.assert_close(encoded.views["cls_attention"]()[1], wanted, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_video_llava_reads_the_cls_token_of_each_frame():
    model = VIDEO.build()
    _, encoded, tokens = tokens_of(VIDEO, model, VIDEOS)
    assert encoded.placeholders.tolist() == [36, 111, 111]
    frames = tokens.grid[1].view(3, 37, 2)
    assert frames[:, 0].tolist() == [[-1, -1]] * 3
    assert frames[2, 1:].tolist() == [[row, column] for row in range(6) for column in range(6)]
    # Images have a tower of their own.
    model.model.image_tower.embeddings.patch_embedding.weight.zero_()
    changed = tokens_of(VIDEO, model, VIDEOS)[1]
    assert torch.equal(changed.features[1:], encoded.features[1:])
    assert not torch.equal(changed.features[0], encoded.features[0])


@pytest.mark.parametrize("family", [NEXT, VIDEO], ids=lambda family: family.name)
@torch.no_grad()
def test_views_that_videos_lack_are_refused(family):
    model = family.build()
    with prune(model, VisionZip(budget=8)) as run_:
        model.generate(**family.prompts(((0,), (1,))), **GREEDY)
        with pytest.raises(
            Unavailable, match=r"cls_features is not available: .* or a video was given, which has one for each"
        ):
            model(**family.prompts(VIDEOS))
    assert [r.after for r in run_.report] == [8, 8]
    why = "a smaller image is not available: (this model|frames of videos are)"
    with pytest.raises(Unavailable, match=why), prune(model, Downsample(budget=4)):
        model(**family.prompts(VIDEOS))
    # A prompt must hold what each video fills.
    inputs = family.prompts(((-1,),))
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][:, :2]
    with (
        prune(model, TopK(budget=4)),
        pytest.raises(ValueError, match=r"the prompts hold \d+ image placeholders \(token id 91\), but the 1 image"),
    ):
        model(**inputs)


@torch.no_grad()
def test_video_llava_accepts_the_output_of_its_processor():
    processor = VideoLlavaImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    given = dict(processor(Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)), return_tensors="pt"))
    (pixels,) = given.values()
    model, inputs = VIDEO.build(), VIDEO.prompts(((0,),))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    plain = model.generate(**inputs, **given, **GREEDY)
    with prune(model, TopK(budget=1.0)) as run_:
        assert torch.equal(model.generate(**inputs, **given, **GREEDY), plain)
        model(**inputs, **given)
    with prune(model, TopK(budget=5), full_logits=False):
        one = model(**inputs, **given).logits
        for name in ("pixel_values", "pixel_values_images"):
            assert torch.equal(one, model(**inputs, **{name: pixels}).logits)
    assert [r.before for r in run_.report] == [36, 36] and one.shape[1] == inputs["input_ids"].shape[1] - 31


def test_pruning_removes_its_hooks():
    model = VIDEO.build()

    def hooks():
        return [len(module._forward_pre_hooks) for module in model.modules()]

    before = hooks()
    with pytest.raises(KeyError), prune(model, TopK(budget=4)):
        model(**VIDEO.prompts(VIDEOS))
        raise KeyError
    assert hooks() == before
