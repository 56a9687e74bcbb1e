"""What Idefics3 and SmolVLM have of their own: tiles with words of the prompt between them, and pixel shuffle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Idefics3ImageProcessorPil, Idefics3Processor, PreTrainedTokenizerFast

from idsel_core import TopK, Unavailable, adapter_for, prune
from idsel_core.methods import HiRED
from tests.support import families
from tests.support.families import IMAGE
from tests.support.family_prompts import CLOSE, GREEDY, MIXED, tokens_of


@pytest.fixture(scope="module", params=["idefics3", "smolvlm"])
def family(request):
    return families.FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


@torch.no_grad()
def test_tokens_average_the_attention_of_their_patches(family, model):
    inputs, encoded, tokens = tokens_of(family, model, MIXED, (0.0,))
    factor, side = family.FACTOR, family.SIZE // 4
    watched = family.build("eager").model.vision_model
    pixels = inputs["pixel_values"].flatten(0, 1)
    pixels = pixels[pixels.flatten(1).any(1)]
    weights = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, output: weights.append(output[1]))
        for layer in watched.encoder.layers
    ]
    states = watched(pixels).last_hidden_state.view(-1, side, side, 32)
    for hook in hooks:
        hook.remove()
    tile = 0
    for image, count in enumerate((3, 5, 1)):
        for number in range(count):
            for token in range(9):
                at = 9 * number + token
                row, column = tokens.grid[image, at].tolist()
                assert (row, column) == (token // 3, token % 3)
                square = (tile, *(slice(factor * place, factor * place + factor) for place in (row, column)))
                for view, layer in ((tokens.saliency, 2), (tokens.at_depth("received_attention", 0.0), 0)):
                    patches = weights[layer].mean((1, 2)).view(-1, side, side)
                    torch.testing.assert_close(view[image, at], patches[square].mean(), atol=1e-6, rtol=1e-4)
                joined = encoded.encoder_features[image, at].view(-1, 32)
                torch.testing.assert_close(joined, states[square].flatten(0, 1), **CLOSE)
            tile += 1
    assert tokens.keys.shape == (3, 45, 4, 8)


@torch.no_grad()
def test_text_between_tiles_stays_and_budget_per_tile_is_kept_in_each_tile(family, model):
    inputs, _, tokens = tokens_of(family, model, MIXED)
    with prune(model, TopK(budget=4, importance="saliency"), budget_scope="tile") as run_:
        model.generate(**inputs, **GREEDY)
    assert [r.after for r in run_.report] == [12, 20, 4]
    for record in run_.report:
        tiles = [index // 9 for index in record.indices]
        assert all(tiles.count(tile) == 4 for tile in set(tiles))
    one = TopK(budget=1, importance="saliency")
    short = adapter_for(model).shorten(inputs, tokens, one.select(tokens))["input_ids"]
    for ids, shorter, images in zip(inputs["input_ids"], short, MIXED, strict=True):
        words = (tensor[(tensor != IMAGE) & (tensor != families.PAD)].tolist() for tensor in (ids, shorter))
        assert next(words) == next(words)
        assert int((shorter == IMAGE).sum()) == len(images)


@torch.no_grad()
def test_tile_layout_is_read_from_the_prompt(family, model):
    _, _, tokens = tokens_of(family, model, MIXED, (0.0,))
    crops = tokens.crops[:, ::9].tolist()
    assert crops[0][:3] == [[0, 0], [0, 1], [-1, -1]]
    assert crops[1] == [[0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]]
    assert crops[2][0] == [-1, -1]
    kept = HiRED(budget=10, attention="received").select(tokens).rows()[1]
    assert len(kept) == 10 and int((kept >= 36).sum()) == 5


def arguments(family, model, ids, tiles):
    pixels = torch.ones(1, tiles, 3, family.SIZE, family.SIZE)
    return adapter_for(model).image_arguments({"input_ids": torch.tensor([ids]), "pixel_values": pixels})


def test_thumbnails_separate_images(family, model):
    wide, whole, square = family.marks(1), family.marks(0), family.marks(2)
    # Nothing between images, frames of a video, and a name of several words that ends like others.
    found = arguments(family, model, [1, *wide, *square, *whole, *whole, 5], 10)
    assert (found["tiles"], found["columns"]) == ([3, 5, 1, 1], [2, 2, 0, 0])
    names = {81: [60, 61, 69], 82: [60, 62, 69], family.THUMBNAIL: [63, 69]}
    split = [word for token in [1, 60, *wide, 8, *wide, 5] for word in names.get(token, [token])]
    found = arguments(family, model, split, 6)
    assert (found["tiles"], found["columns"]) == ([3, 3], [2, 2])
    high = [token for row in (81, 82) for token in (family.MARKER, row, *[IMAGE] * 9, family.NEWLINE)]
    found = arguments(family, model, [1, *high, *whole, 5], 3)
    assert (found["tiles"], found["columns"]) == ([3], [1])


def test_each_run_of_placeholders_is_an_image_without_markers(family, model):
    found = arguments(family, model, [1, *[IMAGE] * 9, 5, *[IMAGE] * 18, 6], 3)
    assert found["tiles"] == [1, 2] and "columns" not in found
    found = arguments(family, model, [1, 5, *[IMAGE] * 9], 1)
    assert found["tiles"] == [1]


def test_inputs_that_cannot_be_encoded_are_refused(family, model):
    backbone, inputs = adapter_for(model), family.prompts(((1, 0),))
    with pytest.raises(Unavailable, match="a smaller image is not available: this model cuts images into tiles"):
        backbone.encode(inputs["pixel_values"], (3, 3))
    mask = inputs["pixel_attention_mask"].clone()
    mask[0, 2, :, -1] = 0
    with pytest.raises(ValueError, match=r"pixel_attention_mask hides part of tiles \[2\]; tiles must be whole"):
        backbone.encode(inputs["pixel_values"], pixel_attention_mask=mask)
    with pytest.raises(ValueError, match=r"pixel_values must be \(prompts, tiles, 3, height, width\), not \(4, 3, "):
        backbone.encode(inputs["pixel_values"][0])
    with pytest.raises(ValueError, match="pixel_values are all zero, which is padding: there is no image"):
        backbone.encode(inputs["pixel_values"] * 0)
    with pytest.raises(ValueError, match=r"the images have \[3\] tiles, but pixel_values has 4"):
        backbone.encode(inputs["pixel_values"], tiles=[3])
    assert backbone.encode(inputs["pixel_values"]).placeholders.tolist() == [9] * 4
    ids = [1, *[IMAGE] * 8, 5, IMAGE, 6]
    with pytest.raises(ValueError, match=r"must stand in one run, 9 for each tile; found runs of \[8, 1\]"):
        arguments(family, model, ids, 1)


@torch.no_grad()
def test_token_counts_equal_those_of_the_processor():
    """A bright spot at the lower right of a wide picture is in the lower right tile."""
    family = families.FAMILIES["idefics3"]
    model = family.build()
    special = ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>"]
    special += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    words = {"<pad>": 0, "what": 3, "is": 4, "this": 5, "\n": 96, "\n\n": 97, "<unk>": 2}
    words |= dict(zip(special, (IMAGE, 94, 98, 95, 81, 82, 83, 84), strict=True))
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    cutter = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    processor = Idefics3Processor(cutter, tokenizer, image_seq_len=9)
    picture = np.zeros((40, 48, 3), dtype=np.uint8)
    picture[30:40, 38:48] = 255
    small = np.full((24, 24, 3), 200, dtype=np.uint8)
    given = processor(
        text=["what is <image> this <image> what", "what is this", "is this <image>"],
        images=[[Image.fromarray(picture), Image.fromarray(small)], [], [Image.fromarray(small)]],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    backbone = adapter_for(model)
    images = backbone.image_arguments(given)
    assert images["tiles"][0] == 5 and images["columns"][0] == 2
    encoded = backbone.encode(**images)
    assert encoded.placeholders.tolist() == [9 * count for count in images["tiles"]]
    blank = processor(text="<image>", images=[[Image.fromarray(picture * 0)]], return_tensors="pt")
    plain_features = backbone.encode(**backbone.image_arguments(blank)).encoder_features
    changed = (encoded.encoder_features[:1] - plain_features)[0].norm(dim=1)
    assert encoded.views["crops"]()[0, changed[:36].argmax()].tolist() == [1, 1]
    given = {name: given[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")}
    plain_ids = model.generate(**given, **GREEDY)
    with prune(model, TopK(budget=1.0, importance="saliency")) as run_:
        assert torch.equal(model.generate(**given, **GREEDY), plain_ids)
    with prune(model, TopK(budget=7, importance="saliency")) as run_:
        model.generate(**given, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(int(count), 7) for count in encoded.placeholders]
