"""Methods that drop tokens inside the language model: plans, choices and whole passes against slow references."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaModel, StaticCache

from idsel_core import TopK, UniformGrid, adapter_for, prune
from idsel_core.backbones._shared.qk_capture import attention_modules, capture_qk
from idsel_core.backbones.in_llm.checks import check_decoder
from idsel_core.backbones.in_llm.hooks import dropping
from idsel_core.methods import DART, METHODS, FastV, InLLM, PyramidDrop, SparseVLM, VScan
from idsel_core.methods._shared.in_llm import Choice, LayerTokens, most_attended
from idsel_core.methods.sparsevlm import AUTHORS_COUNTS, density_peaks
from idsel_core.selection.result import Selection
from tests.support import in_llm_reference as reference
from tests.support import peers_reference, tiny
from tests.support.images import batch, image
from tests.support.llava_prompts import GREEDY, LAYOUTS, run, same, state

DEPTH = 5
RULES = {
    "fastv": {"rule": reference.last_attention, "compact": False},
    "pyramiddrop": {"rule": reference.last_attention, "after": True},
    "sparsevlm": {"rule": reference.sparsevlm},
    "vscan": {"rule": reference.last_attention, "after": True},
    "dart": {"rule": reference.dart, "compact": False},
}
METHODS_INSIDE = [
    FastV(20),
    FastV(5, budget_convention="final", layer=3),
    PyramidDrop(20),
    PyramidDrop(3, budget_convention="final", layers=(1, 2, 4)),
    SparseVLM(24),
    SparseVLM(9, budget_convention="final", layers=(0, 1, 3)),
    # One token and two merged ones.
    SparseVLM(3, budget_convention="final", layers=(2,)),
    VScan(20),
    VScan(9, budget_convention="final", layer=2, windows=2, faithful=True),
    DART(20),
    DART(17, layer=2, budget_convention="final", faithful=True),
]


def rule_of(method: InLLM) -> dict:
    rule = dict(RULES[method.name])
    if method.name == "dart" and method.faithful:
        rule["rule"] = partial(rule["rule"], faithful=True)
    return rule


# ------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize(
    ("method", "deep", "shallow"),
    [
        (FastV(1), (2,), (1,)),
        (SparseVLM(1), (3, 7, 16), (1, 2, 3)),
        (PyramidDrop(1), (8, 16, 24), (1, 3, 4)),
        (DART(1), (2,), (1,)),
        (VScan(1), (16,), (3,)),
        (FastV(1, layer=3), (3,), (3,)),
        (SparseVLM(1, layers=(0, 3)), (1, 4), (1, 4)),
        (PyramidDrop(1, layers=(4, 0.99)), (4, 31), (4,)),
    ],
    ids=repr,
)
def test_layers_scale_with_the_depth(method, deep, shallow):
    assert method.drop_layers(32) == deep and method.drop_layers(5) == shallow
    with pytest.raises(ValueError, match="tokens can be dropped between layers, but this language model has 1"):
        method.drop_layers(1)


@pytest.mark.parametrize("depth", [3, 5, 12, 32])
@pytest.mark.parametrize("count", [36, 100, 576])
@pytest.mark.parametrize("method", [FastV(1), SparseVLM(1), PyramidDrop(1), DART(1)], ids=lambda method: method.name)
def test_the_average_is_the_budget_to_within_half_a_token(method, depth, count):
    tokens, reached = torch.tensor([count]), []
    for budget in range(1, count + 1):
        plan = dataclasses.replace(method, budget=budget)
        try:
            left = plan.counts(tokens, tokens, depth)[0].tolist()
        except ValueError as error:
            assert not reached
            least = int(str(error).rsplit(" ", 1)[1])
            continue
        reached.append(budget)
        layers = layers_of(count, left, plan.drop_layers(depth), depth)
        assert abs(sum(layers) / depth - budget) <= 0.5
        assert all(a >= b >= min(method.least(a), a) for a, b in pairwise([count, *left]))
        if budget == count:
            assert left == [count] * len(left)
    assert reached[0] == least > 1


@pytest.mark.parametrize("count", [36, 576])
@pytest.mark.parametrize("method", [FastV(1), SparseVLM(1), PyramidDrop(1), DART(1)], ids=lambda method: method.name)
def test_the_final_budget_is_what_is_left(method, count):
    tokens = torch.tensor([count])
    for budget in range(1, count + 1):
        plan = dataclasses.replace(method, budget=budget, budget_convention="final")
        try:
            left = plan.counts(tokens, tokens, 32)[0].tolist()
        except ValueError as error:
            assert budget < int(str(error).rsplit(" ", 1)[1]) <= 3
            continue
        assert left[-1] == budget
        assert all(a >= b >= min(method.least(a), a) for a, b in pairwise([count, *left]))


def layers_of(count: int, left: list[int], places: tuple[int, ...], depth: int) -> list[int]:
    return [([count, *left])[sum(place <= layer for place in places)] for layer in range(depth)]


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (FastV(192), [166]),
        (FastV(128), [98]),
        (FastV(64), [30]),
        (FastV(128, layer=3), [82]),
        (FastV(64, layer=3), [11]),
        (FastV(64, budget_convention="final"), [64]),
        (FastV(1 / 3), [166]),
        (DART(128, budget_convention="final"), [128]),
        (DART(128, budget_convention="final", faithful=True), [132]),
        (DART(64, budget_convention="final", faithful=True), [68]),
        (DART(192, budget_convention="final", faithful=True), [196]),
        (PyramidDrop(270), [288, 144, 72]),
        (PyramidDrop(72, budget_convention="final"), [288, 144, 72]),
        (SparseVLM(192, faithful=True), [309, 204, 113]),
        (SparseVLM(128, faithful=True), [312, 117, 39]),
        (SparseVLM(96, faithful=True), [249, 55, 27]),
        (SparseVLM(64, faithful=True), [82, 32, 18]),
    ],
    ids=repr,
)
def test_plans_are_those_of_the_papers(method, left):
    full = torch.tensor([576, 576])
    assert method.counts(full, full, 32).tolist() == [left, left]
    if method.name == "sparsevlm":
        layers = layers_of(576, left, method.drop_layers(32), 32)
        wanted = {192: 206.5, 128: 145.4, 96: 114.1, 64: 82.3}[method.budget]
        assert sum(layers) / 32 == pytest.approx(wanted, abs=0.05)
        kept = [method.kept(a, b) for a, b in pairwise([576, *left])]
        assert kept == list(AUTHORS_COUNTS[method.budget])


def test_images_that_were_cut_before_are_planned_from_what_is_left():
    full, entering = torch.tensor([36, 36, 24]), torch.tensor([36, 20, 24])
    assert FastV(20).counts(full, entering, 5).tolist() == [[16], [20], [19]]
    assert FastV(0.5, budget_convention="final").counts(full, entering, 5).tolist() == [[18], [18], [12]]


@pytest.mark.parametrize("left", [1e-9, 0.1, 1 / 3, 0.9, 1.0])
@pytest.mark.parametrize("layer", [1, 0.25, 0.5, 0.99])
def test_vscan_reaches_every_budget(layer, left):
    for depth, count in ((2, 36), (3, 36), (5, 36), (12, 100), (32, 576)):
        full = torch.tensor([count])
        for convention in ("average", "final"):
            for budget in range(1, count + 1, 1 + count // 100):
                method = VScan(budget, layer=layer, left=left, budget_convention=convention)
                entering = method.entering(full, depth)
                (after,) = method.counts(full, entering, depth)[0].tolist()
                assert count >= int(entering) >= budget and int(entering) >= after >= 1
                average = sum(layers_of(int(entering), [after], method.drop_layers(depth), depth)) / depth
                assert abs(average - budget) <= 0.5 if convention == "average" else after == budget
                assert budget < count or int(entering) == after == count


@pytest.mark.parametrize(
    ("method", "entering", "left"),
    [
        (VScan(64), 96, 32),
        (VScan(192), 288, 96),
        (VScan(1 / 9), 96, 32),
        (VScan(32, budget_convention="final"), 96, 32),
        (VScan(400), 576, 224),
        (VScan(64, layer=8, left=0.5), 102, 51),
        (VScan(1), 1, 1),
    ],
    ids=repr,
)
def test_vscan_plans_both_stages(method, entering, left):
    full = torch.tensor([576, 576])
    assert method.entering(full, 32).tolist() == [entering] * 2
    assert method.counts(full, torch.tensor([entering] * 2), 32).tolist() == [[left]] * 2


def test_vscan_as_published_does_not_make_up_for_what_the_windows_lose():
    full, entering = torch.tensor([576]), torch.tensor([40])
    assert VScan(32).counts(full, entering, 32).tolist() == [[24]]
    assert VScan(32, faithful=True).counts(full, entering, 32).tolist() == [[16]]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FastV(30), r"fastv cannot bring 576 visual tokens down to 30 \(average of 32 layers, 2 of .*: .* model is 37"),
        (PyramidDrop(128), "pyramiddrop .* down to 128 .*average of 32 layers, 8 of which .* is 145"),
        (SparseVLM(1, budget_convention="final"), "sparsevlm .* down to 1 .*final of 32 layers.* least budget .* is 2"),
        (SparseVLM(100, faithful=True), "numbers for 192, 128, 96, 64 of 576 tokens; got 3 drops and .100. of .576."),
        (SparseVLM(64, faithful=True, layers=(3,)), "got 1 drops"),
        (FastV(64, layer=32), "tokens cannot be dropped before layer 32 of 32: choose one from 1 to 31"),
        (PyramidDrop(64, layers=(0, 4)), "tokens cannot be dropped before layer 0 of 32"),
        (SparseVLM(64, layers=(31,)), "tokens cannot be dropped after layer 31 of 32: choose one from 0 to 30"),
        (VScan(64, layer=32), "tokens cannot be dropped before layer 32 of 32: choose one from 1 to 31"),
        (FastV(577), "got 577 tokens, and the longest row has 576"),
    ],
    ids=repr,
)
def test_budgets_and_layers_that_cannot_be_are_refused(method, message):
    tokens = torch.tensor([576])
    with pytest.raises(ValueError, match=message):
        method.counts(tokens, tokens, 32)


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("fastv", {"layer": 1.0}, "layer must be a layer .* or a share of the depth .*, not 1.0"),
        ("fastv", {"layer": True}, "layer must be .* not True"),
        ("dart", {"layer": -1}, "layer must be .* not -1"),
        ("dart", {"image_pivots": 0}, "image_pivots must be an int, 1 or more, not 0"),
        ("dart", {"faithful": 1}, "faithful must be True or False, not 1"),
        ("pyramiddrop", {"layers": [1, 2]}, r"layers must be a tuple of layers, not \[1, 2\]"),
        ("pyramiddrop", {"layers": ()}, r"layers must be a tuple of layers, not \(\)"),
        ("sparsevlm", {"layers": (1, "2")}, "layers must be a layer .* not '2'"),
        ("sparsevlm", {"recycle": 1.5}, "recycle must be a number from 0 to 1, not 1.5"),
        ("vscan", {"layer": 1.0}, "layer must be a layer .* or a share of the depth .*, not 1.0"),
        ("vscan", {"budget_convention": "mean"}, "budget_convention must be one of average, final, not 'mean'"),
        ("fastv", {"budget_convention": "mean"}, "budget_convention must be one of average, final, not 'mean'"),
    ],
)
def test_wrong_knobs_are_refused(name, knobs, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](budget=4, **knobs)


# ------------------------------------------------------------------------------------------------ choices


def scene(seed: int, count: int, before: int = 3, words: int = 7) -> dict[str, np.ndarray | list[int]]:
    """Return random states, queries and keys of a prompt with one image, clustered as the patches of an image are."""
    draw = np.random.default_rng(seed)
    length = before + count + words
    cluster = draw.integers(9, size=length)

    def clustered(*width: int) -> np.ndarray:
        return draw.standard_normal((9, *width))[cluster] + 0.4 * draw.standard_normal((length, *width))

    return {
        "states": clustered(24),
        "embeddings": 0.3 * clustered(24),
        "query": clustered(4, 8).swapaxes(0, 1),
        "key": clustered(2, 8).swapaxes(0, 1),
        "columns": list(range(before, before + count)),
        "text": list(range(before + count, length)),
    }


def look_at(one: dict) -> reference.Look:
    decoder = partial(reference.Decoder.attend, type("Heads", (), {"heads": 4, "key_heads": 2}))
    return reference.Look(
        states=one["states"],
        key=one["key"],
        attention=decoder(one["query"], one["key"]),
        columns=one["columns"],
        text=one["text"],
        raters=reference.raters(one["embeddings"], one["columns"], one["text"]) if one["text"] else [],
        last=len(one["states"]) - 1,
        final_norm=lambda x: x * np.linspace(0.5, 2, x.shape[-1]),
    )


def layer_tokens(method: InLLM, scenes: list[dict], left: bool) -> LayerTokens:
    """Return scenes as one batch, padded with what must not matter."""
    width = max(len(one["states"]) for one in scenes)
    most = max(len(one["columns"]) for one in scenes)
    shift = [(width - len(one["states"])) * left for one in scenes]

    def padded(name: str, axis: int) -> Tensor:
        rows = []
        for one, start in zip(scenes, shift, strict=True):
            room = [(0, 0)] * one[name].ndim
            room[axis] = (start, width - start - one[name].shape[axis])
            rows.append(np.pad(one[name], room, constant_values=3.0))
        return torch.from_numpy(np.stack(rows)).float()

    def marked(places: list[list[int]]) -> Tensor:
        marks = torch.zeros(len(scenes), width, dtype=torch.bool)
        for row, (columns, start) in enumerate(zip(places, shift, strict=True)):
            marks[row, [column + start for column in columns]] = True
        return marks

    columns = torch.full((len(scenes), most), -1)
    for row, (one, start) in enumerate(zip(scenes, shift, strict=True)):
        columns[row, : len(one["columns"])] = torch.tensor(one["columns"]) + start
    real = marked([list(range(len(one["states"]))) for one in scenes])
    tokens = LayerTokens(
        states=padded("embeddings", 0),
        columns=columns,
        real=real,
        text=marked([one["text"] for one in scenes]),
        query_tokens=torch.zeros_like(real),
        read=lambda: (padded("query", 1), padded("key", 1), 8**-0.5),
        norm=lambda x: x * torch.linspace(0.5, 2, x.shape[-1]),
    )
    return dataclasses.replace(tokens, query_tokens=method.query_tokens(tokens), states=padded("states", 0))


def rows_of(choice: Choice) -> list[list[int]]:
    return [[i for i in row if i >= 0] for row in choice.order.tolist()]


def check(method: InLLM, one: dict, count: int, picks: list[int], merged: Tensor | None) -> None:
    wanted = rule_of(method)["rule"](look_at(one), count)
    assert min(wanted.gap, wanted.order_gap) > 1e-7
    assert picks == wanted.tokens, (method, count)
    if wanted.merged:
        np.testing.assert_allclose(merged[: len(wanted.merged)], wanted.merged, atol=1e-5)


SCENES = [scene(0, 100), scene(1, 81, before=1, words=3), scene(2, 64, before=6, words=12)]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("method", [FastV(1), PyramidDrop(1), SparseVLM(1), DART(1)], ids=lambda method: method.name)
def test_choices_equal_the_slow_reference_over_the_edges_of_the_budget(method, left):
    tokens = layer_tokens(method, SCENES, left)
    for asked in (1, 2, 3, 4, 5, 11, 12, 15, 16, 30, 58, 63, 64, 80, 81, 99, 100):
        counts = [min(max(asked, method.least(len(one["columns"]))), len(one["columns"])) for one in SCENES]
        choice = method.choose(tokens, torch.tensor(counts))
        for row, (one, count) in enumerate(zip(SCENES, counts, strict=True)):
            merged = 0 if choice.merged_counts is None else int(choice.merged_counts[row])
            assert len(rows_of(choice)[row]) + merged == count
            if count < len(one["columns"]):
                check(method, one, count, rows_of(choice)[row], None if merged == 0 else choice.merged[row])
            else:
                assert merged == 0 and sorted(rows_of(choice)[row]) == list(range(count))


@pytest.mark.parametrize("count", [12, 20, 36, 60])
def test_the_faithful_dart_takes_as_many_and_in_the_order_of_its_authors(count):
    method = DART(1, faithful=True)
    for left in (True, False):
        choice = method.choose(layer_tokens(method, SCENES, left), torch.tensor([count] * 3))
        for row, one in enumerate(SCENES):
            if len(one["text"]) >= 4:
                check(method, one, count, rows_of(choice)[row], None)


def test_a_batch_chooses_as_its_images_alone():
    for method in (FastV(1), PyramidDrop(1), SparseVLM(1), DART(1), DART(1, faithful=True)):
        counts = torch.tensor([36, 20, 28])
        together = method.choose(layer_tokens(method, SCENES, True), counts)
        for row, one in enumerate(SCENES):
            alone = method.choose(layer_tokens(method, [one], False), counts[row : row + 1])
            assert rows_of(alone)[0] == rows_of(together)[row]
            if alone.merged is not None:
                count = int(alone.merged_counts[0])
                assert count == together.merged_counts[row]
                torch.testing.assert_close(alone.merged[0], together.merged[row, :count])


def test_ties_go_to_the_first_token():
    one = {**scene(0, 10), "query": np.zeros((4, 20, 8))}
    for method in (FastV(1), SparseVLM(1)):
        choice = method.choose(layer_tokens(method, [one], True), torch.tensor([4]))
        assert rows_of(choice)[0] == list(range(len(rows_of(choice)[0])))


def test_dart_works_without_text_and_with_few_tokens():
    method, bare = DART(1), scene(3, 12, words=0)
    for count in range(1, 12):
        check(
            method,
            bare,
            count,
            rows_of(method.choose(layer_tokens(method, [bare], True), torch.tensor([count])))[0],
            None,
        )
    small = scene(4, 2, words=2)
    assert len(rows_of(method.choose(layer_tokens(method, [small], True), torch.tensor([1])))[0]) == 1


def test_sparsevlm_needs_words_and_takes_all_where_none_stands_out():
    with pytest.raises(ValueError, match="sparsevlm needs text after the image, but no text follows image 1"):
        layer_tokens(SparseVLM(1), [scene(0, 10), scene(1, 10, words=0)], True)
    single = layer_tokens(SparseVLM(1), [scene(0, 10, words=1)], True)
    assert torch.equal(single.query_tokens, single.text)


def test_sparsevlm_without_recycling_only_drops():
    method = SparseVLM(1, recycle=0)
    choice = method.choose(layer_tokens(method, SCENES, True), torch.tensor([9, 9, 9]))
    assert choice.merged is None and [len(row) for row in rows_of(choice)] == [9, 9, 9]
    assert method.least(100) == 1 and SparseVLM(1).least(100) == 5


def test_equal_tokens_are_clustered_by_place():
    states = torch.ones(1, 6, 4)
    merged = density_peaks(states, torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]))
    assert torch.equal(merged, torch.ones(1, 2, 4))


def test_half_precision_states_give_half_precision_merged_tokens():
    method = SparseVLM(1)
    tokens = layer_tokens(method, SCENES, True)
    tokens = dataclasses.replace(tokens, states=tokens.states.half())
    assert method.choose(tokens, torch.tensor([20, 20, 20])).merged.dtype == torch.float16


# ------------------------------------------------------------------------------------------------ whole passes


@pytest.fixture(scope="module")
def model():
    return tiny.build(layers=DEPTH)


@pytest.fixture(scope="module")
def decoder(model):
    return reference.Decoder(model)


@torch.no_grad()
def embedded(model, single: dict[str, Tensor]) -> tuple[np.ndarray, list[list[int]]]:
    """Return the embeddings of one prompt and the columns of its images."""
    ids = single["input_ids"][0]
    embeddings = model.get_input_embeddings()(ids).clone()
    place = ids == tiny.IMAGE
    if "pixel_values" in single:
        features = model.model.get_image_features(single["pixel_values"], return_dict=True).pooler_output
        embeddings[place] = torch.cat(list(features))
    columns = place.nonzero()[:, 0].split(tiny.TOKENS)
    return embeddings.double().numpy(), [row.tolist() for row in columns if len(row)]


@torch.no_grad()
def first_stage(model, method: VScan, single: dict[str, Tensor]) -> list[peers_reference.Kept]:
    """Return what enters the language model of each image of one prompt."""
    backbone = adapter_for(model)
    tokens = backbone.visual_tokens(
        backbone.encode(single["pixel_values"], tower_depths=method.tower_depths),
        single["input_ids"],
        single["attention_mask"],
    )
    views = {"features": tokens.features, "grid": tokens.grid, "cls_attention": tokens.cls_attention}
    views["cls_attention@0.25"] = tokens.at_depth("cls_attention", 0.25)
    count = int(method.entering(torch.tensor([tiny.TOKENS]), DEPTH))
    return [
        peers_reference.vscan(
            {name: (view[i].double() if view.is_floating_point() else view[i]).numpy() for name, view in views.items()},
            count,
            lossy=method.faithful,
            windows=method.windows,
        )
        for i in range(len(tokens))
    ]


def read_alone(model, decoder, method: InLLM, single: dict[str, Tensor], compact: bool = True) -> reference.Read:
    embeddings, images = embedded(model, single)
    begin, numbers = list(range(len(embeddings))), [list(range(tiny.TOKENS))] * len(images)
    if method.name == "vscan" and images:
        stages = first_stage(model, method, single)
        assert min(one.gap for one in stages) > 2e-7
        for columns, one in zip(images, stages, strict=True):
            embeddings[[columns[token] for token in one.tokens]] = one.read
        numbers = [one.tokens for one in stages]
        entered = [[columns[token] for token in own] for columns, own in zip(images, numbers, strict=True)]
        gone = {column for own in images for column in own}.difference(*entered)
        begin = [column for column in begin if column not in gone]
        embeddings, images = embeddings[begin], [[begin.index(column) for column in own] for own in entered]
    full, entering = torch.tensor([tiny.TOKENS] * len(images)), torch.tensor([len(own) for own in numbers])
    counts = method.counts(full, entering, DEPTH).tolist() if images else []
    begin = None if compact else begin
    read = decoder.read(embeddings, images, method.drop_layers(DEPTH), counts, **rule_of(method), begin=begin)
    assert read.gap > 2e-7
    read.kept = [[[own[i] for i in kept] for kept in drops] for own, drops in zip(numbers, read.kept, strict=True)]
    return read


def positions(inputs: dict[str, Tensor]) -> Tensor:
    """Return what generate() counts from the mask; DART's magnitudes of keys depend on where a prompt begins."""
    return (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)


