"""Importance scores: every score of the registry in one matrix, and the functions that scores are made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idsel_core import IDSelection, TopK, get_method
from idsel_core.scores.attention_rows import cls_row, instruction_row, received
from idsel_core.scores.cosine_rows import relevance_row
from idsel_core.scores.registry import IMPORTANCE, Combination, importance_scores, normalised, unify
from idsel_core.selection.greedy import id_select
from idsel_core.visual_tokens import VisualTokens

BOTH = ("cls_attention", "instruction_attention")


@dataclass(frozen=True)
class Row:
    """One score of the matrix.

    `reads` names the views that the score reads. `values` is the slow reference: it gets these views of one image as
    nested lists, without padding, and returns one number a token for each part of the score. Every part is normalised,
    then `combine` makes one number of them for each token.
    """

    reads: tuple[str, ...]
    values: Callable[..., tuple[list[float], ...]]
    combine: Callable[..., float] = lambda value: value


# One row for each score of the registry; add yours.
MATRIX = {
    "saliency": Row(("cls_attention",), lambda cls: (cls,)),
    "instruction": Row(("instruction_attention",), lambda instruction: (instruction,)),
    "relevance": Row(("relevance",), lambda cosines: ([(1 + cosine) / 2 for cosine in cosines],)),
    "unified": Row(BOTH, lambda cls, instruction: (cls, instruction), lambda a, b: 0.5 * a + 0.5 * b),
    "unified-product": Row(BOTH, lambda cls, instruction: (cls, instruction), lambda a, b: a * b),
    "unified-geometric": Row(BOTH, lambda cls, instruction: (cls, instruction), lambda a, b: (a * b) ** 0.5),
}
# Scores that are no attention and no relevance can be said in the same way; this one is registered by a fixture.
OTHERS = {"feature-norm": Row(("encoder_features",), lambda rows: ([math.hypot(*row) for row in rows],))}
ALL = {**MATRIX, **OTHERS}

MASK = torch.tensor([[True] * 7, [True, False, True, True, True, False, True]])


@pytest.fixture(autouse=True)
def others(monkeypatch):
    monkeypatch.setitem(IMPORTANCE, "feature-norm", lambda tokens: tokens.encoder_features.norm(dim=-1))


def views(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "cls_attention": torch.randn(2, 7, generator=generator).softmax(1),
        "instruction_attention": torch.randn(2, 7, generator=generator).softmax(1),
        "relevance": 2 * torch.rand(2, 7, generator=generator) - 1,
        "received_attention": torch.randn(2, 7, generator=generator).softmax(1),
        "encoder_features": torch.randn(2, 7, 5, generator=generator),
        "keys": torch.randn(2, 7, 2, 4, generator=generator),
        "word_similarity": torch.randn(2, 7, 3, generator=generator),
    }


def tokens(given_views, padding=None):
    """Return tokens with these views, which hold `padding` at padding."""
    if padding is not None:
        fill = {name: MASK.view(2, 7, *[1] * (value.ndim - 2)) for name, value in given_views.items()}
        given_views = {name: value.masked_fill(~fill[name], padding) for name, value in given_views.items()}
    sources = {name: lambda *_, value=value: value for name, value in given_views.items()}
    return VisualTokens(torch.randn(2, 7, 4), MASK, torch.zeros(2, 7, 2, dtype=torch.long), sources)


def by_hand(row, given_views, normalise):
    """Compute a score by loops over images and tokens."""
    scores = torch.zeros(2, 7)
    for image, mask in enumerate(MASK):
        parts = row.values(*(given_views[view][image, mask].tolist() for view in row.reads))
        if normalise == "minmax":
            parts = [[(v - min(part)) / (max(part) - min(part)) for v in part] for part in parts]
        scores[image, mask] = torch.tensor([row.combine(*values) for values in zip(*parts, strict=True)])
    return scores


def test_the_matrix_has_a_row_for_every_score():
    assert set(MATRIX) == set(IMPORTANCE) - set(OTHERS)


@pytest.mark.parametrize("normalise", ["minmax", "raw"])
@pytest.mark.parametrize("name", ALL)
def test_a_score_is_that_of_the_slow_reference_and_reads_its_views_only(name, normalise):
    what = tokens(views(), padding=math.nan)
    scores = importance_scores(what, name, normalise)
    assert what.computed == set(ALL[name].reads)
    torch.testing.assert_close(scores, by_hand(ALL[name], views(), normalise))
    assert scores.dtype == torch.float32 and (scores >= 0).all() and (scores[~MASK] == 0).all()
    assert id_select(what.features, scores, 3, mask=MASK).counts.tolist() == [3, 3]


@pytest.mark.parametrize("name", ALL)
def test_min_max_is_the_default_and_removes_the_scale_of_the_views(name):
    half = {view: value.half() for view, value in views().items()}
    scaled = {view: value if view == "relevance" else 8 * value for view, value in half.items()}
    scores = importance_scores(tokens(half), name)
    torch.testing.assert_close(scores, importance_scores(tokens(scaled), name, "minmax"))
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("name", ALL)
def test_views_without_contrast_give_equal_scores_of_one(name):
    flat = {view: torch.full_like(value, 0.25) for view, value in views().items()}
    scores = importance_scores(tokens(flat), name)
    assert torch.equal(scores, MASK.float())


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"importance must be one of saliency, .*, not 'salincy', did you mean 'saliency'"
    ):
        importance_scores(tokens(views()), "salincy")
    with pytest.raises(ValueError, match=r"unified-geometric, .*not 'xyz'$"):
        importance_scores(tokens(views()), "xyz")
    with pytest.raises(ValueError, match="normalise must be one of minmax, raw, not 'softmax'"):
        importance_scores(tokens(views()), "saliency", "softmax")


@pytest.mark.parametrize("normalise", ["minmax", "raw"])
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-0.25, "-0.25")])
def test_a_score_that_is_not_finite_or_negative_is_refused_by_name(monkeypatch, value, shown, normalise):
    spoilt = torch.rand(2, 7)
    spoilt[1, 2] = value
    monkeypatch.setitem(IMPORTANCE, "mine", lambda tokens: spoilt)
    message = f"importance 'mine' must be finite and 0 or more; row 1, token 2 has {shown}"
    with pytest.raises(ValueError, match=message):
        importance_scores(tokens(views()), "mine", normalise)
    monkeypatch.setitem(IMPORTANCE, "both", Combination("saliency", "mine"))
    with pytest.raises(ValueError, match=message):
        importance_scores(tokens(views()), "both", normalise)
    monkeypatch.setitem(IMPORTANCE, "mine", lambda tokens: tokens.encoder_features)
    with pytest.raises(
        ValueError, match=r"importance 'mine' must have one number for each token, \(2, 7\), not \(2, 7, 5"
    ):
        importance_scores(tokens(views()), "mine", normalise)


def test_a_registered_score_works_in_methods_by_name(monkeypatch):
    monkeypatch.setitem(IMPORTANCE, "mine", lambda tokens: tokens.received_attention)
    monkeypatch.setitem(IMPORTANCE, "mixed", Combination("mine", "instruction", "product"))
    what = tokens(views(), padding=math.nan)
    for method in (TopK(budget=3, importance="mine"), get_method("topk", budget=3, importance="mine")):
        best = views()["received_attention"][0].topk(3).indices.tolist()
        assert method.select(what).order[0].tolist() == best
    for name in ("mine", "mixed"):
        method = IDSelection(budget=3, importance=name)
        wanted = id_select(what.features, importance_scores(what, name), 3, mask=MASK)
        assert torch.equal(method.select(what).order, wanted.order)


@st.composite
def rows(draw):
    """Draw scores (B, N) and a mask with at least one token a row."""
    batch, n = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    value = st.floats(0, 2.0**100, width=32)
    scores = draw(st.lists(st.lists(value, min_size=n, max_size=n), min_size=batch, max_size=batch))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=n, max_size=n).filter(any), min_size=batch, max_size=batch))
    return torch.tensor(scores), torch.tensor(mask)


@given(rows())
@settings(max_examples=150, deadline=None)
def test_min_max_maps_to_zero_to_one_and_keeps_the_order(drawn):
    scores, mask = drawn
    result = normalised(scores.masked_fill(~mask, math.nan), "minmax", mask)
    for before, after, real in zip(scores, result, mask, strict=True):
        assert (after[~real] == 0).all()
        before, after = before[real], after[real]
        if before.min() == before.max():
            assert (after == 1).all()
            continue
        assert after.min() == 0 and after.max() == 1
        assert (after[before.argsort()].diff() >= 0).all()


@given(rows())
@settings(max_examples=50, deadline=None)
def test_raw_scores_are_not_changed(drawn):
    scores, mask = drawn
    result = normalised(scores.double(), "raw", mask)
    assert torch.equal(result, torch.where(mask, scores, 0.0))


@pytest.mark.parametrize("kind", ["minmax", "raw"])
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-0.25, "-0.25")])
def test_scores_that_are_not_finite_or_negative_are_refused_by_place(value, shown, kind):
    scores = torch.rand(2, 7)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=f"scores must be finite and 0 or more; row 1, token 2 has {shown}"):
        normalised(scores, kind, MASK)
    with pytest.raises(ValueError, match=r"scores must have one number for each token, \(2, 7\), not \(2, 6\)"):
        normalised(scores[:, :6], kind, MASK)


@given(rows(), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_product_geometric_mean_and_mean_are_ordered(drawn, seed):
    a = normalised(drawn[0], "minmax", drawn[1])
    b = torch.rand(a.shape, generator=torch.Generator().manual_seed(seed))
    product, geometric, mean = (unify(a, b, how) for how in ("product", "geometric", "mean"))
    assert (product <= geometric + 1e-6).all() and (geometric <= mean + 1e-6).all()
    torch.testing.assert_close(geometric.square(), product)
    torch.testing.assert_close(unify(a, a, "geometric"), a)
    assert torch.equal(mean, unify(b, a))


def test_unify_refuses_unknown_means_and_different_shapes():
    with pytest.raises(ValueError, match="how must be one of mean, product, geometric, not 'max'"):
        unify(torch.rand(1, 3), torch.rand(1, 3), "max")
    with pytest.raises(ValueError, match=r"both scores must have the same shape, not \(1, 3\) and \(2, 3\)"):
        unify(torch.rand(1, 3), torch.rand(2, 3))


HEADS = [(4, 4), (6, 2), (3, 1)]


def states(heads, groups, length, batch=2, width=8):
    generator = torch.Generator().manual_seed(heads * 100 + length)
    query = torch.randn(batch, heads, length, width, generator=generator)
    return query, torch.randn(batch, groups, length, width, generator=generator)


def attention(query, key, scale):
    """Return the attention (B, T, N), mean over heads, as torch's own kernel computes it on unit values."""
    values = torch.eye(key.shape[2]).double().expand(*key.shape[:2], -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), values, scale=scale, enable_gqa=True
    ).mean(1)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_cls_row_and_received_attention_are_those_of_torch(heads, groups):
    query, key = states(heads, groups, 11)
    wanted = attention(query, key, 0.3)
    torch.testing.assert_close(cls_row(query, key, 0.3), wanted[:, 0].float())
    torch.testing.assert_close(cls_row(query[:, :, :1], key, 0.3), wanted[:, 0].float())
    for chunk in (1, 4, 256):
        torch.testing.assert_close(received(query, key, 0.3, chunk), wanted.mean(1).float())


