"""The peers against slow float64 references, at the edges of their budgets, in padded batches."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from idsel_core.methods import METHODS, InLLM, Method, get_method
from idsel_core.methods.prunesid import _components
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Unavailable, VisualTokens
from tests.support import peers_reference as reference

BUDGETS = (1, 2, 15, 16, 30, 58, 64, 99, 100)
# Scores that are closer than this share of the highest first one, or of what they are made from, may be ranked either
# way in float32.
TIE = 2e-6
UNIT = {"mmr": 1.0, "divprune": 1.0, "cdpruner": 1.0, "scope": 0.0, "mmtok": 0.0}
PER_TOKEN = ("cls_attention", "cls_attention@0", "cls_attention@0.25", "wide_cls_attention@1", "received_attention")
PER_TOKEN += ("received_attention@0.25", "received_attention@0.375", "relevance", "relevance_product")


def picture(seed: int, rows: int = 10, columns: int = 10) -> dict[str, Tensor]:
    """Return clustered random views of one image, in float64."""
    draw = np.random.default_rng(seed)
    count = rows * columns
    cluster = draw.integers(12, size=count)

    def clustered(*width: int) -> np.ndarray:
        return draw.standard_normal((12, *width))[cluster] + 0.35 * draw.standard_normal((count, *width))

    place = np.arange(count)
    image = {"features": clustered(48), "encoder_features": clustered(24), "keys": clustered(2, 8)}
    image["keys@1"] = clustered(2, 8)
    image["cls_features"] = draw.standard_normal(24)
    for name in PER_TOKEN:
        image[name] = np.exp(draw.standard_normal(12)[cluster] + 0.5 * draw.standard_normal(count)) / 50
    words = int(draw.integers(3, 7))
    image["word_similarity"] = np.full((count, 6), -np.inf)
    image["word_similarity"][:, :words] = draw.uniform(-0.3, 0.3, (count, words))
    image["grid"] = np.stack([place // columns, place % columns], 1)
    return {name: torch.from_numpy(np.asarray(value)) for name, value in image.items()}


# Without a near tie among the first picks.
PICTURES = [picture(0), picture(13, 8, 9), picture(4)]


def project(x: Tensor) -> Tensor:
    """Stand in for a projector; no two encoder features give the same."""
    return torch.cat([x, x[..., :1] + 2 * x[..., 1:2]], -1).tanh()


def batch(*images: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> VisualTokens:
    """Return images as one batch, padded with what must not matter."""
    images = [
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in image.items()}
        for image in images
    ]
    width = max(len(image["features"]) for image in images)

    def padded(name: str) -> Tensor:
        fill = math.nan if images[0][name].is_floating_point() else -1
        if name == "cls_features":
            return torch.stack([image[name] for image in images])
        return torch.nn.utils.rnn.pad_sequence([image[name] for image in images], True, fill)

    mask = torch.arange(width) < torch.tensor([len(image["features"]) for image in images])[:, None]
    sources = {name: lambda name=name: padded(name) for name in images[0] if name not in ("features", "grid")}
    return VisualTokens(padded("features"), mask, padded("grid"), {**sources, "projector": project})


def numpy_of(image: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    """Return an image as the reference reads it: float64, of the numbers that the method was given."""
    return {n: (v.to(dtype).double() if v.is_floating_point() else v).numpy() for n, v in image.items()}


def peer(name: str, **knobs) -> Method:
    """Build a peer; of VScan, the stage before the language model alone; MMR with saliency."""
    return get_method(name, **({"vscan": {"layer": None}, "mmr": {"importance": "saliency"}}.get(name, {}) | knobs))


def rows_of(method: Method, tokens: VisualTokens) -> tuple[list[list[int]], list[list[int]]]:
    """Return kept tokens and pick order of each row."""
    picks = method.select(tokens)
    order = [row[:count].tolist() for row, count in zip(picks.order, picks.counts.tolist(), strict=True)]
    return [row.tolist() for row in picks.rows()], order


def read_rows(method: Method, tokens: VisualTokens) -> list[Tensor]:
    """Return what the language model reads of each image."""
    picks = method.select(tokens)
    features = picks.features
    if features is None:
        features = tokens.features.gather(1, picks.indices.clamp_min(0)[..., None].expand(-1, -1, 48))
    assert features.dtype == tokens.features.dtype
    return [row[:count] for row, count in zip(features, picks.counts.tolist(), strict=True)]


def check_features(picks: Selection, row: int, wanted: reference.Kept) -> None:
    """Check what the language model reads of one image against merged features."""
    if (read := wanted.read) is None and wanted.features is not None:
        read = project(torch.from_numpy(wanted.features))
    if read is None:
        assert picks.features is None
    else:
        got = picks.features[row, : int(picks.counts[row])].double()
        torch.testing.assert_close(got, torch.as_tensor(read), atol=1e-5, rtol=0)


def replay(name: str, image: dict[str, np.ndarray], order: list[int]) -> float:
    """Check that each pick was the best one, or nearly tied with it; return the smallest gap to a second best."""
    gap = math.inf
    slack = TIE * max(np.abs(reference.NEXT[name](image, [])).max(), UNIT[name])
    for step, pick in enumerate(order):
        scores = reference.NEXT[name](image, order[:step])
        scores[order[:step]] = -np.inf
        assert scores[pick] >= scores.max() - slack, f"{name}, pick {step}: {pick} instead of {scores.argmax()}"
        if step < len(scores) - 1:
            gap = min(gap, (np.sort(scores)[-1] - np.sort(scores)[-2]) / slack)
    return gap


def greedy(name: str, image: dict[str, np.ndarray], count: int) -> list[int]:
    picks: list[int] = []
    for _ in range(count):
        scores = reference.NEXT[name](image, picks)
        scores[picks] = -np.inf
        picks.append(int(scores.argmax()))
    return picks


# ------------------------------------------------------------------------------------------------ the same picks


@pytest.mark.parametrize("name", list(reference.NEXT))
def test_greedy_methods_pick_the_tokens_of_the_reference(name):
    images = [numpy_of(image) for image in PICTURES]
    _, longest = rows_of(peer(name, budget=100), batch(*PICTURES))
    for image, order in zip(images, longest, strict=True):
        replay(name, image, order)
        exact = greedy(name, image, 30)
        assert replay(name, image, exact) > 1, "a near tie among the first 30 picks; draw other pictures"
        assert order[:30] == exact
    for budget in BUDGETS:
        kept, order = rows_of(peer(name, budget=budget), batch(*PICTURES))
        for row, (image, all_picks) in enumerate(zip(images, longest, strict=True)):
            count = min(budget, len(image["features"]))
            assert order[row] == all_picks[:count] and kept[row] == sorted(order[row])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", list(reference.KEPT))
def test_methods_keep_the_tokens_of_the_reference(name, budget):
    method, tokens = peer(name, budget=budget), batch(*PICTURES)
    picks = method.select(tokens)
    compared = 0
    for row, image in enumerate(map(numpy_of, PICTURES)):
        wanted = reference.KEPT[name](image, min(budget, len(image["features"])))
        if wanted.gap > 1e-7:
            compared += 1
            assert picks.rows()[row].tolist() == sorted(wanted.tokens)
            check_features(picks, row, wanted)
    assert compared >= 2


@pytest.mark.parametrize("name", [*reference.NEXT, *reference.KEPT])
def test_half_precision_keeps_nearly_the_same_tokens(name, record_property):
    shares = []
    for budget in (16, 64):
        method = peer(name, budget=budget)
        exact, half = (rows_of(method, batch(*PICTURES, dtype=dtype))[0] for dtype in (torch.float32, torch.bfloat16))
        shares += [len(set(a) & set(b)) / len(a) for a, b in zip(exact, half, strict=True)]
    record_property("overlap", sum(shares) / len(shares))
    assert sum(shares) / len(shares) > 0.7, shares


# ------------------------------------------------------------------------------------------------ hard inputs


def spoilt(image: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    image = dict(image)
    for name in ("features", "encoder_features", "keys", "keys@1"):
        image[name] = image[name].clone()
        if how == "duplicates":
            image[name] = image[name][torch.arange(len(image[name])) % 20]
        else:
            image[name][[0, 7, 30]] = 0
    return image


PEERS = sorted({*reference.NEXT, *reference.KEPT})


@pytest.mark.parametrize("how", ["duplicates", "zeros"])
@pytest.mark.parametrize("name", PEERS)
def test_duplicates_and_zero_vectors_do_not_repeat_or_lose_tokens(name, how):
    images = [spoilt(image, how) for image in PICTURES]
    for budget in (2, 30, 64, 99):
        kept, order = rows_of(peer(name, budget=budget), batch(*images))
        for row, image in enumerate(images):
            assert len(set(kept[row])) == len(order[row]) == min(budget, len(image["features"]))
        assert all(row.isfinite().all() for row in read_rows(peer(name, budget=budget), batch(*images)))


@pytest.mark.parametrize("how", ["duplicates", "zeros"])
@pytest.mark.parametrize("name", list(reference.NEXT))
def test_picks_among_duplicates_and_zero_vectors_have_the_best_score(name, how):
    images = [spoilt(image, how) for image in PICTURES]
    _, order = rows_of(peer(name, budget=64), batch(*images))
    for image, picks in zip(images, order, strict=True):
        replay(name, numpy_of(image), picks)
        if how == "duplicates" and name in ("divprune", "cdpruner"):
            assert len({pick % 20 for pick in picks[:20]}) == 20


@pytest.mark.parametrize("name", PEERS)
def test_one_token_and_equal_scores_keep_the_budget(name):
    one = picture(0, 1, 1)
    assert rows_of(peer(name, budget=1), batch(one))[0] == [[0]]
    equal = {key: torch.ones_like(v) if key in PER_TOKEN else v for key, v in PICTURES[0].items()}
    assert len(rows_of(peer(name, budget=9), batch(equal))[0][0]) == 9


# ------------------------------------------------------------------------------------------------ as published


def test_vispruner_as_published_refuses_an_odd_list():
    tokens = batch(PICTURES[0])
    for budget, fits in ((64, True), (58, False), (30, False), (2, False), (16, True)):
        if fits:
            kept = [rows_of(peer("vispruner", budget=budget, faithful=flag), tokens)[0] for flag in (0 == 1, True)]
            assert kept[0] == kept[1]
        else:
            with pytest.raises(ValueError, match=r"must be even; got \[\d+\]"):
                peer("vispruner", budget=budget, faithful=True).select(tokens)


def test_vispruner_compares_tokens_by_the_parity_of_their_rank():
    """A caveat of the method: two tokens that change places in the list change which others are kept."""
    image, first = dict(PICTURES[0]), 8
    ranking = image["cls_attention"].argsort(descending=True).tolist()
    plain = set(rows_of(peer("vispruner", budget=16), batch(image))[0][0])
    spread = []
    for rank in range(first, 60, 4):
        upper, lower = ranking[rank : rank + 2]
        attention = image["cls_attention"].clone()
        attention[[upper, lower]] = image["cls_attention"][[lower, upper]]
        swapped = set(rows_of(peer("vispruner", budget=16), batch({**image, "cls_attention": attention}))[0][0])
        assert plain & swapped >= set(ranking[:first]) - {upper, lower}
        spread.append(len((plain ^ swapped) - {upper, lower}))
    assert max(spread) > 2


def test_vispruner_without_a_diverse_part_is_fastervlm():
    tokens = batch(*PICTURES)
    plain, important = (
        rows_of(peer("fastervlm", budget=20), tokens)[0],
        peer("vispruner", budget=20, important=1.0),
    )
    assert rows_of(important, tokens)[0] == plain


def test_hiprune_neighbours_wrap_as_published_and_not_by_default():
    image = dict(PICTURES[0])
    shallow, deep = torch.zeros(100), torch.linspace(0, 1, 100)
    shallow[20] = 1  # First column of the third row.
    image |= {"received_attention@0.375": shallow, "received_attention": deep}
    fixed, published = (
        set(rows_of(peer("hiprune", budget=10, anchors=0.5, faithful=flag), batch(image))[0][0])
        for flag in (False, True)
    )
    assert fixed == {10, 20, 21, 30, *range(94, 100)}
    assert published == {10, 19, 20, 21, 30, *range(95, 100)}
    image["received_attention@0.375"] = torch.zeros(100).index_fill(0, torch.tensor(3), 1.0)
    kept = rows_of(peer("hiprune", budget=10, anchors=0.5, faithful=True), batch(image))[0][0]
    assert kept[:5] == [0, 2, 3, 4, 13]


@pytest.mark.parametrize(
    ("budget", "share", "anchors"), [(350, 0.15, 10), (175, 0.3, 10), (375, 0.3, 22), (64, 0.1, 1)]
)
def test_hiprune_counts_anchors_in_double_precision_and_rounds_half_to_even(budget, share, anchors):
    image = picture(3, 24, 24)
    # The anchors are every third token of every third row, so that no neighbour is shared; the deep layer is flat.
    best = torch.tensor([row * 24 + column for row in range(1, 24, 3) for column in range(1, 24, 3)])
    image["received_attention@0.375"] = torch.zeros(576).index_put((best,), torch.linspace(2, 1, len(best)))
    image["received_attention"] = torch.zeros(576).index_fill(0, best, -1.0)
    for faithful in (False, True):
        kept = peer("hiprune", budget=budget, anchors=share, faithful=faithful).select(batch(image)).rows()[0]
        assert int(torch.isin(best, kept).sum()) == anchors


def test_hiprune_as_published_refuses_more_anchors_than_the_budget():
    tokens = batch(PICTURES[0])
    assert peer("hiprune", budget=3, anchors=1.0).select(tokens).counts.tolist() == [3]
    with pytest.raises(ValueError, match=r"are more than the budget; got \[5\] of \[3\] tokens"):
        peer("hiprune", budget=3, anchors=1.0, faithful=True).select(tokens)


def test_hiprune_has_no_anchor_at_small_budgets():
    tokens = batch(PICTURES[0])
    deep = PICTURES[0]["received_attention"].topk(16).indices.tolist()
    assert rows_of(peer("hiprune", budget=16), tokens)[0] == [sorted(deep)]


def test_hiprune_off_the_grid_has_no_neighbours():
    image = dict(PICTURES[0])
    image["grid"] = torch.full_like(image["grid"], -1)
    image["received_attention@0.375"] = torch.linspace(1, 0, 100)
    image["received_attention"] = torch.linspace(0, 1, 100)
    kept = rows_of(peer("hiprune", budget=10, anchors=0.5), batch(image))[0][0]
    assert kept == [0, *range(91, 100)]


@pytest.mark.parametrize(("share", "fixed", "published"), [(0.345, 35, 34), (0.355, 36, 36), (0.004, 1, 1)])
def test_divprune_as_published_rounds_a_share_half_to_even(share, fixed, published):
    counts = [
        peer("divprune", budget=share, faithful=flag).select(batch(PICTURES[0])).counts.tolist()
        for flag in (False, True)
    ]
    assert counts == [[fixed], [published]]


def test_divprune_as_published_picks_duplicates_again():
    image = spoilt(PICTURES[0], "duplicates")
    picks = peer("divprune", budget=64, faithful=True).select(batch(image))
    assert int(picks.counts) < 64
    assert len({i % 20 for i in picks.rows()[0].tolist()}) == 20
    exact, published = (
        rows_of(peer("divprune", budget=30, faithful=flag), batch(*PICTURES))[0] for flag in (False, True)
    )
    assert exact == published


def test_cdpruner_as_published_loses_tokens_when_nothing_is_left_to_explain():
    image = spoilt(PICTURES[0], "duplicates")
    picks = peer("cdpruner", budget=90, faithful=True).select(batch(image, PICTURES[1]))
    assert 20 <= int(picks.counts[0]) < 90
    exact, published = (
        rows_of(peer("cdpruner", budget=30, faithful=flag), batch(*PICTURES))[1] for flag in (False, True)
    )
    assert exact == published


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4])
def test_cdpruner_tells_the_tokens_of_a_tight_cluster_apart(spread):
    """All tokens are nearly alike, so that every pick leaves a variance far below one."""
    image = dict(PICTURES[0])
    draw = torch.Generator().manual_seed(0)
    noise = spread * torch.randn(100, 48, generator=draw, dtype=torch.float64)
    image["features"] = torch.ones(48, dtype=torch.float64) + noise
    image["relevance"] = torch.linspace(1, 0.9, 100, dtype=torch.float64)
    image["relevance"][0] = 0
    exact = greedy("cdpruner", numpy_of(image), 30)
    assert rows_of(peer("cdpruner", budget=30), batch(image))[1][0] == exact
    assert exact != sorted(exact)  # which the order by relevance would be


def test_cdpruner_of_equal_relevance_is_diversity_alone():
    image = {**PICTURES[0], "relevance": torch.full((100,), 0.3, dtype=torch.float64)}
    assert rows_of(peer("cdpruner", budget=20), batch(image))[1][0] == greedy("cdpruner", numpy_of(image), 20)


def test_cdpruner_picks_explained_tokens_by_relevance():
    image = spoilt(PICTURES[0], "duplicates")
    order = rows_of(peer("cdpruner", budget=64), batch(image))[1][0]
    filled = image["relevance"][order[20:]]
    assert bool((filled[1:] <= filled[:-1]).all())


@pytest.mark.parametrize("name", ["cdpruner", "trim"])
def test_negated_relevance_turns_the_sign(name):
    turned = {**PICTURES[0], "relevance": -PICTURES[0]["relevance"]}
    plain = rows_of(peer(name, budget=20), batch(turned))
    assert rows_of(peer(name, budget=20, negated=True), batch(PICTURES[0])) == plain


@pytest.mark.parametrize(("budget", "kept"), [(16, 17), (100, 100), (0.111, 12), (0.005, 1)])
def test_trim_as_published_keeps_the_mean_beside_the_budget(budget, kept):
    picks = peer("trim", budget=budget, faithful=True).select(batch(PICTURES[0]))
    assert picks.counts.tolist() == [kept]
    wanted = reference.trim(numpy_of(PICTURES[0]), kept - 1, "relevance_product", extra=1)
    assert picks.rows()[0].tolist() == sorted(wanted.tokens)
    check_features(picks, 0, wanted)


# ------------------------------------------------------------------------------------------------ merging

MERGING = ("trim", "visionzip", "prumergeplus", "tome", "vscan")


@pytest.mark.parametrize("budget", [*BUDGETS, 0.03, 0.2, 0.5])
@pytest.mark.parametrize("name", MERGING)
def test_merged_tokens_do_not_depend_on_the_other_images_of_a_batch(name, budget):
    together = read_rows(peer(name, budget=budget), batch(*PICTURES))
    for row, image in zip(together, PICTURES, strict=True):
        method = peer(name, budget=min(budget, len(image["features"])))
        (alone,) = read_rows(method, batch(image))
        torch.testing.assert_close(row, alone, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "knobs"), [("tome", {}), ("vscan", {}), ("visionzip", {"attention": "received", "dominant": 1.0})]
)
def test_nothing_is_merged_if_all_tokens_are_kept(name, knobs):
    tokens = batch(*PICTURES)
    rows = read_rows(peer(name, budget=100, **knobs), tokens)
    source = tokens.features if name == "vscan" else project(tokens.encoder_features)
    for row, whole in zip(rows, source, strict=True):
        assert torch.equal(row, whole[: len(row)])


@pytest.mark.parametrize("name", MERGING)
def test_half_precision_tokens_are_merged_in_full_precision(name):
    coarse = [{key: v.bfloat16().float() if v.is_floating_point() else v for key, v in one.items()} for one in PICTURES]
    method = peer(name, budget=16)
    for half, full in zip(
        read_rows(method, batch(*PICTURES, dtype=torch.bfloat16)), read_rows(method, batch(*coarse)), strict=True
    ):
        torch.testing.assert_close(half, full.bfloat16(), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("budget", "patches", "merged"), [(192, 161, 30), (128, 107, 20), (64, 53, 10), (32, 26, 5), (2, 1, 0), (1, 0, 0)]
)
def test_visionzip_splits_the_budget_as_published(budget, patches, merged):
    image = picture(5, 24, 24)
    tokens = batch({**image, "cls_features": torch.full((24,), 3.0)})
    picks = peer("visionzip", budget=budget).select(tokens)
    attended = image["cls_attention"].argsort(descending=True).tolist()
    order = picks.order[0].tolist()
    assert order[:patches] == attended[:patches]
    targets = order[patches:-1]
    assert len(targets) == merged and targets == sorted(targets) and not set(targets) & set(attended[:patches])
    assert order[-1] == next(i for i in attended if i not in order[:-1])
    read = picks.features[0]
    assert torch.equal(read[0], project(torch.full((24,), 3.0)))
    kept = image["encoder_features"][sorted(attended[:patches])].float()
    torch.testing.assert_close(read[1 : 1 + patches], project(kept))


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_visionzip_as_published_refuses_a_budget_without_merged_tokens(budget):
    with pytest.raises(ValueError, match=rf"divides by the number of merged tokens; got \[0\] of \[{budget}\]"):
        peer("visionzip", budget=budget, faithful=True).select(batch(PICTURES[0]))


def test_visionzip_as_published_adds_means_and_makes_longer_tokens():
    tokens, lengths = batch(*PICTURES), []
    for faithful in (False, True):
        picks = peer("visionzip", budget=16, faithful=faithful).select(tokens)
        for row, image in enumerate(map(numpy_of, PICTURES)):
            wanted = reference.visionzip(image, 16, total=faithful)
            check_features(picks, row, wanted)
            lengths.append(np.linalg.norm(wanted.features[-2:], axis=1).mean())
    assert np.mean(lengths[3:]) > 1.7 * np.mean(lengths[:3])


@pytest.mark.parametrize("budget", BUDGETS)
def test_visionzip_of_a_tower_without_cls_keeps_one_more_token(budget):
    picks = peer("visionzip", budget=budget, attention="received").select(tokens := batch(*PICTURES))
    for row, image in enumerate(map(numpy_of, PICTURES)):
        image["cls_attention"] = image["received_attention"]
        wanted = reference.visionzip(image, min(budget, len(image["features"])), cls=False)
        assert picks.rows()[row].tolist() == sorted(wanted.tokens)
        check_features(picks, row, wanted)
    assert not {"cls_attention", "cls_features"} & tokens.computed


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_visionzip_takes_other_shares_of_dominant_tokens(share):
    picks = peer("visionzip", budget=20, dominant=share).select(batch(*PICTURES))
    for row, image in enumerate(map(numpy_of, PICTURES)):
        wanted = reference.visionzip(image, 20, share)
        assert picks.rows()[row].tolist() == sorted(wanted.tokens)
        check_features(picks, row, wanted)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [(64, 129), (32, 65), (16, 33), (57, 115), (287, 575), (23, 47), (64 / 576, 129), (0.0278, 33), (0.0217, 25)],
)
def test_prumergeplus_as_published_reads_twice_the_budget_and_some_tokens_again(budget, kept):
    image = picture(7, 24, 24)
    picks = peer("prumergeplus", budget=budget, faithful=True).select(batch(image))
    assert picks.counts.tolist() == [kept] == [len(set(picks.rows()[0].tolist()))]
    wanted = reference.prumergeplus(numpy_of(image), kept // 2, budget / 576 if isinstance(budget, int) else budget)
    centres = wanted.notes["centres"]
    assert len(centres) == kept - 1
    assert picks.order[0].tolist() == wanted.tokens
    check_features(picks, 0, wanted)
    again = [centres.index(i) for i in centres[kept // 2 :] if centres.index(i) < kept // 2]
    assert len(again) == len(centres) - len(set(centres))
    for first in again:  # it is merged into its twin, and its twin into it
        second = centres.index(centres[first], first + 1)
        torch.testing.assert_close(picks.features[0][first], picks.features[0][second])
    assert peer("prumergeplus", budget=budget).select(batch(image)).counts.tolist() == [kept // 2]


def test_prumergeplus_as_published_counts_a_spaced_token_that_is_attended_as_its_own_neighbour():
    image = picture(7, 24, 24)
    # A step of 9 from 4: tokens 4, 13, ... 571. Of the 64 most attended tokens 13 alone is one of them.
    image["wide_cls_attention@1"] = torch.linspace(0.2, 0.1, 576, dtype=torch.float64)
    image["wide_cls_attention@1"][[token for token in range(4, 576, 9) if token != 13]] = 0.05
    apart = {**image, "keys@1": torch.nn.functional.one_hot(torch.arange(576), 576).double().view(576, 2, 288)}
    picks = peer("prumergeplus", budget=64, neighbours=1, faithful=True).select(batch(apart))
    weight, state = apart["wide_cls_attention@1"][13], apart["encoder_features"][13]
    at = picks.order[0].tolist().index(13)
    torch.testing.assert_close(picks.features[0, at], project((state + weight * state).float()), atol=1e-6, rtol=0)


def test_prumergeplus_as_published_in_a_padded_batch():
    images = [picture(7, 24, 24), picture(8, 12, 12)]
    picks = peer("prumergeplus", budget=1 / 9, faithful=True).select(batch(*images))
    assert picks.counts.tolist() == [129, 33]
    for row, image in enumerate(map(numpy_of, images)):
        wanted = reference.prumergeplus(image, 0, 1 / 9)
        assert picks.order[row, : len(wanted.tokens)].tolist() == wanted.tokens
        check_features(picks, row, wanted)


@pytest.mark.parametrize(
    ("budget", "spaced", "attended"), [(0.2222, 144, 127), (288, 287, 288), (58, 64, 58), (1.0, 575, 576)]
)
def test_prumergeplus_as_published_refuses_budgets_on_which_its_code_fails(budget, spaced, attended):
    with pytest.raises(ValueError, match=rf"a budget of {budget} gives {spaced} and {attended} of 576 tokens"):
        peer("prumergeplus", budget=budget, faithful=True).select(batch(picture(7, 24, 24)))


def test_prumergeplus_keeps_spaced_tokens_apart_from_attended_ones():
    image = {**PICTURES[0], "wide_cls_attention@1": torch.linspace(1, 0.1, 100)}
    order = peer("prumergeplus", budget=21).select(batch(image)).order[0].tolist()
    assert order == [*range(10), *range(14, 100, 9), 10]


def test_prumergeplus_takes_fewer_neighbours():
    picks = peer("prumergeplus", budget=16, neighbours=3).select(batch(*PICTURES))
    for row, image in enumerate(map(numpy_of, PICTURES)):
        check_features(picks, row, reference.prumergeplus(image, 16, near=3))


@pytest.mark.parametrize("budget", BUDGETS)
def test_tome_as_published_leaves_tokens_in_the_order_of_the_halves(budget):
    picks = peer("tome", budget=budget, faithful=True).select(batch(*PICTURES))
    compared = 0
    for row, image in enumerate(map(numpy_of, PICTURES)):
        wanted = reference.tome(image, min(budget, len(image["features"])), halves=True)
        if wanted.gap > 1e-7:
            compared += 1
            assert picks.order[row, : len(wanted.tokens)].tolist() == wanted.tokens
            check_features(picks, row, wanted)
    assert compared >= 2
    order = picks.order[0].tolist()
    assert (order == sorted(order)) == (budget in (1, 100))


def test_tome_weighs_merged_tokens_by_what_they_are_made_of():
    image = dict(PICTURES[0])
    image["keys"] = torch.nn.functional.one_hot(torch.arange(100) * 5 // 100, 5).double()[:, None]
    (read,) = read_rows(peer("tome", budget=5), batch(image))
    means = image["encoder_features"].view(5, 20, -1).mean(1)
    torch.testing.assert_close(read, project(means.float()), atol=1e-6, rtol=0)
    (read,) = read_rows(peer("tome", budget=1), batch(image))
    torch.testing.assert_close(read, project(means.mean(0, keepdim=True).float()), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("budget", "published"), [(96, 96), (100, 98), (48, 40), (64, 64), (32, 32), (33, 33)])
def test_vscan_as_published_loses_the_remainder_over_windows(budget, published):
    image = picture(8, 24, 24)
    counts = [int(peer("vscan", budget=budget, faithful=flag).select(batch(image)).counts) for flag in (False, True)]
    assert counts == [budget, published]
    picks = peer("vscan", budget=budget, faithful=True).select(batch(image))
    wanted = reference.vscan(numpy_of(image), budget, lossy=True)
    assert picks.rows()[0].tolist() == wanted.tokens
    check_features(picks, 0, wanted)


def test_vscan_as_published_refuses_fewer_local_tokens_than_windows():
    with pytest.raises(ValueError, match=r"needs a local token for each of 16 windows; got \[8, 8, 8\]"):
        peer("vscan", budget=16, faithful=True).select(batch(*PICTURES))
    assert peer("vscan", budget=16).select(batch(*PICTURES)).counts.tolist() == [16, 16, 16]


@pytest.mark.parametrize(
    ("budget", "convention", "depth", "entering"),
    [(64, "average", 32, 96), (192, "average", 32, 288), (32, "final", None, 96), (20, "average", 5, 27)],
)
def test_vscan_lets_more_tokens_enter_if_it_drops_some_later(budget, convention, depth, entering):
    tokens = batch(picture(8, 24, 24))
    method = get_method("vscan", budget=budget, budget_convention=convention)
    picks = method.select(replace(tokens, decoder_layers=depth))
    whole = peer("vscan", budget=entering).select(tokens)
    assert torch.equal(picks.order, whole.order) and torch.equal(picks.features, whole.features)
    assert picks.counts.tolist() == [entering] and picks.requested == budget


def test_vscan_needs_the_number_of_layers_for_an_average_budget():
    message = "decoder_layers is not available: an average budget needs the number of layers of the language model"
    with pytest.raises(Unavailable, match=message):
        get_method("vscan", budget=9).select(batch(*PICTURES))


def test_vscan_gives_every_window_a_token_in_turn():
    image = picture(8, 24, 24)
    shallow = image["cls_attention@0.25"] = torch.linspace(2, 1, 576)
    for local, least, most in ((32, 2, 2), (40, 2, 3), (8, 0, 1)):
        picks = peer("vscan", budget=local, local=1.0).select(batch(image)).rows()[0]
        window = image["grid"][picks] // 6
        spread = torch.bincount(window[:, 0] * 4 + window[:, 1], minlength=16)
        assert (int(spread.min()), int(spread.max())) == (least, most)
    assert picks.tolist() == [*range(0, 24, 6), *range(144, 168, 6)] and shallow[0] == shallow.max()
    assert peer("vscan", budget=9, local=0.0).select(batch(image)).order[0].tolist() == (
        image["cls_attention"].topk(9).indices.tolist()
    )


# ------------------------------------------------------------------------------------------------ EVS's videos


def video(seed: int, frames: int, rows: int, columns: int) -> dict[str, Tensor]:
    """Return a video whose tokens mostly change little from frame to frame."""
    draw = np.random.default_rng(seed)
    cells = rows * columns
    still = np.repeat(draw.standard_normal((1, cells, 48)), frames, 0)
    steps = draw.standard_normal((frames, cells, 48)) * np.exp(draw.standard_normal((frames, cells, 1)) - 2)
    place = np.arange(cells)
    shown = {
        "features": (still + steps.cumsum(0)).reshape(-1, 48),
        "grid": np.tile(np.stack([place // columns, place % columns], 1), (frames, 1)),
        "frames": np.repeat(np.arange(frames), cells),
    }
    return {name: torch.from_numpy(value) for name, value in shown.items()}


VIDEOS = [video(0, 4, 5, 5), video(1, 6, 3, 4), video(2, 1, 7, 8), video(3, 2, 7, 7)]


def videos(*shown: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> VisualTokens:
    tokens = batch(*({**one, "cls_features": torch.zeros(1)} for one in shown), dtype=dtype)
    return VisualTokens(tokens.features, tokens.mask, tokens.grid, {"frames": tokens.sources["frames"]})


@pytest.mark.parametrize("budget", BUDGETS)
def test_evs_keeps_the_tokens_of_the_reference(budget):
    picks = peer("evs", budget=budget).select(videos(*VIDEOS))
    for row, shown in enumerate(map(numpy_of, VIDEOS)):
        wanted = reference.evs(shown, min(budget, len(shown["features"])))
        assert wanted.gap > 1e-7
        assert picks.rows()[row].tolist() == sorted(wanted.tokens)
        first = int((shown["frames"] == 0).sum())
        assert picks.order[row, : min(budget, first)].tolist() == list(range(min(budget, first)))
        torch.testing.assert_close(
            picks.scores[row, : len(shown["features"])].double(),
            torch.tensor(wanted.notes["scores"]),
            atol=1e-6,
            rtol=0,
        )


def test_evs_ranks_unchanged_tokens_by_place_and_zero_vectors_as_the_reference():
    still = {**video(0, 3, 4, 4), "features": video(0, 1, 4, 4)["features"].repeat(3, 1)}
    assert peer("evs", budget=30).select(videos(still)).rows()[0].tolist() == list(range(30))
    still["features"][[17, 18, 2, 40]] = 0
    picks = peer("evs", budget=20).select(videos(still))
    assert picks.order[0, 16:].tolist() == [17, 18, 33, 34]
    assert picks.scores[0, [17, 18, 33, 34, 40]].tolist() == [1.0, 1.0, 1.0, 1.0, 1.0]


def test_evs_finds_the_previous_token_in_every_order_of_tokens():
    shown = VIDEOS[0]
    plain = peer("evs", budget=60).select(videos(shown))
    mixed = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    scores = peer("evs", budget=60).select(videos({name: v[mixed] for name, v in shown.items()})).scores[0]
    torch.testing.assert_close(scores, plain.scores[0, mixed])
    lost = {**shown, "grid": shown["grid"].clone()}
    lost["grid"][60] = -1
    scores = peer("evs", budget=60).select(videos(lost)).scores[0]
    assert (scores == 255).nonzero()[:, 0].tolist() == [*range(25), 60, 85]


def test_evs_as_published_keeps_the_first_frame_and_rounds_down():
    tokens = videos(*VIDEOS)
    for budget, fixed, published in (
        (10, [10] * 4, [25, 12, 56, 49]),
        (0.509, [51, 37, 29, 50], [50, 36, 56, 49]),
        (50, [50, 50, 50, 50], [50, 50, 56, 50]),
    ):
        counts = [peer("evs", budget=budget, faithful=flag).select(tokens).counts.tolist() for flag in (False, True)]
        assert counts == [fixed, published]


def test_evs_in_half_precision_keeps_nearly_the_same_tokens(record_property):
    kept = [
        peer("evs", budget=60).select(videos(VIDEOS[0], dtype=dtype)).rows()[0].tolist()
        for dtype in (torch.float32, torch.bfloat16)
    ]
    record_property("overlap", share := len(set(kept[0]) & set(kept[1])) / 60)
    assert share > 0.9


@pytest.mark.parametrize("budget", BUDGETS)
def test_vidcom2_keeps_the_tokens_of_the_reference(budget):
    picks, compared = peer("vidcom2", budget=budget).select(videos(*VIDEOS)), 0
    for row, shown in enumerate(map(numpy_of, VIDEOS)):
        count = min(budget, len(shown["features"]))
        wanted = reference.vidcom2(shown, count)
        assert len(wanted.tokens) == count == int(picks.counts[row])
        if wanted.gap > 1e-6:
            compared += 1
            assert picks.rows()[row].tolist() == sorted(wanted.tokens)
    assert compared >= 3


def test_vidcom2_gives_a_frame_unlike_the_others_more_tokens():
    shown = video(0, 6, 5, 5)
    shown["features"] = shown["features"][:25].repeat(6, 1) + 0.01 * shown["features"]
    shown["features"][50:75] *= -1
    kept = peer("vidcom2", budget=36).select(videos(shown)).rows()[0]
    in_frames = torch.bincount(kept // 25, minlength=6).tolist()
    assert in_frames[2] == max(in_frames) > 8 and sum(in_frames) == 36
    even = peer("vidcom2", budget=36, temperature=1e6).select(videos(shown)).rows()[0]
    assert torch.bincount(even // 25).tolist() == [6] * 6
    assert torch.bincount(peer("vidcom2", budget=6).select(videos(shown)).rows()[0] // 25).tolist() == [1] * 6


def test_vidcom2_reads_the_quiet_half_of_the_channels():
    shown = VIDEOS[0]
    loud = {**shown, "features": torch.cat([shown["features"], 50 * torch.randn(100, 48, dtype=torch.float64)], 1)}
    whole = peer("vidcom2", budget=30, channels=1.0).select(videos(shown)).rows()[0]
    assert torch.equal(peer("vidcom2", budget=30).select(videos(loud)).rows()[0], whole)
    assert not torch.equal(peer("vidcom2", budget=30).select(videos(shown)).rows()[0], whole)


@pytest.mark.parametrize("knobs", [{"temperature": 0.1}, {"temperature": 1.0}, {"channels": 0.1}, {"channels": 0.9}])
def test_vidcom2_follows_the_formula_at_other_knobs(knobs):
    tokens, changed = videos(*VIDEOS), 0
    plain, other = (peer("vidcom2", budget=30, **given).select(tokens) for given in ({}, knobs))
    for row, shown in enumerate(map(numpy_of, VIDEOS)):
        wanted = reference.vidcom2(shown, 30, **knobs)
        if wanted.gap > 1e-6:
            assert other.rows()[row].tolist() == sorted(wanted.tokens)
            changed += not torch.equal(other.rows()[row], plain.rows()[row])
    assert changed


# ------------------------------------------------------------------------------------------------ HoloV, PruneSID, MMR


@pytest.mark.parametrize("balance", [0.2, 0.8])
def test_mmr_weighs_importance_by_its_balance(balance):
    plain, other = (
        peer("mmr", budget=20, **given).select(batch(*PICTURES)).order for given in ({}, {"balance": balance})
    )
    assert not torch.equal(plain, other)
    for order, image in zip(other.tolist(), map(numpy_of, PICTURES), strict=True):
        for step in range(20):
            scores = reference.mmr(image, order[:step], balance)
            scores[order[:step]] = -np.inf
            assert scores[order[step]] >= scores.max() - TIE


@pytest.mark.parametrize("budget", [20, 64])
def test_mmr_ranges_from_top_k_to_diversity(budget):
    tokens = batch(*PICTURES)
    topk = get_method("topk", budget=budget, importance="saliency").select(tokens).order
    assert torch.equal(peer("mmr", budget=budget, balance=1.0).select(tokens).order, topk)
    spread = peer("mmr", budget=budget, balance=0.0).select(tokens)
    first = numpy_of(PICTURES[0])
    x, order = reference.unit(first["features"]), spread.order[0].tolist()
    assert order[0] == int(first["cls_attention"].argmax())
    for step in range(1, 10):  # the token whose nearest pick is furthest
        nearest = (x @ x[order[:step]].T).max(1)
        nearest[order[:step]] = np.inf
        assert order[step] == int(nearest.argmin())


def test_mmr_reads_the_importance_and_the_features_that_it_names():
    tokens = batch(*PICTURES)
    turned = {**PICTURES[0], "relevance": PICTURES[0]["cls_attention"] / 2}
    by_relevance = peer("mmr", budget=20, importance="relevance").select(batch(turned)).order[0]
    assert torch.equal(by_relevance, peer("mmr", budget=20).select(tokens).order[0, :20])
    swapped = {**PICTURES[0], "features": PICTURES[0]["encoder_features"], "encoder_features": PICTURES[0]["features"]}
    by_encoder = peer("mmr", budget=20, features="encoder").select(batch(swapped)).order[0]
    assert torch.equal(by_encoder, peer("mmr", budget=20).select(tokens).order[0, :20])


@pytest.mark.parametrize("crops", [1, 7, 16, 500])
def test_holov_cuts_the_image_into_stretches_of_equal_length(crops):
    for budget in (5, 40):
        picks = peer("holov", budget=budget, crops=crops).select(batch(*PICTURES))
        for row, image in enumerate(map(numpy_of, PICTURES)):
            wanted = reference.holov(image, budget, crops)
            assert wanted.gap > 1e-9 and picks.rows()[row].tolist() == sorted(wanted.tokens)
    one = peer("holov", budget=20, crops=1).select(batch(*PICTURES))
    assert one.indices.tolist() == peer("fastervlm", budget=20).select(batch(*PICTURES)).indices.tolist()


def test_holov_gives_what_a_full_stretch_cannot_take_to_the_others():
    image = dict(PICTURES[0])
    image["cls_attention"] = torch.full((100,), 1e-3, dtype=torch.float64)
    image["cls_attention"][:7] = 1.0
    kept = peer("holov", budget=50).select(batch(image)).rows()[0].tolist()
    assert len(kept) == 50 and set(range(7)) <= set(kept)
    sizes = np.bincount(np.array(kept) // 7, minlength=15)
    assert sizes[0] == 7 and sizes[1:14].min() >= 2


def test_holov_shares_the_budget_by_attention_where_tokens_differ():
    """The variety of a stretch is brought to its mean attention, so that it cancels."""
    tokens = batch(*PICTURES)
    plain, varied = (peer("holov", budget=40, alpha=alpha).select(tokens).indices for alpha in (1e-9, 5.0))
    assert torch.equal(plain, varied)


@pytest.mark.parametrize("alpha", [0.5, 3.0])
def test_holov_gives_less_to_stretches_whose_tokens_are_all_alike_by_alpha(alpha):
    image = dict(PICTURES[0])
    image["features"] = torch.cat([image["features"][:1].repeat(50, 1), image["features"][50:]])
    plain, varied = (peer("holov", budget=40, alpha=weight).select(batch(image)).rows()[0] for weight in (1e-9, alpha))
    wanted = reference.holov(numpy_of(image), 40, alpha=alpha)
    assert wanted.gap > 1e-6 and varied.tolist() == sorted(wanted.tokens)
    assert int((varied < 50).sum()) < int((plain < 50).sum())


def test_prunesid_takes_one_token_of_each_group_and_sets_similar_ones_aside():
    # Four groups of five duplicates, and features in which the groups are far apart.
    features = 8 * torch.nn.functional.one_hot(torch.arange(4).repeat_interleave(5), 24).double() - 4
    features += 0.01 * torch.arange(20, dtype=torch.float64)[:, None].sin()
    image = {**picture(0, 4, 5), "encoder_features": features}
    image["cls_attention"] = torch.linspace(1, 0.5, 20, dtype=torch.float64)
    kept = peer("prunesid", budget=4, per_group=1).select(batch(image)).rows()[0]
    assert len(set((kept // 5).tolist())) >= 3


@pytest.mark.parametrize("width", [8, 40])
def test_prunesid_has_no_more_groups_than_the_image_has_components(width):
    """Three kinds of token span three components, however many the budget would pay for."""
    kinds = torch.randn(3, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image = {**picture(0, 4, 6), "encoder_features": kinds[torch.arange(24) % 3]}
    tokens = batch(image, image)
    group = _components(tokens.encoder_features, tokens.mask, torch.tensor([2, 9]))
    assert group[0].max() <= 1 and group[1].max() <= 2
    assert all(len(set(group[row, start::3].tolist())) == 1 for row in (0, 1) for start in range(3))
    mixed = torch.randperm(width, generator=torch.Generator().manual_seed(1))
    assert torch.equal(_components(tokens.encoder_features[..., mixed], tokens.mask, torch.tensor([2, 9])), group)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_prunesid_without_a_component_is_one_group(value):
    image = {**picture(0, 4, 6), "encoder_features": torch.full((24, 8), value, dtype=torch.float64)}
    tokens = batch(image)
    assert _components(tokens.encoder_features, tokens.mask, torch.tensor([6])).tolist() == [[0] * 24]
    kept = peer("prunesid", budget=12).select(tokens).rows()[0].tolist()
    assert kept == sorted(reference.prunesid(numpy_of(image), 12).tokens)


@pytest.mark.parametrize("knobs", [{"per_group": 1}, {"per_group": 9}, {"scale": 8.0}, {"scale": 200.0}])
def test_prunesid_follows_the_formula_at_other_knobs(knobs):
    changed = 0
    for budget in (12, 30):
        tokens = batch(*PICTURES)
        plain, other = (peer("prunesid", budget=budget, **given).select(tokens) for given in ({}, knobs))
        for row, image in enumerate(map(numpy_of, PICTURES)):
            wanted = reference.prunesid(image, budget, **knobs)
            if wanted.gap > 1e-7:
                assert other.rows()[row].tolist() == sorted(wanted.tokens)
                changed += not torch.equal(other.rows()[row], plain.rows()[row])
    assert changed


# ------------------------------------------------------------------------------------------------ HiRED's crops


def cropped(seed: int, rows: int, columns: int, side: int = 6) -> dict[str, Tensor]:
    """Return an image of one thumbnail and rows x columns crops, each of side x side tokens."""
    parts = 1 + rows * columns
    image = picture(seed, side * parts, side)
    image["grid"] = picture(0, side, side)["grid"].repeat(parts, 1)
    layout = [(-1, -1), *((r, c) for r in range(rows) for c in range(columns))]
    image["crops"] = torch.tensor(layout).repeat_interleave(side * side, 0)
    return image


CROPS = [cropped(1, 2, 2), cropped(2, 1, 3), cropped(3, 2, 1)]


@pytest.mark.parametrize("slip", [False, True])
@pytest.mark.parametrize("budget", [2, 15, 16, 30, 58, 64, 107, 108, 144])
def test_hired_keeps_the_tokens_of_the_reference_for_unequal_crops(budget, slip):
    picks = peer("hired", budget=budget, faithful=slip).select(batch(*CROPS))
    for row, image in enumerate(map(numpy_of, CROPS)):
        wanted = reference.hired(image, min(budget, len(image["features"])), slip)
        assert wanted.gap > 1e-7
        assert picks.rows()[row].tolist() == sorted(wanted.tokens)
    assert slip or picks.counts.tolist() == [min(budget, len(image["features"])) for image in CROPS]


def test_hired_as_published_mistakes_columns_for_rows():
    image = cropped(1, 2, 2, side=24)
    early = torch.rand(24, 24, generator=torch.Generator().manual_seed(0)) / 10
    early[12:, 12:] += 1
    image["cls_attention@0"][:576] = early.flatten()

    def in_crops(faithful: bool) -> list[int]:
        kept = peer("hired", budget=576, faithful=faithful).select(batch(image)).rows()[0]
        return torch.bincount(kept // 576, minlength=5).tolist()

    # Half of the marks lie in the bottom right, the others anywhere; by runs, they seem to lie in the bottom half.
    base, *fixed = in_crops(False)
    assert base == 288 and fixed[3] == 144 and max(fixed[:3]) < 60
    _, *published = in_crops(True)
    assert sum(published[2:]) > 170 and max(published) < 110


def test_hired_without_crops_is_fastervlm_and_rounds_down_as_published():
    tokens = batch(*PICTURES)
    assert rows_of(peer("hired", budget=20), tokens) == rows_of(peer("fastervlm", budget=20), tokens)
    assert tokens.computed == {"cls_attention"}
    counts = [peer("hired", budget=0.199, faithful=flag).select(tokens).counts.tolist() for flag in (False, True)]
    assert counts == [[20, 14, 20], [19, 14, 19]]


@pytest.mark.parametrize(("thumbnail", "marked"), [(0.8, 4), (0.92, 1), (0.68, 7), (0.5, 12)])
def test_hired_counts_marks_in_double_precision(thumbnail, marked):
    """In Python 25 (1 - 0.8) is just below 5, so that four tokens count as most attended; in float32 it is 5."""
    image = cropped(1, 1, 2, side=5)
    image["cls_attention@0"] = torch.linspace(0, 1, 75, dtype=torch.float64)
    method, part = peer("hired", budget=20, thumbnail=thumbnail), torch.arange(75)[None] // 25
    assert (
        int(method._marks(batch(image), part, torch.tensor([[1, 2]]), 3).sum()) == int(25 * (1 - thumbnail)) == marked
    )


@pytest.mark.parametrize("faithful", [False, True])
def test_hired_on_a_thumbnail_alone_is_fastervlm_whatever_stands_beside_it(faithful):
    alone, beside = cropped(4, 0, 0), cropped(1, 2, 2)
    wanted = peer("fastervlm", budget=20).select(batch(alone)).rows()[0].tolist()
    method = peer("hired", budget=20, faithful=faithful)
    assert [method.select(batch(alone, *more)).rows()[0].tolist() for more in ((), (beside,))] == [wanted] * 2


def test_hired_gives_the_rest_of_a_full_crop_to_other_crops():
    image = cropped(1, 2, 1)
    image["cls_attention@0"] = torch.zeros(108)
    image["cls_attention@0"][:36] = 1 - image["grid"][:36, 0] / 6  # All marks lie in the upper crop.
    kept = peer("hired", budget=100).select(batch(image)).rows()[0]
    assert torch.bincount(kept // 36).tolist() == [36, 36, 28]
    kept = peer("hired", budget=100, faithful=True).select(batch(image)).rows()[0]
    assert torch.bincount(kept // 36).tolist() == [36, 36]


# ------------------------------------------------------------------------------------------------ views and knobs


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("fastervlm", "cls_attention"),
        ("vispruner", "cls_attention"),
        ("scope", "cls_attention"),
        ("hired", "cls_attention"),
        ("hiprune", "received_attention@0.375"),
        ("cdpruner", "relevance"),
        ("trim", "relevance"),
        ("mmtok", "word_similarity"),
        ("visionzip", "keys"),
        ("visionzip", "cls_features"),
        ("visionzip", "projector"),
        ("prumergeplus", "wide_cls_attention@1"),
        ("prumergeplus", "keys@1"),
        ("tome", "keys"),
        ("vscan", "cls_attention@0.25"),
        ("evs", "frames"),
        ("vidcom2", "frames"),
        ("dycoke", "frames"),
        ("fastvid", "frames"),
        ("holitom", "frames"),
        ("holov", "cls_attention"),
        ("prunesid", "encoder_features"),
    ],
)
def test_a_missing_view_is_refused_by_name(name, missing):
    tokens = batch(PICTURES[0])
    sources = {view: source for view, source in tokens.sources.items() if view != missing}
    with pytest.raises(Unavailable, match=f"{missing} is not available"):
        peer(name, budget=4).select(VisualTokens(tokens.features, tokens.mask, tokens.grid, sources))


@pytest.mark.parametrize("name", ["fastervlm", "vispruner", "hired", "scope", "vscan"])
def test_towers_without_cls_are_read_by_received_attention(name):
    tokens = batch(*PICTURES)
    early = "attention@0.25"
    swapped = [
        {**image, "cls_attention": image["received_attention"], f"cls_{early}": image[f"received_{early}"]}
        for image in PICTURES
    ]
    method = peer(name, budget=20, attention="received")
    assert rows_of(method, tokens) == rows_of(peer(name, budget=20), batch(*swapped))
    assert "cls_attention" not in tokens.computed


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("fastervlm", {"attention": "CLS"}, "attention must be one of cls, received, not 'CLS'"),
        ("vispruner", {"important": 1.5}, "important must be a number from 0 to 1, not 1.5"),
        ("vispruner", {"faithful": 1}, "faithful must be True or False, not 1"),
        ("hiprune", {"anchors": -0.1}, "anchors must be a number from 0 to 1, not -0.1"),
        ("hiprune", {"depth": True}, "depth must be a number from 0 to 1, not True"),
        ("hired", {"thumbnail": math.nan}, "thumbnail must be a number from 0 to 1, not nan"),
        ("scope", {"alpha": 0}, "alpha must be a number above 0, not 0"),
        ("mmtok", {"word_temperature": math.inf}, "word_temperature must be a number above 0, not inf"),
        ("cdpruner", {"negated": "yes"}, "negated must be True or False, not 'yes'"),
        ("visionzip", {"dominant": 54}, "dominant must be a number from 0 to 1, not 54"),
        ("visionzip", {"attention": "sum"}, "attention must be one of cls, received, not 'sum'"),
        ("visionzip", {"faithful": None}, "faithful must be True or False, not None"),
        ("prumergeplus", {"neighbours": 0}, "neighbours must be an int, 1 or more, not 0"),
        ("prumergeplus", {"faithful": 1}, "faithful must be True or False, not 1"),
        ("tome", {"faithful": "no"}, "faithful must be True or False, not 'no'"),
        ("vscan", {"local": -0.5}, "local must be a number from 0 to 1, not -0.5"),
        ("vscan", {"windows": 4.0}, "windows must be an int, 1 or more, not 4.0"),
        ("vscan", {"depth": 5}, "depth must be a number from 0 to 1, not 5"),
        ("vscan", {"left": 1.5}, "left must be a number from 0 to 1, not 1.5"),
        ("vscan", {"left": 0}, "left must be a number above 0, not 0"),
        ("vscan", {"faithful": 0}, "faithful must be True or False, not 0"),
        ("evs", {"faithful": 0}, "faithful must be True or False, not 0"),
        ("mmr", {"balance": 1.5}, "balance must be a number from 0 to 1, not 1.5"),
        ("mmr", {"features": "tower"}, "features must be one of projector, encoder, not 'tower'"),
        ("holov", {"crops": 0}, "crops must be an int, 1 or more, not 0"),
        ("holov", {"alpha": 0}, "alpha must be a number above 0, not 0"),
        ("prunesid", {"per_group": 2.0}, "per_group must be an int, 1 or more, not 2.0"),
        ("prunesid", {"scale": -1}, "scale must be a number above 0, not -1"),
        ("vidcom2", {"temperature": 0}, "temperature must be a number above 0, not 0"),
        ("vidcom2", {"channels": 0}, "channels must be a number above 0, not 0"),
        ("vidcom2", {"channels": 2}, "channels must be a number from 0 to 1, not 2"),
    ],
)
def test_wrong_knobs_are_refused(name, knobs, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        peer(name, budget=4, **knobs)


def test_every_peer_has_a_reference():
    controls = {"idselection", "topk", "diversity", "random", "uniform", "downsample"}
    inside = {name for name, method in METHODS.items() if issubclass(method, InLLM)} - {"vscan"}
    videos_alone = {"evs", "vidcom2", "dycoke", "fastvid", "holitom"}
    assert {*PEERS, "hired", *videos_alone} == set(METHODS) - controls - inside - {"adaptive"}