def close(got: Tensor, wanted: np.ndarray) -> None:
    torch.testing.assert_close(got.double(), torch.from_numpy(wanted), atol=5e-4, rtol=1e-3)


def test_the_reference_decoder_is_the_model(model, decoder):
    inputs = tiny.prompts((2,))
    embeddings, images = embedded(model, inputs)
    with torch.no_grad():
        close(model(**inputs).logits[0], decoder.read(embeddings, images).logits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_prefill_and_every_step_equal_a_decoder_built_by_hand(model, decoder, method, layout):
    inputs = tiny.prompts(layout)
    width = inputs["input_ids"].shape[1]
    with prune(model, method) as run_, torch.no_grad():
        got, whole = run(model, inputs), model(**inputs, position_ids=positions(inputs), use_cache=True)
    reads = [read_alone(model, decoder, method, tiny.alone(inputs, layout, row)) for row in range(len(layout))]
    # The longest prompt decides how long a layer's cache is.
    lengths = [max(read.cache[layer][0].shape[1] for read in reads) for layer in range(DEPTH)]
    assert [whole.past_key_values.get_seq_length(layer) for layer in range(DEPTH)] == lengths
    assert [got.past_key_values.get_seq_length(layer) for layer in range(DEPTH)] == [n + 4 for n in lengths]
    assert whole.logits.shape[1] == lengths[-1]
    assert (lengths[0] == width) == all(record.layers[0] == tiny.TOKENS for record in run_.report)
    images = iter(run_.report)
    for row, read in enumerate(reads):
        close(whole.logits[row, -len(read.logits) :], read.logits)
        close(got.logits[0][row], read.logits[-1])
        for step, token in enumerate(got.sequences[row, width:-1].tolist()):
            logits = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
            close(got.logits[step + 1][row], logits)
        for kept in read.kept:
            record = next(images)
            assert [drop.indices for drop in record.drops] == kept
            assert record.indices == kept[-1] == sorted(record.order)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_a_padded_batch_gives_what_each_prompt_gives_alone(model, method, side):
    layout = (2, 0, 1)
    inputs = tiny.prompts(layout, side)
    with prune(model, method), torch.no_grad():
        together = model(**inputs, position_ids=positions(inputs)).logits
        for row in range(len(layout)):
            single = model(**tiny.alone(inputs, layout, row)).logits[0]
            at = slice(-len(single), None) if side == "left" else slice(0, len(single))
            torch.testing.assert_close(together[row, at], single, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "method",
    [FastV(1.0), SparseVLM(1.0), PyramidDrop(1.0), DART(1.0), VScan(1.0), VScan(36, budget_convention="final")],
    ids=lambda m: m.name,
)
def test_keeping_everything_is_bit_equal(method, attention):
    model, inputs = tiny.build(attention=attention, layers=DEPTH), tiny.prompts((1, 0, 2))
    plain, plain_logits = run(model, inputs), model(**inputs).logits
    with prune(model, method) as run_:
        pruned, pruned_logits = run(model, inputs), model(**inputs).logits
    assert torch.equal(plain.sequences, pruned.sequences) and torch.equal(plain_logits, pruned_logits)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    assert all(r.layers == [36] * DEPTH and r.indices == list(range(36)) for r in run_.report)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_eager_attention_agrees(model, method):
    inputs = tiny.prompts((1, 2))
    eager = tiny.build(attention="eager", layers=DEPTH)
    results = []
    for one in (model, eager):
        with prune(one, method) as run_:
            results.append((run(one, inputs), run_.report))
    (sdpa, report), (other, other_report) = results
    assert [r.drops for r in report] == [r.drops for r in other_report]
    torch.testing.assert_close(torch.stack(sdpa.logits), torch.stack(other.logits), atol=5e-5, rtol=1e-4)


def test_watched_rows_are_those_of_eager_attention():
    model, inputs = tiny.build(attention="eager", layers=DEPTH), tiny.prompts((1, 2))
    sdpa = tiny.build(layers=DEPTH)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    backbone = adapter_for(sdpa)
    tokens = backbone.visual_tokens(
        backbone.encode(inputs["pixel_values"]), inputs["input_ids"], inputs["attention_mask"]
    )
    slots = [(row, (inputs["input_ids"][row] == tiny.IMAGE).nonzero()[:, 0]) for row in range(2)]
    columns = torch.stack([part for _, all_ in slots for part in all_.split(36)])
    rows, real = torch.tensor([0, 1, 1]), inputs["attention_mask"].bool()
    query_tokens = torch.zeros_like(real)
    query_tokens[:, -3:] = True
    assert len(tokens) == 3
    for layer in range(DEPTH):
        with capture_qk(attention_modules(sdpa.model.language_model)[layer]) as seen, torch.no_grad():
            sdpa(**inputs)
        query, key, scale = seen.tensors()
        one = LayerTokens(
            states=torch.zeros(3, real.shape[1], 1),
            columns=columns,
            real=real[rows],
            text=real[rows],
            query_tokens=query_tokens[rows],
            read=lambda found=(query[rows], key[rows], scale): found,
        )
        wanted = maps[layer][rows][:, :, -3:].mean((1, 2)).gather(1, columns)
        torch.testing.assert_close(one.attention, wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_beams_and_samples_do_not_mix_prompts(model, method):
    layout = (2, 1, 0)
    inputs = tiny.prompts(layout)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    with prune(model, method) as run_:
        together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        sampled = model.generate(**inputs, **{**GREEDY, "do_sample": True, "num_return_sequences": 2})
        greedy = model.generate(**inputs, **GREEDY)
        for row in range(len(layout)):
            single = tiny.alone(inputs, layout, row)
            got = model.generate(**single, **options)[:, single["input_ids"].shape[1] :]
            assert torch.equal(got, together[3 * row : 3 * row + 3])
            torch.manual_seed(4)
            many = model.generate(**single, **{**GREEDY, "do_sample": True, "num_return_sequences": 64, "top_k": 2})
            alone = model.generate(**single, **GREEDY)
            first = {row[0] for row in many[:, single["input_ids"].shape[1] :].tolist()}
            assert alone[0, single["input_ids"].shape[1]].item() in first and len(first) <= 2
            assert torch.equal(alone[0, -5:], greedy[row, -5:])
    assert sampled.shape == (6, inputs["input_ids"].shape[1] + 5)
    by_image: dict[int, set] = {}
    for record in run_.report[:9]:
        by_image.setdefault(record.image, set()).add(str(record.drops))
    assert all(len(drops) == 1 for drops in by_image.values())


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_beam_search_scores_are_those_of_the_whole_sequences(model, decoder, method):
    """Each beam's score is the sum of what a pass over its own tokens gives, so caches were not mixed up."""
    inputs = tiny.prompts((1,))
    options = {**GREEDY, "num_beams": 4, "num_return_sequences": 4, "suppress_tokens": None}
    with prune(model, method):
        out = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True, length_penalty=0.0)
    for sequence, score in zip(out.sequences[:, inputs["input_ids"].shape[1] :], out.sequences_scores, strict=True):
        read = read_alone(model, decoder, method, inputs)
        logits, total = read.logits[-1], 0.0
        for token in sequence.tolist():
            total += math.log(reference.softmax(logits)[token])
            logits = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        assert float(score) == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_prompt_lookup_agrees_with_greedy(model, method):
    inputs = tiny.prompts((1,))
    # A prompt that repeats itself, so that there are candidates already when the prompt is read.
    tail = torch.tensor([[11, 12, 13, 14, 11, 12]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with prune(model, method) as run_:
        wanted = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 12})
        got = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 12}, prompt_lookup_num_tokens=3)
    assert torch.equal(got, wanted)
    assert run_.report[0].drops == run_.report[1].drops