@pytest.mark.parametrize("chunk", [1, 2, 64])
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_instruction_row_is_the_attention_of_the_question_to_the_visual_tokens(heads, groups, chunk):
    query, key = states(heads, groups, 12)
    # Some words stand in front of visual tokens.
    places, asked = [[2, 3, 4, 5], [9, 4]], [[1, 8, 11], [6]]
    columns = torch.tensor([[2, 3, 4, 5], [-1, 9, 4, -1]])
    question = torch.zeros(2, 12, dtype=torch.bool)
    for row, at in enumerate(asked):
        question[row, at] = True
    result = instruction_row(query, key, 0.3, question, columns, chunk=chunk)
    for row in range(2):
        one = slice(row, row + 1)
        wanted = attention(query[one][:, :, asked[row]], key[one][:, :, places[row]], 0.3).mean(1)[0]
        torch.testing.assert_close(result[row][columns[row] >= 0], wanted.float())
    assert (result[columns < 0] == 0).all()


def test_attention_of_half_precision_models_is_computed_in_float32():
    query, key = states(4, 2, 9)
    query, key = 20 * query.bfloat16(), key.bfloat16()
    question, columns = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).expand(2, -1)
    calls = (
        lambda q, k: cls_row(q, k, 1.0),
        lambda q, k: received(q, k, 1.0),
        lambda q, k: instruction_row(q, k, 1.0, question, columns),
        lambda q, k: relevance_row(k[:, 0], q[:, 0, 0]),
    )
    for call in calls:
        wanted = call(query.float(), key.float())
        assert torch.equal(call(query, key), wanted) and wanted.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(call(query, key), wanted)


