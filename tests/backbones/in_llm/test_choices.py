"""The visual tokens that a drop keeps, against the slow reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from idsel_core.methods import DART, FastV, IDSelectionInside, PyramidDrop, SparseVLM
from idsel_core.methods.sparsevlm import density_peaks
from tests.support.in_llm import SCENES, check, layer_tokens, rows_of, scene


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("method", [FastV(1), PyramidDrop(1), SparseVLM(1), DART(1)], ids=lambda method: method.name)
def test_choices_equal_the_slow_reference_at_edge_budgets(method, left):
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


@pytest.mark.parametrize(
    ("knobs", "counts"),
    [
        ({}, (1, 2, 7, 30)),
        ({"gamma": 3.0}, (7, 20)),
        ({"gamma": 60.0}, (7, 20)),
        ({"gamma": 300.0, "update": "subtract"}, (2, 5)),
    ],
    ids=str,
)
def test_id_selection_inside_picks_by_its_formula(knobs, counts):
    """Beyond this many picks suppressed scores differ by less than the rounding of their cosines, or have run out."""
    method = IDSelectionInside(1, **knobs)
    for count in counts:
        _check_formula(method, count)


def _check_formula(method, count):
    for left in (True, False):
        choice = method.choose(layer_tokens(method, SCENES, left), torch.tensor([count] * 3))
        for row, one in enumerate(SCENES):
            check(method, one, count, rows_of(choice)[row], None)


@pytest.mark.parametrize("count", [12, 20, 36, 60])
def test_faithful_dart_keeps_the_count_and_order_of_its_authors(count):
    method = DART(1, faithful=True)
    for left in (True, False):
        choice = method.choose(layer_tokens(method, SCENES, left), torch.tensor([count] * 3))
        for row, one in enumerate(SCENES):
            if len(one["text"]) >= 4:
                check(method, one, count, rows_of(choice)[row], None)


def test_choices_do_not_depend_on_the_batch():
    for method in (FastV(1), PyramidDrop(1), SparseVLM(1), DART(1), DART(1, faithful=True), IDSelectionInside(1)):
        counts = torch.tensor([36, 20, 28])
        together = method.choose(layer_tokens(method, SCENES, True), counts)
        for row, one in enumerate(SCENES):
            alone = method.choose(layer_tokens(method, [one], False), counts[row : row + 1])
            assert rows_of(alone)[0] == rows_of(together)[row]
            if alone.merged is not None:
                count = int(alone.merged_counts[0])
                assert count == together.merged_counts[row]
                torch.testing.assert_close(alone.merged[0], together.merged[row, :count])


def test_first_token_wins_ties():
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


def test_sparsevlm_needs_text_and_takes_all_of_it_without_raters():
    with pytest.raises(ValueError, match="needs the question after the image, but no word of it follows image 1"):
        layer_tokens(SparseVLM(1), [scene(0, 10), scene(1, 10, words=0)], True)
    single = layer_tokens(SparseVLM(1), [scene(0, 10, words=1)], True)
    assert torch.equal(single.query_tokens, single.text)


def test_sparsevlm_without_recycling_only_drops():
    method = SparseVLM(1, recycle=0)
    choice = method.choose(layer_tokens(method, SCENES, True), torch.tensor([9, 9, 9]))
    assert choice.merged is None and [len(row) for row in rows_of(choice)] == [9, 9, 9]
    assert method.least(100) == 1 and SparseVLM(1).least(100) == 5


def test_density_peaks_cluster_equal_tokens_in_order():
    states = torch.ones(1, 6, 4)
    merged = density_peaks(states, torch.ones(1, 6, dtype=torch.bool), torch.tensor([2]))
    assert torch.equal(merged, torch.ones(1, 2, 4))


def test_merged_tokens_keep_the_dtype_of_the_states():
    method = SparseVLM(1)
    tokens = layer_tokens(method, SCENES, True)
    tokens = dataclasses.replace(tokens, states=tokens.states.half())
    assert method.choose(tokens, torch.tensor([20, 20, 20])).merged.dtype == torch.float16
