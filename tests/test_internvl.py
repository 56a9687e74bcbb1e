"""What InternVL has of its own: tiles that are told apart by the prompt alone, and pixel shuffle."""

from __future__ import annotations

import families
import pytest
import torch
from test_families import CLOSE, MIXED, tokens_of

from idsel_core import TopK, Unavailable, adapter_for, prune

FAMILY = families.FAMILIES["internvl"]


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


@torch.no_grad()
def test_tokens_have_the_means_of_the_patches_that_were_joined(model):
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
def test_a_budget_of_tiles_is_spent_in_each(model):
    inputs = FAMILY.prompts(MIXED)
    with prune(model, TopK(budget=4, importance="saliency"), budget_scope="tile") as run_:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [r.after for r in run_.report] == [8, 12, 4]
    for record in run_.report:
        tiles = [index // 9 for index in record.indices]
        assert all(tiles.count(tile) == 4 for tile in set(tiles))


def test_tiles_are_images_of_their_own_where_nothing_else_is_said(model):
    backbone, inputs = adapter_for(model), FAMILY.prompts(MIXED)
    assert backbone.image_arguments(inputs)["tiles"] == [2, 3, 1]
    assert backbone.encode(inputs["pixel_values"]).placeholders.tolist() == [9] * 6
    with pytest.raises(ValueError, match=r"images have \[2, 3\] tiles, but there are pixels of 6"):
        backbone.encode(inputs["pixel_values"], tiles=[2, 3])
    with pytest.raises(Unavailable, match="a smaller image is not available: images are cut into tiles"):
        backbone.encode(inputs["pixel_values"], (2, 2))


def test_images_in_pieces_are_refused(model):
    inputs = FAMILY.prompts(((0, 0),))
    ids = inputs["input_ids"][0].tolist()
    start = ids.index(families.IMAGE)
    ids[start], ids[start - 2] = ids[start - 2], ids[start]
    with (
        prune(model, TopK(budget=4)),
        pytest.raises(ValueError, match=r"must stand in one run, 9 for each tile; found"),
    ):
        model(**{**inputs, "input_ids": torch.tensor([ids])})


def test_pruning_leaves_no_hook_behind(model):
    def hooks():
        return [len(module._forward_pre_hooks) for module in model.modules()]

    before, inputs = hooks(), FAMILY.prompts(MIXED)
    for budget in (4, 40):
        with pytest.raises((KeyError, ValueError)), prune(model, TopK(budget=budget)):
            model(**inputs)
            model.generate(**inputs, max_new_tokens=1)
            raise KeyError
        assert hooks() == before