def test_attention_refuses_bad_query_tokens_columns_and_heads():
    query, key = states(4, 2, 9)
    question, columns = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).repeat(2, 1)
    with pytest.raises(ValueError, match="query_tokens must name a token in every row; row 1 has none"):
        instruction_row(query, key, 1.0, question & torch.tensor([[True], [False]]), columns)
    columns[0] = -1
    with pytest.raises(ValueError, match="columns must name a token in every row; row 0 has none"):
        instruction_row(query, key, 1.0, question, columns)
    with pytest.raises(ValueError, match="query heads must be a multiple of key heads, not 3 to 2"):
        cls_row(query[:, :3], key, 1.0)


def test_relevance_is_the_cosine_with_the_text():
    patches, text = torch.randn(2, 5, 6), torch.randn(2, 6)
    patches[0, 3] = 0
    result = relevance_row(patches, text)
    for row in range(2):
        for token in range(5):
            a, b = patches[row, token].double(), text[row].double()
            wanted = float(a @ b / (a.norm() * b.norm())) if a.any() else 0.0
            assert float(result[row, token]) == pytest.approx(wanted, abs=1e-6)


def test_a_combination_knows_how_when_it_is_made():
    with pytest.raises(ValueError, match="how must be one of mean, product, geometric, not 'sum'"):
        Combination("saliency", "relevance", "sum")
