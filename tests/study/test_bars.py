"""Bars of pressed images, methods that may not keep them, and the effective rank of the kept features."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from idsel_core.methods import Method, get_method, take_best
from idsel_core.selection.result import Selection
from idsel_core.study.bars import GREY, WithoutBars, on_bars, with_bars
from idsel_core.study.dataset import read_split
from idsel_core.study.kept_tokens import effective_rank, kept_tokens
from idsel_core.study.open_study import open_study
from idsel_core.visual_tokens import VisualTokens

ROWS, COLUMNS, SHARE = 8, 3, 0.25


@dataclass(frozen=True)
class Merging(Method):
    """A method whose kept tokens have new features."""

    name: ClassVar[str] = "merging"

    def select(self, tokens: VisualTokens) -> Selection:
        kept = take_best(tokens.grid[..., 0], tokens, self.budget)
        return replace(kept, features=tokens.features[:, : kept.indices.shape[1]])


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    count = ROWS * COLUMNS
    place = torch.arange(count)
    grid = torch.stack([place // COLUMNS, place % COLUMNS], -1).expand(2, count, 2)
    attention = torch.rand(2, count)
    attention[:, :COLUMNS] += 10  # the upper bar is what the tower attends to
    return VisualTokens(
        torch.randn(2, count, 5),
        torch.ones(2, count, dtype=torch.bool),
        grid,
        sources={"received_attention": lambda: attention, "image_key": lambda: torch.tensor([3, 4])},
    )


def test_bars_take_their_share_of_an_image_and_boxes_move_with_the_scene():
    split = read_split("validation", limit=7)
    barred = with_bars(split, SHARE)
    name = split.images.index[0]
    picture, whole = np.asarray(barred.picture(name)), split.picture(name)
    height = whole.size[1]
    bar = round(height * SHARE / 2)
    assert barred.picture(name).size == whole.size
    assert (picture[: bar - 1] == GREY).all() and (picture[height - bar + 1 :] == GREY).all()
    assert (picture[height // 2] != GREY).any()
    for before, after in zip(split.images.at[name, "objects"], barred.images.at[name, "objects"], strict=True):
        assert after["top"] == pytest.approx(bar + before["top"] * (1 - SHARE), abs=1.5)
        assert after["bottom"] == pytest.approx(bar + before["bottom"] * (1 - SHARE), abs=1.5)
        assert (after["left"], after["right"]) == (before["left"], before["right"])
    assert list(barred.questions["question_id"]) == list(split.questions["question_id"])


@pytest.mark.parametrize("share", [0, 1, -0.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=f"between 0 and 1, not {share}"):
        with_bars(read_split("validation", limit=7), share)


def test_tokens_whose_middle_is_on_a_bar_are_on_it(tokens):
    found = on_bars(tokens.grid, SHARE)[0].reshape(ROWS, COLUMNS)
    assert found.all(1).tolist() == found.any(1).tolist() == [True, *[False] * 6, True]


@pytest.mark.parametrize("name", ["idselection", "topk", "diversity", "mmr"])
def test_without_bars_a_method_picks_as_if_there_were_none(tokens, name):
    knobs = {} if name == "diversity" else {"importance": "saliency"}
    inner = get_method(name, budget=5, **knobs)
    kept = WithoutBars(5, inner=inner, share=SHARE).select(tokens)
    inside = slice(COLUMNS, (ROWS - 1) * COLUMNS)
    alone = VisualTokens(
        tokens.features[:, inside],
        tokens.mask[:, inside],
        tokens.grid[:, inside],
        sources={"received_attention": lambda: tokens.received_attention[:, inside]},
    )
    assert kept.order.tolist() == (inner.select(alone).order + COLUMNS).tolist()
    if name == "topk":
        assert on_bars(tokens.grid, SHARE).gather(1, inner.select(tokens).indices).float().mean() >= 0.6


def test_a_method_that_merges_is_refused(tokens):
    with pytest.raises(ValueError, match="merges no tokens, not 'merging'"):
        WithoutBars(5, inner=Merging(5), share=SHARE).select(tokens)


def test_the_effective_rank_counts_directions():
    alike, apart = torch.ones(3, 7), torch.eye(3, 7)
    two = torch.diag(torch.tensor([3.0, 1.0, 0.0]))
    two = torch.nn.functional.pad(two, (0, 4))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = effective_rank(torch.stack([alike, apart, two]))
    assert found.tolist() == pytest.approx([1, 3, math.exp(entropy)])


def test_what_the_kept_tokens_of_each_question_are_like(tmp_path):
    study = open_study("validation", limit=7, cache=tmp_path)
    methods = [get_method(name, budget=budget) for name in ("uniform", "topk") for budget in (16, 4)]
    table = kept_tokens(study, methods, bars=SHARE, batch=3)
    assert len(table) == 4 * 7 and table["question_id"].nunique() == 7
    assert (table["rank"] > 1).all() and (table["rank"] <= table["budget"]).all()
    assert table["on_bars"].between(0, 1).all()
    with pytest.raises(ValueError, match="'merging' merges tokens"):
        kept_tokens(study, [Merging(16)])