@pytest.mark.parametrize("method", METHODS_INSIDE, ids=repr)
def test_decoding_by_hand_goes_on_from_the_shorter_cache(model, decoder, method):
    inputs = tiny.prompts((1,))
    read = read_alone(model, decoder, method, inputs)
    tokens = [7, 9, 23, 8]
    with prune(model, method), torch.no_grad():
        out = model(**inputs, use_cache=True)
        kept = copy.deepcopy(out.past_key_values)
        steps = [
            model(input_ids=torch.tensor([[t]]), past_key_values=out.past_key_values).logits[0, -1] for t in tokens
        ]
        at_once = model(input_ids=torch.tensor([tokens]), past_key_values=kept).logits[0]
        with prune(model, UniformGrid(9)):
            model(input_ids=torch.tensor([[3]]), past_key_values=kept)
        with pytest.raises(ValueError, match="the cache holds 1 pruned prompts, but 2 go on from it"):
            kept.batch_repeat_interleave(2)
            model(input_ids=torch.tensor([[3], [3]]), past_key_values=kept)
    for token, step, once in zip(tokens, steps, at_once, strict=True):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(step, wanted)
        close(once, wanted)


def test_a_padded_batch_decodes_by_hand_with_the_mask_of_the_whole_prompts(model):
    inputs, method = tiny.prompts((1, 2)), SparseVLM(24)
    token = torch.tensor([[7], [9]])
    mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
    with prune(model, method), torch.no_grad():
        out = model(**inputs, position_ids=positions(inputs), use_cache=True)
        where = {"attention_mask": mask, "position_ids": inputs["attention_mask"].sum(1, keepdim=True)}
        step = model(input_ids=token, past_key_values=out.past_key_values, **where).logits
        for row in range(2):
            single = model(**tiny.alone(inputs, (1, 2), row), use_cache=True)
            alone = model(input_ids=token[row : row + 1], past_key_values=single.past_key_values).logits[0]
            torch.testing.assert_close(step[row], alone, atol=5e-5, rtol=1e-4)
        # A later token that the mask hides is not seen.
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        where["position_ids"] = where["position_ids"] + 1
        results = []
        for hidden in (False, True):
            for other in (11, 12):
                now = copy.deepcopy(out.past_key_values)
                now.crop(-1)
                model(
                    input_ids=torch.tensor([[other], [9]]),
                    past_key_values=now,
                    **{**where, "attention_mask": mask[:, :-1]},
                )
                mask[0, -2] = int(not hidden)
                results.append(
                    model(input_ids=token, past_key_values=now, **{**where, "attention_mask": mask}).logits[0]
                )
        assert not torch.allclose(results[0], results[1]) and torch.equal(results[2], results[3])


