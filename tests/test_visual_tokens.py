"""The views of visual tokens, against eager attention and by hand; encodings that are stored; shortened prompts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from idsel_core import (
    Companion,
    Downsample,
    IDSelection,
    TopK,
    Unavailable,
    UniformGrid,
    VisualTokens,
    adapter_for,
    prune,
)
from idsel_core.backbones import Encoded
from idsel_core.backbones._shared.prompts import drop_columns, locate_images
from idsel_core.backbones._shared.qk_capture import attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import pixel_key
from idsel_core.visual_tokens import INSTRUCTION
from tests.support import images as made
from tests.support import tiny

CLOSE = {"atol": 1e-6, "rtol": 1e-4}


@pytest.fixture(scope="module")
def clip():
    return tiny.build("clip")


def views(model, inputs, **options) -> VisualTokens:
    backbone = adapter_for(model, options.pop("relevance", None))
    mask = options.pop("question_mask", None)
    encoded = backbone.encode(inputs["pixel_values"], **options)
    return backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"], question_mask=mask)


def plain(count: int = 4, **options) -> VisualTokens:
    return VisualTokens(
        torch.zeros(1, count, 2), torch.ones(1, count, dtype=torch.bool), torch.zeros(1, count, 2).long(), **options
    )


# ------------------------------------------------------------------------------------------------ lazy, shared, checked


def test_views_are_computed_when_read_and_once():
    calls = []
    tokens = plain(sources={"cls_attention": lambda: calls.append(1) or torch.ones(1, 4)})
    assert tokens.computed == frozenset() and calls == []
    assert torch.equal(tokens.saliency, torch.ones(1, 4))
    assert tokens.cls_attention is tokens.saliency
    assert tokens.computed == {"cls_attention"} and calls == [1]


def test_other_ways_to_read_the_instruction_share_what_was_computed():
    asked = []
    tokens = plain(
        sources={
            "instruction_attention": lambda *where: asked.append(where) or torch.zeros(1, 4),
            "relevance": lambda: asked.append("relevance") or torch.zeros(1, 4),
        }
    )
    other = tokens.with_instruction(2, "last")
    for each in (tokens, other, tokens.with_instruction(2, "last")):
        _ = each.instruction_attention, each.relevance
    assert asked == [INSTRUCTION, "relevance", (2, "last")]
    assert tokens.instruction == INSTRUCTION


def test_a_view_without_a_source_says_why():
    tokens = plain(reasons={"cls_attention": "this vision tower has no [CLS] token"})
    with pytest.raises(Unavailable, match=r"cls_attention is not available: this vision tower has no \[CLS\] token"):
        _ = tokens.cls_attention
    with pytest.raises(ValueError, match="relevance is not available: these tokens were built without it"):
        _ = tokens.relevance
    assert tokens.computed == frozenset()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4, 2)}, r"features must be \(B, N, D\), not \(4, 2\)"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, r"mask must be bool \(1, 4\)"),
        ({"mask": torch.ones(1, 4)}, "mask must be bool .* not torch.float32"),
        ({"grid": torch.zeros(1, 4, 3)}, r"grid must be \(1, 4, 2\), not \(1, 4, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(plain(), **change)


def test_a_view_of_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"the shape of relevance must begin with \(1, 4\), not \(1, 5\)"):
        _ = plain(sources={"relevance": lambda: torch.zeros(1, 5)}).relevance


# ------------------------------------------------------------------------------------------------ the tower's views


@pytest.mark.parametrize(("choice", "layer"), [(-2, 1), (-1, 2), (1, 0), (3, 2), ([-3, -2], 1), ([2, 0], 1)])
@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_saliency_is_the_attention_in_the_layer_that_feeds_the_projector(tower, choice, layer):
    inputs = tiny.prompts((1, 1))
    tokens = views(tiny.build(tower, vision_feature_layer=choice), inputs)
    eager = tiny.build(tower, attention="eager", vision_feature_layer=choice).model.vision_tower
    attention = eager(inputs["pixel_values"], output_attentions=True).attentions[layer].mean(1)
    crop = attention.shape[1] - tiny.TOKENS
    torch.testing.assert_close(tokens.received_attention, attention.mean(1)[:, crop:], **CLOSE)
    if tower == "siglip":
        assert tokens.saliency is tokens.received_attention
        with pytest.raises(Unavailable, match=r"no \[CLS\] token"):
            _ = tokens.cls_attention
    else:
        torch.testing.assert_close(tokens.cls_attention, attention[:, 0, crop:], **CLOSE)
        assert tokens.saliency is tokens.cls_attention


def test_the_call_may_name_another_feature_layer(clip):
    inputs = tiny.prompts((1, 1))
    tokens = views(clip, inputs, vision_feature_layer=1)
    torch.testing.assert_close(tokens.saliency, views(tiny.build(vision_feature_layer=1), inputs).saliency)
    with prune(clip, TopK(budget=3, importance="saliency")) as run:
        clip(**inputs, vision_feature_layer=1)
    assert run.report[0].order == tokens.saliency[0].topk(3).indices.tolist()


def test_features_straight_from_the_embeddings_have_no_attention():
    tokens = views(tiny.build(vision_feature_layer=[0]), tiny.prompts((1,)))
    with pytest.raises(Unavailable, match="no attention layer feeds the projector"):
        _ = tokens.received_attention


@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_features_are_what_enters_and_leaves_the_projector(tower):
    model, inputs = tiny.build(tower), tiny.prompts((1, 1))
    tokens = views(model, inputs)
    hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2]
    assert torch.equal(tokens.encoder_features, hidden[:, hidden.shape[1] - tiny.TOKENS :])
    assert torch.equal(tokens.features, model.model.multi_modal_projector(tokens.encoder_features))
    assert tokens.grid[0, [0, 5, 6, 35]].tolist() == [[0, 0], [0, 5], [1, 0], [5, 5]]
    assert bool(tokens.mask.all()) and tokens.placeholders.tolist() == [36, 36]


def test_a_cls_token_among_the_tokens_lies_off_the_grid():
    model = tiny.build("clip", vision_feature_select_strategy="full")
    inputs = tiny.prompts((1,))
    ids = torch.cat([inputs["input_ids"][:, :3], torch.tensor([[tiny.IMAGE]]), inputs["input_ids"][:, 3:]], 1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    tokens = views(model, inputs)
    assert tokens.grid[0, :3].tolist() == [[-1, -1], [0, 0], [0, 1]] and tokens.placeholders.tolist() == [37]
    logits = model(**inputs).logits
    with prune(model, UniformGrid(budget=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
    eager = tiny.build("clip", attention="eager").model.vision_tower
    attention = eager(inputs["pixel_values"], output_attentions=True).attentions[1].mean(1)
    torch.testing.assert_close(tokens.saliency, attention[:, 0], **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_watching_a_layer_changes_nothing_and_leaves_nothing(attention):
    tower, pixels = tiny.build("clip", attention).model.vision_tower, tiny.prompts((1,))["pixel_values"]
    before, module = tower(pixels).last_hidden_state, attention_modules(tower)[1]
    config = module.config
    with capture_qk(module) as seen:
        assert torch.equal(tower(pixels).last_hidden_state, before)
    assert seen.tensors()[0].shape == (1, 4, 37, 8)
    with pytest.raises(KeyError), capture_qk(module):
        raise KeyError
    assert module.config is config and config._attn_implementation == attention
    with capture_qk(module) as unseen, pytest.raises(RuntimeError, match="did not run"):
        unseen.tensors()


def test_layers_that_cannot_be_told_apart_are_refused():
    tower = tiny.build("clip").model.vision_tower
    tower.config.num_hidden_layers = 4
    with pytest.raises(ValueError, match="CLIPVisionModel has 4 layers, but 3 attention modules"):
        attention_modules(tower)


# ------------------------------------------------------------------------------------------------ the question's views


def eager_rows(inputs, layout, layer):
    """Mean over heads of the language model's eager attention, (I, L, L), and the columns of each image."""
    model = tiny.build("clip", attention="eager").model
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    features = torch.cat(list(model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output))
    embeddings = embeddings.masked_scatter((inputs["input_ids"] == tiny.IMAGE)[..., None], features)
    mask = inputs["attention_mask"]
    out = model.language_model(
        inputs_embeds=embeddings,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        output_attentions=True,
        use_cache=False,
    )
    rows = [row for row, images in enumerate(layout) for _ in range(images)]
    columns = [
        block
        for row in range(len(layout))
        for block in (inputs["input_ids"][row] == tiny.IMAGE).nonzero()[:, 0].split(tiny.TOKENS)
        if len(block)
    ]
    return out.attentions[layer][rows], columns, rows


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("layer", "which"), [(0, "words"), (1, "words"), (2, "words"), (1, "last"), (2, "last")])
def test_instruction_attention_is_the_eager_row_among_visual_keys(clip, layer, which, side):
    layout = (2, 1)
    inputs = tiny.prompts(layout, side)
    position, images = torch.arange(inputs["input_ids"].shape[1]), inputs["input_ids"] == tiny.IMAGE
    question = (position > (position * images).amax(1, keepdim=True)) & (inputs["attention_mask"] == 1)
    got = views(clip, inputs, question_mask=question).with_instruction(layer, which).instruction_attention
    attention, columns, rows = eager_rows(inputs, layout, layer)
    for image, (row, keys) in enumerate(zip(rows, columns, strict=True)):
        query_tokens = question[row].nonzero()[:, 0]
        query_tokens = query_tokens if which == "words" else query_tokens[-1:]
        among = attention[image][:, query_tokens][..., keys]
        wanted = (among / among.sum(-1, keepdim=True)).mean((0, 1))
        torch.testing.assert_close(got[image], wanted, **CLOSE)


