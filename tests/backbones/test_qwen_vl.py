"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL have of their own: merged patches, windows, sizes, positions of three axes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from idsel_core import Random, TopK, Unavailable, adapter_for, prune
from idsel_core.backbones import Encoded
from idsel_core.methods import DART, FastV, IDSelection, IDSelectionInside, PyramidDrop, SparseVLM, ToMe
from tests.support import families
from tests.support.family_prompts import ALL, BARRED, CLOSE, GREEDY, MIXED, by_hand, ragged, tokens_of
from tests.support.llava_prompts import Fixed, run

NAMES = [name for name, family in families.FAMILIES.items() if isinstance(family, families.QwenVL)]
LAYOUT = ((1,), (2, 0))


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return families.FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


@torch.no_grad()
def slow_attention(model, pixels, sizes, layer):
    """Return the mean attention that patches receive in one layer, and their keys, in the order of the processor."""
    visual, caught = model.model.visual, {}
    hook = visual.blocks[layer].attn.register_forward_pre_hook(
        lambda _, args, kwargs: caught.update(hidden=args[0], places=kwargs["position_embeddings"]), with_kwargs=True
    )
    visual(pixels, grid_thw=sizes)
    hook.remove()
    attention, count = visual.blocks[layer].attn, len(pixels)
    query, key, _ = attention.qkv(caught["hidden"]).view(count, 3, 4, 8).unbind(1)
    cos, sin = (part[:, None] for part in caught["places"])
    query, key = (x * cos + torch.cat([-x[..., 4:], x[..., :4]], -1) * sin for x in (query, key))
    frame = torch.cat(
        [
            torch.full((rows * columns,), image * 10.0 + t)
            for image, (frames, rows, columns) in enumerate(sizes.tolist())
            for t in range(frames)
        ]
    )
    places = torch.arange(count, dtype=torch.float64)
    if hasattr(visual, "window_size"):
        from transformers.vision_utils import get_vision_window_index

        windows, _ = get_vision_window_index(sizes, 2, visual.window_size, 4)
        places = visual.permute_input_for_window_attn(places[:, None], windows, count)[:, 0]
    places = places.long()
    logits = torch.einsum("qhd,khd->hqk", query, key) / 8**0.5
    logits = logits.masked_fill(frame[places][:, None] != frame[places], -torch.inf)
    received = torch.zeros(count)
    for patch in range(count):
        mine = frame[places] == frame[places][patch]
        received[places[patch]] = logits.softmax(-1)[:, mine, patch].mean()
    return received, torch.zeros_like(key).index_copy(0, places, key)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_saliency_averages_the_attention_that_a_token_s_patches_receive_in_their_frame(family, model, kind):
    layout = LAYOUT if kind == "image" else ((-2,), (-1,))
    tower_depths = (0.0, 1.0)
    inputs, encoded, tokens = tokens_of(family, model, layout, tower_depths)
    pixels, sizes = (
        inputs[name]
        for name in (
            ("pixel_values", "image_grid_thw") if kind == "image" else ("pixel_values_videos", "video_grid_thw")
        )
    )
    last = max(adapter_for(model).whole_layers)
    for view, layer in ((tokens.saliency, last), (tokens.at_depth("received_attention", 0.0), 0)):
        received, keys = slow_attention(model, pixels, sizes, layer)
        torch.testing.assert_close(view[tokens.mask], received.view(-1, 4).mean(1), atol=1e-6, rtol=1e-4)
    _, keys = slow_attention(model, pixels, sizes, last)
    torch.testing.assert_close(tokens.keys[tokens.mask], keys.view(-1, 4, 4, 8).mean(1), **CLOSE)
    assert torch.equal(tokens.at_depth("keys", 1.0), tokens.keys)
    assert not encoded.views["received_attention"]()[~tokens.mask].any()


def test_saliency_comes_from_full_attention_layers():
    family = families.FAMILIES["qwen2_5_vl"]
    backbone = adapter_for(family.build())
    assert backbone.whole_layers == [0, 2]
    _, encoded, _ = tokens_of(family, backbone.model, LAYOUT, (0.25, 0.5, 0.75, 1.0))
    rows = {depth: encoded.views[f"received_attention@{depth}"]() for depth in ("0.25", "0.5", "0.75", "1")}
    assert torch.equal(rows["0.25"], rows["0.5"]) and torch.equal(rows["0.75"], rows["1"])
    assert not torch.equal(rows["0.5"], rows["0.75"])
    with pytest.raises(Unavailable, match="every layer of this vision tower attends within windows"):
        tokens_of(family, family.build(fullatt_block_indexes=[]), LAYOUT)


