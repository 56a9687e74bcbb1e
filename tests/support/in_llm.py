"""Methods that drop visual tokens inside the language model, and how their slow reference is asked."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import torch
from torch import Tensor

from idsel_core import adapter_for
from idsel_core.methods import DART, FastV, IDSelection, IDSelectionInside, InLLM, PyramidDrop, SparseVLM, VScan
from idsel_core.methods._shared.in_llm import Choice, LayerTokens
from tests.support import in_llm_reference as reference
from tests.support import peers_reference, tiny

DEPTH = 5
RULES = {
    "fastv": {"rule": reference.last_attention, "compact": False},
    "pyramiddrop": {"rule": reference.last_attention, "after": True},
    "sparsevlm": {"rule": reference.sparsevlm},
    "vscan": {"rule": reference.last_attention, "after": True},
    "dart": {"rule": reference.dart, "compact": False},
    "idselection-inside": {"rule": reference.id_selection},
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
    IDSelectionInside(20, times=1.5),
    IDSelectionInside(7, times=4.0, layers=(1, 3), budget_convention="final"),
    DART(20),
    DART(17, layer=2, budget_convention="final", faithful=True),
]


def rule_of(method: InLLM) -> dict:
    rule = dict(RULES[method.name])
    if method.name == "idselection-inside":
        rule["rule"] = partial(rule["rule"], gamma=method.gamma, update=method.update)
    if method.name == "dart" and method.faithful:
        rule["rule"] = partial(rule["rule"], faithful=True)
    return rule


def layers_of(count: int, left: list[int], places: tuple[int, ...], depth: int) -> list[int]:
    return [([count, *left])[sum(place <= layer for place in places)] for layer in range(depth)]


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


def entering_tokens(model, method: IDSelectionInside, single: dict[str, Tensor]) -> list[list[int]]:
    """Return what ID-Selection picks of each image before the language model, which tests of its own compare."""
    backbone, (count,) = adapter_for(model), method.entering(torch.tensor([tiny.TOKENS]), DEPTH).tolist()
    encoded = backbone.encode(single["pixel_values"])
    tokens = backbone.visual_tokens(encoded, single["input_ids"], single["attention_mask"])
    return [row.tolist() for row in IDSelection(count).select(tokens).rows()]


def read_alone(model, decoder, method: InLLM, single: dict[str, Tensor], compact: bool = True) -> reference.Read:
    embeddings, images = embedded(model, single)
    begin, numbers = list(range(len(embeddings))), [list(range(tiny.TOKENS))] * len(images)
    if method.name == "vscan" and images:
        stages = first_stage(model, method, single)
        assert min(one.gap for one in stages) > 2e-7
        for columns, one in zip(images, stages, strict=True):
            embeddings[[columns[token] for token in one.tokens]] = one.read
        numbers = [one.tokens for one in stages]
    if method.name == "idselection-inside" and images:
        numbers = entering_tokens(model, method, single)
    if images and len(numbers[0]) < tiny.TOKENS:
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