@pytest.mark.parametrize("column", [1, -3])
def test_instruction_attention_depends_on_the_question_in_front_of_the_image_and_behind_it(clip, column):
    inputs = tiny.prompts((1,))
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, column] = 3 + (inputs["input_ids"][0, column] + 7) % 70
    for layer, which in ((0, "words"), (1, "words"), (1, "last")):
        one, two = (views(clip, x).with_instruction(layer, which).instruction_attention for x in (inputs, other))
        assert not torch.allclose(one, two, atol=1e-6)


def test_the_first_layers_last_token_is_refused(clip):
    with pytest.raises(ValueError, match="the last token of the prompt has read nothing of the question at layer 0"):
        views(clip, tiny.prompts((1,))).with_instruction(0, "last")


def test_the_language_model_runs_no_further_than_the_watched_layer(clip):
    ran = []
    hooks = [
        layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, layer in enumerate(clip.model.language_model.layers)
    ]
    tokens = views(clip, tiny.prompts((1, 1)))
    for _ in range(2):
        _ = tokens.with_instruction(1, "words").instruction_attention
    for hook in hooks:
        hook.remove()
    assert ran == [0]


@pytest.mark.parametrize(("which", "queries"), [("last", 2), ("words", 19)])
def test_the_watched_layer_projects_only_what_is_read(clip, which, queries):
    attention = clip.model.language_model.layers[1].self_attn
    parts, projected = [getattr(attention, f"{name}_proj") for name in "qkv"], []
    hooks = [part.register_forward_hook(lambda _, given, out: projected.append(out[..., 0].numel())) for part in parts]
    inputs = tiny.prompts((1, 1))
    question = views(clip, inputs).with_instruction(1, which)
    _ = question.instruction_attention
    for hook in hooks:
        hook.remove()
    assert projected == [queries, inputs["input_ids"].numel()]
    assert [getattr(attention, f"{name}_proj") for name in "qkv"] == parts