def test_grid_coordinates_are_those_of_the_image(family, model):
    """A bright spot is found where the processor of the family puts it."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096}
    )
    picture = np.zeros((24, 40, 3), dtype=np.uint8)
    picture[16:24, 8:16] = 255
    given = processor(Image.fromarray(picture), return_tensors="pt")
    assert given["image_grid_thw"].tolist() == [[1, 6, 10]]
    backbone = adapter_for(model)
    encoded = backbone.encode(**given)
    assert encoded.grid[0].tolist() == [[row, column] for row in range(3) for column in range(5)]
    brightest = int(given["pixel_values"].view(15, -1).mean(1).argmax())
    assert encoded.grid[0, brightest].tolist() == [2, 1]
    ids = torch.tensor([[1, families.START, *[families.IMAGE] * 15, families.END, 7]])
    with prune(model, TopK(budget=0.2)) as run_, torch.no_grad():
        model.generate(input_ids=ids, **family.marked(ids), **given, **GREEDY)
    assert [(r.before, r.after) for r in run_.report] == [(15, 3)]


def test_video_frames_are_numbered_after_images(family, model):
    _, encoded, tokens = tokens_of(family, model, ((1, -1), (-2,)))
    assert encoded.video.tolist() == [False, True, True]
    assert tokens.frames[0, :15].tolist() == [-1] * 15
    assert tokens.frames[1, :24].tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert tokens.frames[2, :18].tolist() == [0] * 9 + [1] * 9
    assert tokens.grid[2, :9].tolist() == tokens.grid[2, 9:18].tolist() == [[r, c] for r in range(3) for c in range(3)]


@torch.no_grad()
def test_one_prompt_may_hold_images_and_videos(family, model):
    layout = ((1, -1, 0), (-2, 2))
    inputs, method = family.prompts(layout), ragged(family, layout)
    wanted = [by_hand(family, model, layout, row, method.picks, 4) for row in range(2)]
    plain = run(model, inputs, **GREEDY)
    with prune(model, method):
        got = run(model, inputs, **GREEDY)
    for row, (logits, chosen, _) in enumerate(wanted):
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
        assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen
    with prune(model, ALL):
        everything = run(model, inputs, **GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, everything.logits, strict=True))


@torch.no_grad()
def test_kept_tokens_keep_the_positions_of_the_full_prompt(family, model):
    inputs = family.prompts(MIXED)
    full, deltas = model.model.get_rope_index(
        **{name: inputs.get(name) for name in ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")}
    )
    _, _, tokens = tokens_of(family, model, MIXED)
    backbone, method = adapter_for(model), ragged(family, MIXED)
    short = backbone.shorten(inputs, tokens, method.select(tokens))
    real, mask = inputs["attention_mask"].bool(), short["attention_mask"].bool()
    text = ~torch.isin(inputs["input_ids"], torch.tensor(BARRED))
    for row in range(len(MIXED)):
        keep = real[row] & text[row]
        picks = [pick for at, pick in zip((0, 2, 2), method.picks, strict=True) if at == row]
        columns = (~text[row]).nonzero()[:, 0]
        ends = np.cumsum([0, *[family.counts[size] for size in MIXED[row]]])
        for start, pick in zip(ends, picks, strict=False):
            keep[columns[start + torch.tensor(pick)]] = True
        assert torch.equal(short["position_ids"][1:, row, mask[row]], full[:, row, keep])
        assert short["position_ids"][0, row, mask[row]].tolist() == list(range(int(mask[row].sum())))
    assert torch.equal(model.model.rope_deltas, deltas + real.sum(1, keepdim=True) - mask.sum(1, keepdim=True))


@pytest.mark.parametrize("mask", [True, False])
@torch.no_grad()
def test_prompts_without_token_types_or_mask_match_the_model(family, model, mask):
    inputs = family.prompts(((1,),))
    dropped = {"attention_mask"} if not mask else set()
    if family.name == "qwen2_5_vl":
        dropped |= {"mm_token_type_ids"}
    inputs = {name: value for name, value in inputs.items() if name not in dropped}
    plain, logits = run(model, inputs, **GREEDY), model(**inputs).logits
    with prune(model, ALL):
        pruned = run(model, inputs, **GREEDY)
        assert torch.equal(model(**inputs).logits, logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    with prune(model, TopK(budget=4, importance="unified")):
        model(**inputs)


def test_image_keys_tell_images_apart(family, model):
    _, encoded, _ = tokens_of(family, model, ((1, 1), (-1,)))
    keys = encoded.views["image_key"]()
    assert len(set(keys.tolist())) == 3
    with prune(model, Random(budget=4)) as run_, torch.no_grad():
        model(**family.prompts(((1, 1), (-1,))))
        model(**family.alone(((1, 1), (-1,)), 1))
    assert run_.report[2].indices == run_.report[3].indices


def test_inputs_that_cannot_be_encoded_are_refused(family, model):
    backbone, inputs = adapter_for(model), family.prompts(LAYOUT)
    with pytest.raises(ValueError, match="image patches need image_grid_thw"):
        backbone.encode(inputs["pixel_values"])
    with pytest.raises(ValueError, match="pixel_values or pixel_values_videos must be given"):
        backbone.encode()
    with pytest.raises(Unavailable, match="a smaller image is not available"):
        backbone.encode(inputs["pixel_values"], (2, 2), image_grid_thw=inputs["image_grid_thw"])


@torch.no_grad()
def test_deepstack_features_stay_with_their_tokens():
    family = families.FAMILIES["qwen3_vl"]
    model, layout = family.build(), ((1, -1),)
    inputs, encoded, tokens = tokens_of(family, model, layout)
    backbone = adapter_for(model)
    images, videos = (family._outputs(model, inputs)[kind].deepstack_features for kind in ("image", "video"))
    for method in (ragged(family, layout), ToMe(budget=5)):
        selection = method.select(tokens)
        outputs = backbone.shorten(inputs, tokens, selection)["mm_encoder_outputs"]
        for planes, kind, row in ((images, "image", 0), (videos, "video", 1)):
            for plane, kept in zip(planes, outputs[kind].deepstack_features, strict=True):
                assert torch.equal(kept[0], plane[0][selection.rows()[row]])
    stored = Encoded.from_tensors(encoded.tensors(["received_attention"]))
    tokens = backbone.visual_tokens(stored, inputs["input_ids"], inputs["attention_mask"])
    with pytest.raises(Unavailable, match="deepstack is not available: the encoding was stored without this view"):
        backbone.shorten(inputs, tokens, TopK(budget=3, importance="saliency").select(tokens))


@torch.no_grad()
def recomputed(family, model, layout, row, drops, new):
    """Return the last logits of one prompt and `new` tokens, computed anew, with what `drops` leave from a layer on."""
    core, single = model.model, family.alone(layout, row)
    ids = single["input_ids"][0]
    everything = torch.ones(len(ids), dtype=torch.bool)
    positions, following = family.positions(model, single, everything)
    planes = family.beside(model, single, everything).get("deepstack_visual_embeds", [])
    hidden = core.get_input_embeddings()(torch.cat([ids, torch.tensor(new, dtype=torch.long)]))
    visual = torch.isin(ids, torch.tensor(BARRED)).nonzero()[:, 0]
    hidden[visual] = torch.cat([x for rows in family.features(model, single).values() for x in rows])
    hidden, left = hidden[None], torch.arange(len(hidden))
    later = torch.arange(following, following + len(new)).expand(3, 1, -1)
    positions = torch.cat([positions, later], -1)
    for index, layer in enumerate(core.language_model.layers):
        if index in drops:
            stay = ~torch.isin(left, visual) | torch.isin(left, visual[torch.tensor(drops[index])])
            hidden, positions, left = hidden[:, stay], positions[..., stay], left[stay]
        places = core.language_model.rotary_emb(hidden, positions)
        hidden = layer(hidden, attention_mask=None, position_embeddings=places)
        if index < len(planes):
            hidden[:, torch.isin(left, visual)] += planes[index][torch.isin(visual, left)]
    return model.lm_head(core.language_model.norm(hidden))[0, -1], len(left)


def entered(method, model, inputs, row):
    """Return the tokens of an image that ID-Selection with the same knobs keeps."""
    knobs = {field.name: getattr(method, field.name) for field in dataclasses.fields(IDSelection)}
    with prune(model, IDSelection(**{**knobs, "budget": round(method.budget * method.times)})) as first:
        model(**inputs)
    return first.report[row].indices


INSIDE = [
    FastV(5, budget_convention="final", layer=2),
    PyramidDrop(4, budget_convention="final", layers=(2,)),
    DART(6, layer=2, budget_convention="final"),
    SparseVLM(5, budget_convention="final", layers=(1,), recycle=0.0),
    IDSelectionInside(5, times=1.6, budget_convention="final", layers=(2,)),
]
EARLIER = [FastV(5, budget_convention="final"), PyramidDrop(5, budget_convention="final", layers=(1, 2))]


@pytest.mark.parametrize("method", [*INSIDE, *EARLIER], ids=repr)
@torch.no_grad()
def test_dropped_tokens_take_their_positions_along(family, model, method):
    layout = ((1,), (2,))
    inputs = family.prompts(layout)
    if family.name == "qwen3_vl" and method in EARLIER:
        with prune(model, method), pytest.raises(ValueError, match="choose layers from 2 on"):
            model(**inputs)
        return
    with prune(model, method) as run_:
        got = run(model, inputs, **GREEDY)
        whole = model(**inputs, use_cache=True)
    for row in range(2):
        drops = {drop.layer: drop.indices for drop in run_.report[row].drops}
        last = method.drop_layers(3)[-1]
        assert set(drops) == set(method.drop_layers(3)) and len(drops[last]) == method.budget
        if isinstance(method, IDSelectionInside):
            drops[0] = entered(method, model, inputs, row)
            assert set(drops[last]) < set(drops[0]) and len(drops[0]) == 8
        new: list[int] = []
        for step in got.logits:
            wanted, _ = recomputed(family, model, layout, row, drops, new)
            torch.testing.assert_close(step[row], wanted, **CLOSE)
            new.append(int(got.sequences[row, inputs["input_ids"].shape[1] + len(new)]))
        torch.testing.assert_close(whole.logits[row, -1], recomputed(family, model, layout, row, drops, [])[0], **CLOSE)
        alone = family.alone(layout, row)
        with prune(model, method):
            torch.testing.assert_close(model(**alone).logits[0, -1], whole.logits[row, -1], **CLOSE)
    assert (
        got.past_key_values.get_seq_length(2)
        == max(recomputed(family, model, layout, row, {last: list(range(method.budget))}, [])[1] for row in range(2))
        + 3
    )


@pytest.mark.parametrize("kind", [FastV, PyramidDrop, DART])
@torch.no_grad()
def test_dropping_nothing_in_the_llm_is_bit_equal(family, model, kind):
    knobs = {"layers": (2,)} if kind is PyramidDrop else {"layer": 2}
    for layout in (MIXED, ((-1,), (0, -2))):
        inputs = family.prompts(layout)
        plain, logits = run(model, inputs, **GREEDY), model(**inputs).logits
        with prune(model, kind(1.0, **knobs)):
            kept = run(model, inputs, **GREEDY)
            assert torch.equal(model(**inputs).logits, logits)
        assert all(torch.equal(a, b) for a, b in zip(plain.logits, kept.logits, strict=True))


@torch.no_grad()
def test_beams_with_drops_in_the_llm_do_not_mix_prompts(family, model):
    layout, options = ((1,), (2,)), {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    inputs = family.prompts(layout)
    with prune(model, INSIDE[0]):
        together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        for row in range(2):
            single = family.alone(layout, row)
            got = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
            assert torch.equal(got, together[3 * row : 3 * row + 3])


@torch.no_grad()
def test_dropping_the_last_token_of_a_prompt_is_refused(family, model):
    ids = torch.tensor([[1, 7, families.START, *[families.IMAGE] * 15]])
    inputs = {**family.prompts(((1,),)), "input_ids": ids, "attention_mask": torch.ones_like(ids), **family.marked(ids)}
    plain = run(model, inputs, **GREEDY)
    with prune(model, ALL):
        assert torch.equal(run(model, inputs, **GREEDY).sequences, plain.sequences)
    with prune(model, Fixed(picks=((3, 14),))):
        run(model, inputs, **GREEDY)
    with prune(model, Fixed(picks=((3, 5),))):
        with pytest.raises(ValueError, match="prompt 0 ends in an image whose last token was not selected"):
            run(model, inputs, **GREEDY)
        assert model(**inputs).past_key_values.get_seq_length() == 5