def test_images_of_different_sizes_are_cut_to_their_own_budgets(model):
    @dataclasses.dataclass(frozen=True)
    class TwoStages(FastV):
        """Keeps every third token of the first image before the language model, all of the others."""

        name = "two-stages"

        def counts(self, full, entering, depth):
            return torch.tensor([[9]] + [[15]] * (len(full) - 1))

        def select(self, tokens):
            order = torch.arange(36).expand(len(tokens), 36).clone()
            order[0, 12:] = -1
            order[0, :12] = torch.arange(0, 36, 3)
            return Selection.from_order(order, torch.zeros(len(tokens), 36), self.budget)

    inputs, layout = tiny.prompts((1, 2)), (1, 2)
    method = TwoStages(0.25, budget_convention="final", layer=2)
    with prune(model, method) as run_, torch.no_grad():
        out = model(**inputs, use_cache=True)
    first, *others = run_.report
    assert first.layers == [12, 12, 9, 9, 9] and [r.layers for r in others] == [[36, 36, 15, 15, 15]] * 2
    assert first.before == 36 and first.after == 9 and first.average == pytest.approx(10.2)
    assert set(first.indices) < set(range(0, 36, 3)) and first.drops[0].indices == first.indices
    with prune(model, method), torch.no_grad():
        single = model(**tiny.alone(inputs, layout, 0)).logits[0]
        torch.testing.assert_close(out.logits[0, -len(single) :], single, atol=5e-5, rtol=1e-4)