def test_a_watched_layer_that_fails_is_what_it_was(clip):
    attention = clip.model.language_model.layers[0].self_attn
    before = attention.q_proj, attention.v_proj, attention.config
    with pytest.raises(ZeroDivisionError), capture_qk(attention, torch.ones(1, 3, dtype=torch.bool)):
        assert attention.v_proj(torch.ones(1, 3, 32)).shape == before[1](torch.ones(1, 3, 32)).shape
        _ = 1 / 0
    assert (attention.q_proj, attention.v_proj, attention.config) == before


def test_a_layer_that_does_not_exist_is_refused(clip):
    with pytest.raises(ValueError, match="instruction layer 3 does not exist; the language model has 3"):
        _ = views(clip, tiny.prompts((1,))).with_instruction(3).instruction_attention


def test_relevance_is_the_cosine_with_the_words_of_the_prompt(clip):
    dual, inputs = tiny.companion(), tiny.prompts((2, 1))
    got = views(clip, inputs, relevance=Companion(dual)).relevance
    encoded = adapter_for(clip).encode(inputs["pixel_values"]).encoder_features
    for image, row in enumerate((0, 0, 1)):
        ids = inputs["input_ids"][row]
        question = ids[~torch.isin(ids, torch.tensor([tiny.IMAGE, tiny.BOS, tiny.PAD]))][None]
        text = dual.get_text_features(question, attention_mask=torch.ones_like(question)).pooler_output
        wanted = torch.cosine_similarity(dual.visual_projection(encoded[image]), text)
        torch.testing.assert_close(got[image], wanted, **CLOSE)


