"""What LLaVA-NeXT has of its own: tiles, newlines, padding that is cut off, budgets of tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextImageProcessorPil

from idsel_core import Random, TopK, Unavailable, UniformGrid, adapter_for, prune
from idsel_core.methods import FastV, HiRED, VScan
from idsel_core.pruning.budget_scope import select_by_tile
from tests.support import families, tiny
from tests.support.family_prompts import CLOSE, GREEDY, MIXED, tokens_of

FAMILY = families.FAMILIES["llava_next"]


@pytest.fixture(scope="module")
def model():
    return FAMILY.build()


def tiles_of(tokens, image):
    """Return the tile of each token as a pair, and the tokens of each tile."""
    length = int(tokens.lengths[image])
    named = [tuple(crop) for crop in tokens.crops[image, :length].tolist()]
    return {tile: [n for n, own in enumerate(named) if own == tile] for tile in sorted(set(named))}


@torch.no_grad()
def test_tokens_have_the_columns_of_the_model_s_packing(model):
    """Sizes 30 x 48 on 2 x 2 tiles: 12 columns and 8 of 12 rows, two cut off above and two below."""
    _, encoded, tokens = tokens_of(FAMILY, model, MIXED)
    assert tokens.lengths.tolist() == [140, 106, 78]
    assert tokens.grid[0, :36].tolist() == [[row, column] for row in range(6) for column in range(6)]
    assert tokens.crops[0, :36].tolist() == [[-1, -1]] * 36
    rows = tokens.grid[0, 36:].view(8, 13, 2), tokens.crops[0, 36:].view(8, 13, 2)
    for row in range(8):
        for column in range(12):
            assert rows[0][row, column].tolist() == [(row + 2) % 6, column % 6]
            assert rows[1][row, column].tolist() == [(row + 2) // 6, column // 6]
        assert rows[0][row, 12].tolist() == [-1, -1] and rows[1][row, 12].tolist() == [(row + 2) // 6, 1]
    newline = (tokens.grid[0] < 0).all(1)
    assert torch.equal(tokens.features[0, newline], model.model.image_newline.expand(8, -1))
    assert not tokens.saliency[0, newline].any() and not encoded.encoder_features[0, newline].any()
    assert tokens.keys.shape == (3, 140, 4, 8) and tokens.cls_features.shape == (3, 32)


@torch.no_grad()
def test_attention_rows_are_computed_per_tile(model):
    inputs, _, tokens = tokens_of(FAMILY, model, MIXED, (0.0,))
    tower = FAMILY.build("eager").model.vision_tower
    for image in range(3):
        # Layer 1 feeds the projector.
        output = tower(inputs["pixel_values"][image], output_attentions=True, output_hidden_states=True)
        for view, layer in ((tokens.cls_attention, 1), (tokens.at_depth("cls_attention", 0.0), 0)):
            rows = output.attentions[layer].mean(1)[:, 0, 1:].view(-1, 6, 6)
            for tile, (crop, members) in enumerate(tiles_of(tokens, image).items()):
                assert tile == 0 or crop[0] >= 0
                shown = [n for n in members if tokens.grid[image, n, 0] >= 0]
                row, column = tokens.grid[image, shown].unbind(1)
                torch.testing.assert_close(view[image, shown], rows[tile][row, column], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(tokens.cls_features[image], output.hidden_states[-2][0, 0], **CLOSE)


@torch.no_grad()
def test_token_counts_equal_those_of_the_processor(model):
    """A bright spot at the lower right of a wide picture is in the lower right tile."""
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24},
        crop_size={"height": 24, "width": 24},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    )
    picture = np.zeros((30, 48, 3), dtype=np.uint8)
    picture[20:30, 38:48] = 255
    given = dict(processor(Image.fromarray(picture), return_tensors="pt"))
    backbone = adapter_for(model)
    encoded = backbone.encode(**given)
    assert encoded.placeholders.tolist() == [140]
    blank = backbone.encode(**dict(processor(Image.fromarray(picture * 0), return_tensors="pt")))
    changed = (encoded.encoder_features - blank.encoder_features)[0].norm(dim=1)
    assert encoded.views["crops"]()[0, 36:][changed[36:].argmax()].tolist() == [1, 1]
    ids = torch.tensor([[1, *[families.IMAGE] * 140, 7, 8]])
    with prune(model, TopK(budget=9)) as run_:
        model.generate(input_ids=ids, **given, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(140, 9)]


@torch.no_grad()
def test_hired_divides_its_budget_among_tiles(model):
    _, _, tokens = tokens_of(FAMILY, model, MIXED, (0.0,))
    kept = HiRED(budget=30).select(tokens).rows()
    for image in range(3):
        tiles = tiles_of(tokens, image)
        assert sum(n in tiles[-1, -1] for n in kept[image].tolist()) == 15 and len(kept[image]) == 30


@pytest.mark.parametrize("budget", [5, 0.25])
@torch.no_grad()
def test_budget_per_tile_is_kept_in_each_tile(model, budget):
    with prune(model, TopK(budget=budget, importance="saliency"), budget_scope="tile") as run_:
        model.generate(**FAMILY.prompts(MIXED), **GREEDY)
    _, _, tokens = tokens_of(FAMILY, model, MIXED)
    for image, record in enumerate(run_.report):
        wanted = []
        for members in tiles_of(tokens, image).values():
            count = budget if isinstance(budget, int) else int(len(members) * budget + 0.5)
            best = tokens.saliency[image, members].sort(descending=True, stable=True).indices[:count]
            wanted += [members[place] for place in best.tolist()]
        assert record.order == wanted
        assert record.indices == sorted(wanted) and record.after == len(wanted)


@torch.no_grad()
def test_methods_select_from_tiles_as_from_images(model):
    _, encoded, tokens = tokens_of(FAMILY, model, MIXED, (0.25,))
    method = VScan(budget=6, layer=None)
    together = select_by_tile(method, tokens)
    assert together.counts.tolist() == [30, 18, 18]
    assert torch.equal(together.keep_mask(140) & ~tokens.mask, torch.zeros_like(tokens.mask))
    for image in range(3):
        for members in tiles_of(tokens, image).values():
            # The same tile as the one image of a batch.
            place = torch.tensor(members)
            one = encoded.take(torch.tensor([image]))
            views = {name: of()[:, place] for name, of in one.views.items() if "attention" in name}
            sources = {name: (lambda view=view: view) for name, view in views.items()}
            alone = method.select(
                type(tokens)(
                    tokens.features[image : image + 1, place],
                    torch.ones(1, len(place), dtype=torch.bool),
                    tokens.grid[image : image + 1, place],
                    sources,
                )
            )
            kept = place[alone.indices[0]]
            at = torch.isin(together.indices[image], kept).nonzero()[:, 0]
            assert together.indices[image, at].tolist() == kept.tolist()
            torch.testing.assert_close(together.features[image, at], alone.features[0], **CLOSE)
    draws = select_by_tile(Random(budget=6), tokens).rows()[0].tolist()
    tiles = [[members.index(n) for n in draws if n in members] for members in tiles_of(tokens, 0).values()]
    assert len({tuple(tile) for tile in tiles}) == len(tiles)


def test_impossible_budget_scopes_are_refused(model):
    with pytest.raises(ValueError, match="budget_scope must be one of image, tile, not 'crop'"):
        prune(model, UniformGrid(budget=4), budget_scope="crop")
    with pytest.raises(ValueError, match='fastv drops tokens inside the language model, where budget_scope="tile" has'):
        prune(model, FastV(budget=4), budget_scope="tile")
    llava, inputs = tiny.build(), tiny.prompts((1, 1))
    with prune(llava, TopK(budget=4)) as one, prune(llava, TopK(budget=4), budget_scope="tile") as other:
        llava(**inputs)
    with one:
        llava(**inputs)
    assert [r.order for r in one.report] == [r.order for r in other.report]


@torch.no_grad()
def test_tiles_may_be_concatenated(model):
    inputs = FAMILY.prompts(MIXED)
    tiles = torch.cat([image[:count] for image, count in zip(inputs["pixel_values"], (5, 3, 3), strict=True)])
    backbone = adapter_for(model)
    one, other = (
        backbone.encode(pixels, image_sizes=inputs["image_sizes"]) for pixels in (inputs["pixel_values"], tiles)
    )
    assert torch.equal(one.features, other.features)
    assert torch.equal(one.views["image_key"](), other.views["image_key"]())


def test_inputs_that_cannot_be_encoded_are_refused(model):
    backbone, inputs = adapter_for(model), FAMILY.prompts(MIXED)
    with pytest.raises(ValueError, match="images of any resolution need image_sizes"):
        backbone.encode(inputs["pixel_values"])
    with pytest.raises(Unavailable, match="a smaller image is not available: this model cuts images into tiles"):
        backbone.encode(inputs["pixel_values"], (3, 3), image_sizes=inputs["image_sizes"])