def test_padding_may_come_from_the_drops_alone(model):
    @dataclasses.dataclass(frozen=True)
    class Uneven(PyramidDrop):
        name = "uneven"

        def counts(self, full, entering, depth):
            return torch.tensor([[9, 4, 2], [30, 20, 10]])[: len(full)]

    single = tiny.prompts((1,))
    pair = {name: torch.cat([single[name], single[name]]) for name in ("input_ids", "pixel_values")}
    with prune(model, Uneven(20)) as run_:
        together, alone = run(model, pair), run(model, {name: value[:1] for name, value in pair.items()})
    assert [r.layers for r in run_.report] == [[36, 9, 9, 4, 2], [36, 30, 30, 20, 10], [36, 9, 9, 4, 2]]
    first = torch.stack(together.logits)[:, :1]
    torch.testing.assert_close(first, torch.stack(alone.logits), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kept_positions", ["compact", "keep"])
@pytest.mark.parametrize("kind", [FastV, PyramidDrop, SparseVLM, DART])
def test_a_choice_before_the_language_model_and_one_inside_follow_each_other(model, decoder, kind, kept_positions):
    class Before:
        """Lets evenly spread tokens enter."""

        def select(self, tokens):
            return UniformGrid(16).select(tokens)

    both = dataclasses.dataclass(frozen=True)(type("Both", (Before, kind), {}))
    where = {"layer": 2} if kind in (FastV, DART) else {"layers": (1, 3)}
    inputs, method = tiny.prompts((1,)), both(6, budget_convention="final", **where)
    counts = method.counts(torch.tensor([36]), torch.tensor([16]), DEPTH).tolist()
    with prune(model, method, kept_positions) as run_, torch.no_grad():
        got = run(model, inputs)
    before = UniformGrid(16).select(batch(image(0))).indices[0].tolist()
    embeddings, (columns,) = embedded(model, inputs)
    gone = [column for token, column in enumerate(columns) if token not in before]
    begin = [column for column in range(len(embeddings)) if column not in gone]
    read = decoder.read(
        np.delete(embeddings, gone, 0),
        [list(range(columns[0], columns[0] + 16))],
        method.drop_layers(DEPTH),
        counts,
        **rule_of(method),
        begin=begin if kept_positions == "keep" else None,
    )
    assert run_.report[0].layers == layers_of(16, counts[0], method.drop_layers(DEPTH), DEPTH)
    assert [drop.indices for drop in run_.report[0].drops] == [[before[i] for i in kept] for kept in read.kept[0]]
    close(got.logits[0][0], read.logits[-1])
    for step, token in enumerate(got.sequences[0, inputs["input_ids"].shape[1] : -1].tolist()):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(got.logits[step + 1][0], wanted)


@pytest.mark.parametrize("kept_positions", ["compact", "keep"])
def test_what_enters_may_be_numbered_either_way(model, decoder, kept_positions):
    inputs, method = tiny.prompts((1,)), VScan(12, left=0.2)
    with prune(model, method, kept_positions), torch.no_grad():
        got = run(model, inputs)
    read = read_alone(model, decoder, method, inputs, kept_positions == "compact")
    close(got.logits[0][0], read.logits[-1])
    for step, token in enumerate(got.sequences[0, inputs["input_ids"].shape[1] : -1].tolist()):
        wanted = decoder.step(read, model.get_input_embeddings().weight[token].detach().double().numpy())
        close(got.logits[step + 1][0], wanted)


@pytest.mark.parametrize("depth", [3, 5])
@pytest.mark.parametrize("convention", ["average", "final"])
def test_every_budget_of_two_stages_runs(depth, convention):
    model, inputs = tiny.build(layers=depth), tiny.prompts((1,))
    for budget in range(1, tiny.TOKENS + 1):
        with prune(model, VScan(budget, budget_convention=convention)) as run_, torch.no_grad():
            assert model(**inputs).logits.isfinite().all()
        (record,) = run_.report
        assert abs(record.average - budget) <= 0.5 if convention == "average" else record.after == budget


def test_a_method_of_two_stages_may_leave_the_second_one_out(model):
    inputs = tiny.prompts((1, 2))
    results = []
    for convention in ("average", "final"):
        with prune(model, VScan(9, layer=None, budget_convention=convention)) as run_:
            results.append(run(model, inputs, use_cache=False))
            assert model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=128)).logits.shape[1]
        assert all(r.layers == [9] * DEPTH and r.drops == [] and len(r.indices) == 9 for r in run_.report)
    assert torch.equal(torch.stack(results[0].logits), torch.stack(results[1].logits))