def test_relevance_needs_a_companion_that_fits(clip):
    with pytest.raises(Unavailable, match=r"no image-text companion was given; pass relevance=Comp"):
        _ = views(clip, tiny.prompts((1,))).relevance
    with pytest.raises(TypeError, match="a companion needs visual_projection, which Linear lacks"):
        Companion(torch.nn.Linear(1, 1))
    wide = tiny.companion()
    wide.visual_projection = torch.nn.Linear(5, 8)
    with pytest.raises(ValueError, match="projects features of width 5, the vision tower gives 32"):
        _ = views(clip, tiny.prompts((1,)), relevance=Companion(wide)).relevance


@pytest.mark.parametrize("view", ["instruction_attention", "relevance"])
def test_a_prompt_without_words_asks_nothing(clip, view):
    inputs = tiny.prompts((1,))
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.cat([inputs[name][:, :1], inputs[name][:, 3:-7]], 1)
    with pytest.raises(Unavailable, match="no words ask about image 0: its prompt has no text of a user"):
        getattr(views(clip, inputs, relevance=Companion(tiny.companion())), view)


def test_the_last_token_of_a_prompt_that_ends_in_an_image_is_refused(clip):
    inputs = tiny.prompts((1,))
    inputs["input_ids"], inputs["attention_mask"] = inputs["input_ids"][:, :-7], inputs["attention_mask"][:, :-7]
    with pytest.raises(Unavailable, match="the prompt of image 0 ends in an image"):
        _ = views(clip, inputs).with_instruction(1, "last").instruction_attention


# ------------------------------------------------------------------------------------------------ stored encodings


def test_an_encoding_survives_a_file_and_serves_many_questions(clip, tmp_path):
    inputs = tiny.prompts((1, 1, 1))
    backbone = adapter_for(clip)
    encoded = backbone.encode(inputs["pixel_values"])
    save_file(encoded.tensors(), tmp_path / "images.safetensors")
    stored = Encoded.from_tensors(load_file(tmp_path / "images.safetensors"))
    which = torch.tensor([2, 0, 2])
    rows = stored.take(which)
    tokens = backbone.visual_tokens(rows, inputs["input_ids"], inputs["attention_mask"])
    shuffled = {**inputs, "pixel_values": inputs["pixel_values"][which]}
    fresh = views(clip, shuffled)
    for name in ("features", "encoder_features", "cls_attention", "received_attention", "instruction_attention"):
        torch.testing.assert_close(getattr(tokens, name), getattr(fresh, name), **CLOSE)
    assert torch.equal(tokens.image_key, fresh.image_key) and torch.equal(tokens.grid, fresh.grid)
    method = IDSelection(budget=5)
    short = backbone.shorten(inputs, tokens, method.select(tokens))
    options = {"max_new_tokens": 4, "do_sample": False}
    answers = clip.generate(**short, **options)[:, short["input_ids"].shape[1] :]
    with prune(clip, method):
        wanted = clip.generate(**shuffled, **options)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(answers, wanted)


