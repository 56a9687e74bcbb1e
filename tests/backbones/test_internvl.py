"""What InternVL has of its own: tiles that are told apart by the prompt alone, and pixel shuffle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GotOcr2ImageProcessorPil, PreTrainedTokenizerFast

from idsel_core import IDSelection, TopK, Unavailable, adapter_for, prune
from tests.support import families
from tests.support.family_prompts import ALL, CLOSE, GREEDY, MIXED, tokens_of
from tests.support.llava_prompts import run

FAMILY = families.FAMILIES["internvl"]


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


@torch.no_grad()
def test_tokens_average_the_attention_of_their_patches(model):
    inputs, encoded, tokens = tokens_of(FAMILY, model, MIXED, (0.0,))
    assert tokens.lengths.tolist() == [18, 27, 9]
    # Layer 2 is the last one, and feeds the projector.
    output = FAMILY.build("eager").model.vision_tower(inputs["pixel_values"], output_attentions=True)
    states = output.last_hidden_state[:, 1:].view(-1, 6, 6, 32)
    tile = 0
    for image, count in enumerate((2, 3, 1)):
        for number in range(count):
            for token in range(9):
                at = 9 * number + token
                row, column = tokens.grid[image, at].tolist()
                assert (row, column) == (token // 3, token % 3)
                square = (tile, slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
                for view, layer in ((tokens.cls_attention, 2), (tokens.at_depth("cls_attention", 0.0), 0)):
                    patches = output.attentions[layer].mean(1)[:, 0, 1:].view(-1, 6, 6)
                    torch.testing.assert_close(view[image, at], patches[square].mean(), atol=1e-6, rtol=1e-4)
                joined = encoded.encoder_features[image, at].view(4, 32)
                wanted = states[square].flatten(0, 1)
                torch.testing.assert_close(joined.sort(dim=0).values, wanted.sort(dim=0).values, **CLOSE)
            tile += 1
    assert tokens.keys.shape == (3, 27, 4, 8)


@torch.no_grad()
def test_budget_per_tile_is_kept_in_each_tile(model):
    inputs = FAMILY.prompts(MIXED)
    with prune(model, TopK(budget=4, importance="saliency"), budget_scope="tile") as run_:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [r.after for r in run_.report] == [8, 12, 4]
    for record in run_.report:
        tiles = [index // 9 for index in record.indices]
        assert all(tiles.count(tile) == 4 for tile in set(tiles))


@pytest.fixture(scope="module")
def processor():
    """Return the family's image processor and a tokenizer, which its processor joins where torchvision is installed."""
    words = {"[PAD]": families.PAD, "[UNK]": 2, "what": 5, "is": 6, "this": 7, "and": 8}
    marks = {"<img>": families.START, "<IMG_CONTEXT>": families.IMAGE, "</img>": families.END}
    tokenizer = Tokenizer(models.WordLevel(words | marks, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(marks))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", padding_side="left")
    pictures = GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, crop_to_patches=True, max_patches=4)

    def process(images, prompts):
        given = pictures(images, return_tensors="pt")
        counts = iter(given["num_patches"].tolist())
        texts = []
        for prompt in prompts:
            first, *rest = prompt.split("<image>")
            texts.append(first + "".join(f"<img>{'<IMG_CONTEXT>' * 9 * next(counts)}</img>{part}" for part in rest))
        words = fast(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        return {**words, "pixel_values": given["pixel_values"]}

    return process


def picture(height, width, bright=None):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    if bright is not None:
        pixels[bright] = 255
    return Image.fromarray(pixels)


@torch.no_grad()
def test_prune_accepts_the_output_of_the_image_processor(model, processor):
    pictures = [picture(24, 72), picture(24, 24), picture(48, 24)]
    inputs = processor(pictures, ["<image> what is this", "this <image> and <image> is what"])
    plain = run(model, inputs, **GREEDY)
    with prune(model, ALL) as run_:
        same = run(model, inputs, **GREEDY)
    assert [r.before for r in run_.report] == [36, 9, 27]
    assert torch.equal(same.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))
    with prune(model, IDSelection(budget=5, importance="unified")) as run_:
        model.generate(**inputs, **GREEDY)
    assert [r.after for r in run_.report] == [5, 5, 5]


@torch.no_grad()
def test_grid_coordinates_follow_tiles_and_cells_of_the_image(model, processor):
    """A bright corner at the lower right of three tiles in a row is in the last cell of the third."""
    backbone, encoded = adapter_for(model), []
    for bright in ((slice(16, 24), slice(64, 72)), None):
        inputs = processor([picture(24, 72, bright)], ["<image> what"])
        encoded.append(backbone.encode(**backbone.image_arguments(inputs)))
    shown, blank = encoded
    assert shown.views["tiles"]()[0].tolist() == [number for number in range(4) for _ in range(9)]
    changed = (shown.encoder_features - blank.encoder_features)[0].norm(dim=1)
    assert not changed[:18].any() and changed[18:].all()
    assert int(changed[:27].argmax()) == 26 and shown.grid[0, 26].tolist() == [2, 2]


def test_tiles_count_as_images_by_default(model):
    backbone, inputs = adapter_for(model), FAMILY.prompts(MIXED)
    assert backbone.image_arguments(inputs)["tiles"] == [2, 3, 1]
    assert backbone.encode(inputs["pixel_values"]).placeholders.tolist() == [9] * 6
    with pytest.raises(ValueError, match=r"the images have \[2, 3\] tiles, but pixel_values has 6"):
        backbone.encode(inputs["pixel_values"], tiles=[2, 3])
    with pytest.raises(Unavailable, match="a smaller image is not available: this model cuts images into tiles"):
        backbone.encode(inputs["pixel_values"], (2, 2))


def test_split_runs_of_placeholders_are_refused(model):
    inputs = FAMILY.prompts(((0, 0),))
    ids = inputs["input_ids"][0].tolist()
    start = ids.index(families.IMAGE)
    ids[start], ids[start - 2] = ids[start - 2], ids[start]
    with (
        prune(model, TopK(budget=4)),
        pytest.raises(ValueError, match=r"must stand in one run, 9 for each tile; found"),
    ):
        model(**{**inputs, "input_ids": torch.tensor([ids])})


def test_pruning_removes_its_hooks(model):
    def hooks():
        return [len(module._forward_pre_hooks) for module in model.modules()]

    before, inputs = hooks(), FAMILY.prompts(MIXED)
    for budget in (4, 40):
        with pytest.raises((KeyError, ValueError)), prune(model, TopK(budget=budget)):
            model(**inputs)
            model.generate(**inputs, max_new_tokens=1)
            raise KeyError
        assert hooks() == before