def test_a_prompt_may_end_in_its_image(model):
    inputs = tiny.prompts((1,))
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, :-7], "attention_mask": None}
    for method in (FastV(20), PyramidDrop(12), DART(20)):
        with prune(model, method) as run_:
            model.generate(**inputs, **GREEDY)
        assert abs(run_.report[0].average - method.budget) <= 0.5


def test_own_positions_are_closed_up_behind_each_drop(model):
    inputs = tiny.prompts((1,))
    moved = torch.arange(inputs["input_ids"].shape[1])[None] + 7
    for method in METHODS_INSIDE:
        if method.name == "dart":
            continue
        with prune(model, method), torch.no_grad():
            torch.testing.assert_close(
                model(**inputs, position_ids=moved).logits, model(**inputs).logits, atol=5e-4, rtol=1e-3
            )


def test_without_a_cache_and_a_mask_the_logits_are_the_same(model):
    inputs = {**tiny.prompts((1,)), "attention_mask": None}
    for method in METHODS_INSIDE:
        with prune(model, method), torch.no_grad():
            wanted = model(**inputs, use_cache=True).logits
            assert torch.equal(model(**inputs, use_cache=False).logits, wanted)


def test_gradients_flow_through_what_is_left(model):
    inputs = tiny.prompts((1, 2))
    with prune(model, PyramidDrop(20)):
        model(**inputs).logits.square().mean().backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