def test_an_encoding_may_be_stored_with_fewer_views(clip):
    encoded = adapter_for(clip).encode(tiny.prompts((1,))["pixel_values"])
    few = encoded.tensors(["cls_attention"])
    assert few.keys() == {"encoder_features", "mask", "grid", "placeholders", "cls_attention"}
    tokens = adapter_for(clip).visual_tokens(Encoded.from_tensors(few), tiny.prompts((1,))["input_ids"])
    with pytest.raises(Unavailable, match="or the encoding was stored without this view"):
        _ = tokens.received_attention
    with pytest.raises(ValueError, match=r"a stored encoding needs .*; missing: mask, grid"):
        Encoded.from_tensors({name: few[name] for name in ("encoder_features", "placeholders")})


def test_a_half_precision_encoding_serves_a_full_precision_model(clip):
    inputs = tiny.prompts((1,))
    tensors = adapter_for(clip).encode(inputs["pixel_values"]).tensors()
    tensors["encoder_features"] = tensors["encoder_features"].half()
    tokens = adapter_for(clip).visual_tokens(Encoded.from_tensors(tensors), inputs["input_ids"])
    torch.testing.assert_close(tokens.features, views(clip, inputs).features, atol=1e-2, rtol=1e-2)


def test_pixel_keys_tell_images_apart_and_nothing_else():
    pixels = torch.randn(4, 3, 8, 8)
    keys = pixel_key(pixels)
    assert torch.equal(pixel_key(pixels[[2, 0]]), keys[[2, 0]]) and len(set(keys.tolist())) == 4
    pixels[0, 0, 0, 0] += 1e-6
    assert pixel_key(pixels)[0] != keys[0]


def test_a_smaller_image_has_no_place_in_the_prompt_to_ask_about(clip):
    inputs = tiny.prompts((1,))
    tokens = views(clip, inputs, grid=(2, 3))
    assert tokens.features.shape[1] == 6 and tokens.placeholders.tolist() == [36]
    assert tokens.grid[0, -1].tolist() == [1, 2]
    with pytest.raises(Unavailable, match="the image was made smaller"):
        _ = tokens.instruction_attention


# ------------------------------------------------------------------------------------------------ shortened prompts


def test_the_callers_padding_stays_and_rows_are_padded_again_on_their_side():
    ids = torch.tensor([[0, 1, 7, 7, 2], [0, 0, 1, 7, 2]])
    mask = (ids > 0).long()
    keep = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 1, 1, 1]]).bool()
    short = drop_columns({"input_ids": ids, "attention_mask": mask, "labels": ids, "other": 1}, keep, mask.bool(), 9)
    assert short["input_ids"].tolist() == [[9, 0, 1, 2], [0, 1, 7, 2]]
    assert short["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert short["labels"].tolist() == [[-100, 0, 1, 2], [0, 1, 7, 2]] and short["other"] == 1
    right = {"input_ids": ids.flip(1), "attention_mask": mask.flip(1)}
    flipped = drop_columns(right, keep.flip(1), right["attention_mask"].bool(), 9)
    assert flipped["input_ids"].tolist() == [[2, 1, 0, 9], [2, 7, 1, 0]]
    everything = drop_columns({"input_ids": ids}, mask.bool(), mask.bool())
    assert torch.equal(everything["input_ids"], ids) and "attention_mask" not in everything


def test_rows_that_become_ragged_get_a_mask_and_positions_with_leading_axes_follow():
    ids = torch.tensor([[1, 7, 7], [1, 7, 7]])
    keep = torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()
    positions = torch.arange(3).expand(3, 1, 3) + torch.tensor([0, 10, 20])[:, None, None]
    short = drop_columns({"input_ids": ids, "position_ids": positions}, keep, torch.ones_like(keep))
    assert short["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert short["position_ids"].tolist() == [[[0, 2], [0, 0]], [[10, 12], [0, 10]], [[20, 22], [0, 20]]]


def test_images_are_found_in_reading_order():
    ids = torch.tensor([[1, 7, 7, 7, 2], [1, 7, 7, 3, 2]])
    slots = locate_images(ids, 7, torch.tensor([1, 2, 2]))
    assert slots.rows.tolist() == [0, 0, 1] and slots.columns.tolist() == [[1, -1], [2, 3], [1, 2]]


def test_placeholders_are_found_once_and_anew_in_other_prompts(clip, monkeypatch):
    backbone, found = adapter_for(clip), []
    locate = type(backbone).locate
    monkeypatch.setattr(type(backbone), "locate", lambda self, *given: found.append(given) or locate(self, *given))
    inputs = tiny.prompts((1, 1))
    with prune(clip, UniformGrid(budget=2)):
        clip(**inputs)
    assert len(found) == 1
    tokens = views(clip, inputs)
    picks = UniformGrid(budget=2).select(tokens)
    moved = {**inputs, "input_ids": inputs["input_ids"].flip(1), "attention_mask": inputs["attention_mask"].flip(1)}
    kept, anew = (backbone.kept(moved, each, picks)[0] for each in (tokens, views(clip, moved)))
    assert torch.equal(kept, anew) and not torch.equal(kept, backbone.kept(inputs, tokens, picks)[0])
    taken = tokens.take(torch.tensor([1])).slots
    assert taken.rows.tolist() == [1] and torch.equal(taken.columns, tokens.slots.columns[1:])
    with pytest.raises(ValueError, match="slots must be of 2 images, not of 1"):
        dataclasses.replace(tokens, slots=taken)


def test_a_smaller_image_stands_evenly_spread_over_its_placeholders(clip):
    inputs = {**tiny.prompts((1,)), "labels": torch.arange(46)[None]}
    tokens = views(clip, inputs, grid=(2, 2))
    short = adapter_for(clip).shorten(inputs, tokens, Downsample(budget=4).select(tokens), positions="keep")
    text = [0, 1, 2, *range(39, 46)]
    assert short["labels"].tolist() == short["position_ids"].tolist() == [[*text[:3], 7, 16, 25, 34, *text[3:]]]


def test_a_selection_of_other_images_is_refused(clip):
    inputs = tiny.prompts((1, 1))
    tokens = views(clip, inputs)
    one = UniformGrid(budget=2).select(views(clip, tiny.prompts((1,))))
    with pytest.raises(ValueError, match="the selection has 1 rows for 2 images"):
        adapter_for(clip).shorten(inputs, tokens, one)


def test_an_unknown_way_to_number_positions_is_refused(clip):
    inputs = tiny.prompts((1,))
    tokens = views(clip, inputs)
    with pytest.raises(ValueError, match="positions must be one of compact, keep, not 'gaps'"):
        adapter_for(clip).shorten(inputs, tokens, UniformGrid(budget=2).select(tokens), positions="gaps")


def test_taken_rows_hold_what_the_rows_held_and_share_views():
    images = [made.image(seed, *size) for seed, size in enumerate([(6, 6), (3, 4), (5, 6)])]
    calls: list[str] = []
    tokens = made.batch(*images)
    sources = {name: lambda *a, name=name, of=of: calls.append(name) or of(*a) for name, of in tokens.sources.items()}
    tokens = dataclasses.replace(tokens, sources=sources, video=torch.tensor([False, True, False]))
    parts = {rows: tokens.take(torch.tensor(rows)) for rows in ((2, 0), (1,))}
    for rows, part in parts.items():
        assert part.video.tolist() == [row == 1 for row in rows] and torch.equal(part.placeholders, part.lengths)
        for name in ("features", "grid", "cls_features", "image_key", "instruction_attention", "keys"):
            for place, row in enumerate(rows):
                count = int(part.lengths[place])
                got, wanted = getattr(part, name)[place], images[row][name]
                per_token = name not in ("cls_features", "image_key")
                assert count == len(images[row]["grid"]) and torch.equal(got[:count] if per_token else got, wanted)
        assert part.sources["projector"] is tokens.sources["projector"]
    assert calls.count("keys") == calls.count("instruction_attention") == calls.count("cls_features") == 1