def test_half_precision_runs(model):
    half, inputs = copy.deepcopy(model).to(torch.bfloat16), tiny.prompts((1, 2))
    for method in METHODS_INSIDE:
        with prune(half, method):
            assert model.generate(**inputs, **GREEDY).shape == half.generate(**inputs, **GREEDY).shape


def test_hidden_states_tell_the_lengths_of_the_layers(model):
    inputs = tiny.prompts((1,))
    with prune(model, FastV(20)), torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    text = inputs["input_ids"].shape[1] - 36
    assert [state.shape[1] for state in states] == [text + 36] * 2 + [text + 16] * 4


# ------------------------------------------------------------------------------------------------ the block


def test_the_report_tells_what_was_dropped_where(model):
    inputs = tiny.prompts((1, 2))
    with prune(model, SparseVLM(24)) as run_:
        model.generate(**inputs, **GREEDY)
        model(**tiny.alone(inputs, (1, 2), 0))
        model.generate(**tiny.prompts((0,)), **GREEDY)
    assert [(r.call, r.image) for r in run_.report] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    for record in run_.report:
        assert record.before == 36 and record.requested == 24 and record.select_ms > 0
        assert abs(record.average - 24) <= 0.5 and record.average == np.mean(record.layers)
        assert record.layers[0] == 36 and record.after == record.layers[-1] == record.drops[-1].after
        assert [drop.layer for drop in record.drops] == [1, 2, 3]
        for earlier, later in pairwise(record.drops):
            assert set(later.indices) < set(earlier.indices)
        # Merged tokens are counted but have no index.
        assert all(len(drop.indices) < drop.after for drop in record.drops)
        assert record.indices == record.drops[-1].indices


def test_the_model_is_untouched_after_the_block(model):
    inputs = tiny.prompts((1, 2))
    run(model, inputs)
    before = state(model)
    for method in METHODS_INSIDE:
        with prune(model, method):
            assert not same(state(model), before)
            run(model, inputs)
            model(**inputs)
        assert same(state(model), before)

    @dataclasses.dataclass(frozen=True)
    class Failing(FastV):
        name = "failing"

        def choose(self, tokens, counts):
            raise RuntimeError("on purpose")

    for call in (partial(run, model, inputs), partial(model, **inputs)):
        for method in (FastV(1), Failing(20)):
            with prune(model, method) as run_:
                inside = state(model)
                with pytest.raises((RuntimeError, ValueError)):
                    call()
                assert same(state(model), inside) and run_.report == []
                model(**tiny.prompts((0,)))
                assert same(state(model), inside)
            assert same(state(model), before)
            with pytest.raises((RuntimeError, ValueError)), prune(model, method):
                call()
            assert same(state(model), before)


def test_blocks_nest_and_the_innermost_decides(model):
    inputs = tiny.prompts((1,))
    run(model, inputs)
    before = state(model)
    with prune(model, FastV(20)) as outer:
        model(**inputs)
        with prune(model, UniformGrid(9)) as inner:
            model(**inputs)
            model.generate(**inputs, **GREEDY)
            with prune(model, PyramidDrop(20)) as innermost:
                model.generate(**inputs, **GREEDY)
        model.generate(**inputs, **GREEDY)
    assert [r.layers for r in outer.report] == [[36, 16, 16, 16, 16]] * 2
    assert [r.layers for r in inner.report] == [[9] * 5] * 2
    assert [r.layers[0] for r in innermost.report] == [36] and innermost.report[0].after < 20
    assert same(state(model), before)


def test_text_alone_passes_through(model):
    inputs = tiny.prompts((0, 0))
    plain, logits = model.generate(**inputs, **GREEDY), model(**inputs).logits
    for method in METHODS_INSIDE:
        with prune(model, method) as run_:
            assert torch.equal(model.generate(**inputs, **GREEDY), plain)
            assert torch.equal(model(**inputs).logits, logits)
        assert run_.report == []


def test_a_cache_that_is_used_again_is_forgotten(model):
    inputs, text = tiny.prompts((1,)), tiny.prompts((0,))
    with torch.no_grad():
        plain = model(**text, use_cache=True)
        wanted = model(input_ids=torch.tensor([[5]]), past_key_values=plain.past_key_values).logits
        cache = DynamicCache()
        with prune(model, PyramidDrop(20)):
            model(**inputs, past_key_values=cache)
            cache.reset()
            model(**text, past_key_values=cache)
            assert torch.equal(model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, r"reads the prompt, whole and once: generate\(\) needs use_cache=True"),
        ({"generation_config": GenerationConfig(use_cache=False)}, "needs use_cache=True"),
        ({"prefill_chunk_size": 5}, "needs prefill_chunk_size=None"),
        ({"cache_implementation": "static", "disable_compile": True}, "with a DynamicCache, .* not with StaticCache"),
        ({"cache_implementation": "paged"}, "does not support continuous batching"),
    ],
)
def test_generate_refuses_what_it_cannot_do(model, options, message):
    for method in (FastV(20), PyramidDrop(20)):
        with prune(model, method), pytest.raises(ValueError, match=message):
            model.generate(**tiny.prompts((1,)), **{**GREEDY, **options})


def test_forward_refuses_what_it_cannot_do(model):
    inputs = tiny.prompts((1,))
    with prune(model, FastV(20)):
        with pytest.raises(ValueError, match="the logits are shorter than the labels"):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match=r"with a DynamicCache, .* not with StaticCache"):
            model(**inputs, past_key_values=StaticCache(config=model.config, max_cache_len=64))
        cache = model(**inputs, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="cannot add an image to a cache"):
            model(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match=r"attention_mask must be \(prompts, tokens\), not"):
            model(input_ids=torch.tensor([[3]]), past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 47))
    for method, least in ((FastV(5), 8), (PyramidDrop(5), 8), (SparseVLM(5), 9)):
        with prune(model, method), pytest.raises(ValueError, match=f"the least budget for this model is {least}"):
            model(**inputs)
    with prune(model, SparseVLM(24)), pytest.raises(ValueError, match="no text follows image 0"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :-7], "attention_mask": None})


def test_decoders_that_cannot_drop_are_refused(model):
    with pytest.raises(
        ValueError, match="tokens cannot be dropped inside Linear, which lacks layers, norm, rotary_emb"
    ):
        check_decoder(torch.nn.Linear(1, 1))
    sliding = copy.copy(model.model.language_model)
    sliding.config = copy.deepcopy(sliding.config)
    sliding.config.sliding_window = 4
    with pytest.raises(ValueError, match="LlamaModel, whose layers do not all attend to the whole prompt"):
        check_decoder(sliding)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    decoder = LlamaModel(config)
    check_decoder(decoder)
    decoder.gradient_checkpointing = True
    decoder.train()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        check_decoder(decoder)
    check_decoder(decoder.eval())


# ------------------------------------------------------------------------------------------------ without a block


def test_encoded_images_are_asked_without_a_block(model):
    """What an evaluation does: encode once, then ask with any method."""
    inputs = tiny.prompts((1, 2))
    backbone = adapter_for(model)
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"], tower_depths=(0.25,)), **prompts)
    assert tokens.decoder_layers == DEPTH
    for method in [*METHODS_INSIDE, TopK(7, importance="saliency")]:
        selection = method.select(tokens)
        short = backbone.shorten(prompts, tokens, selection)
        with dropping(backbone, method, tokens, selection, short) as passage:
            got = model.generate(**short, **GREEDY)
        with prune(model, method) as run_:
            wanted = model.generate(**inputs, **GREEDY)
        assert torch.equal(got[:, short["input_ids"].shape[1] :], wanted[:, inputs["input_ids"].shape[1] :])
        assert passage.layers.tolist() == [r.layers for r in run_.report]
        assert [row.tolist() for row in passage.left.rows()] == [r.indices for r in run_.report]
        assert passage.left.requested == method.budget


def test_one_passage_is_for_one_call(model):
    inputs = tiny.prompts((1,))
    backbone, method = adapter_for(model), FastV(20)
    prompts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"]), **prompts)
    selection = method.select(tokens)
    short = backbone.shorten(prompts, tokens, selection)
    with dropping(backbone, method, tokens, selection, short), pytest.raises(ValueError, match="needs use_cache=True"):
        model.generate(**short, **GREEDY, use_cache=False)
    short = backbone.shorten(prompts, tokens, selection)
    with dropping(backbone, method, tokens, selection, short), pytest.raises(ValueError, match="no prefill_chunk_size"):
        model.generate(**short, **GREEDY, prefill_chunk_size=5)


def test_a_method_of_ones_own_needs_places_and_a_choice(model):
    @dataclasses.dataclass(frozen=True)
    class Late(InLLM):
        name = "late"
        positions = "compact"
        reads = "after"

        def places(self, depth):
            return (depth - 1,)

        def choose(self, tokens, counts):
            return most_attended(tokens, counts)

    with prune(model, Late(30)) as run_:
        model.generate(**tiny.prompts((1,)), **GREEDY)
    assert run_.report[0].layers == [36, 36, 36, 36, 6]
