"""Importance: every score of the registry in one matrix, and the functions that it is made of."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idsel_core.scores.attention_rows import cls_row, instruction_row, received
from idsel_core.scores.cosine_rows import relevance_row
from idsel_core.scores.registry import IMPORTANCE, importance_scores, normalised, unify
from idsel_core.selection.greedy import id_select
from idsel_core.visual_tokens import VisualTokens

# One row a score: the views that it reads, and its value from these views, already normalised.
MATRIX = {
    "saliency": (["cls_attention"], lambda a: a),
    "instruction": (["instruction_attention"], lambda a: a),
    "relevance": (["relevance"], lambda a: a),
    "unified": (["cls_attention", "instruction_attention"], lambda a, b: 0.5 * a + 0.5 * b),
    "unified-product": (["cls_attention", "instruction_attention"], lambda a, b: a * b),
    "unified-geometric": (["cls_attention", "instruction_attention"], lambda a, b: (a * b) ** 0.5),
}

MASK = torch.tensor([[True] * 7, [True, False, True, True, True, False, True]])


def views(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "cls_attention": torch.randn(2, 7, generator=generator).softmax(1),
        "instruction_attention": torch.randn(2, 7, generator=generator).softmax(1),
        "relevance": 2 * torch.rand(2, 7, generator=generator) - 1,
    }


def tokens(given_views):
    sources = {name: lambda *_, value=value: value for name, value in given_views.items()}
    return VisualTokens(torch.randn(2, 7, 4), MASK, torch.zeros(2, 7, 2, dtype=torch.long), sources)


def by_hand(name, value, normalise):
    """Normalise one view by loops over rows and tokens."""
    rows = []
    for row, mask in zip(((1 + value) / 2 if name == "relevance" else value).tolist(), MASK.tolist(), strict=True):
        real = [v for v, m in zip(row, mask, strict=True) if m]
        low, high = (min(real), max(real)) if normalise == "minmax" else (0.0, 1.0)
        rows.append([(v - low) / (high - low) if m else 0.0 for v, m in zip(row, mask, strict=True)])
    return torch.tensor(rows)


def test_the_matrix_names_every_score():
    assert list(MATRIX) == list(IMPORTANCE)


@pytest.mark.parametrize("normalise", ["minmax", "raw"])
@pytest.mark.parametrize("name", MATRIX)
def test_score(name, normalise):
    reads, formula = MATRIX[name]
    given_views = views()
    what = tokens({view: value.masked_fill(~MASK, math.nan) for view, value in given_views.items()})
    scores = importance_scores(what, name, normalise)
    assert what.computed == set(reads)
    wanted = formula(*(by_hand(view, given_views[view], normalise) for view in reads))
    torch.testing.assert_close(scores, wanted)
    assert scores.dtype == torch.float32 and (scores >= 0).all() and (scores[~MASK] == 0).all()
    assert id_select(what.features, scores, 3, mask=MASK).counts.tolist() == [3, 3]


@pytest.mark.parametrize("name", MATRIX)
def test_min_max_is_the_default_and_ignores_the_scale_of_the_views(name):
    half = {view: value.half() for view, value in views().items()}
    scaled = {view: value if view == "relevance" else 8 * value for view, value in half.items()}
    scores = importance_scores(tokens(half), name)
    torch.testing.assert_close(scores, importance_scores(tokens(scaled), name, "minmax"))
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("name", MATRIX)
def test_views_without_contrast_leave_the_choice_to_the_features(name):
    flat = {view: torch.full((2, 7), 0.25) for view in views()}
    scores = importance_scores(tokens(flat), name)
    assert torch.equal(scores, MASK.float())


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"importance must be one of saliency, .*, not 'salincy'; did you mean 'saliency'"
    ):
        importance_scores(tokens(views()), "salincy")
    with pytest.raises(ValueError, match=r"unified-geometric, not 'xyz'$"):
        importance_scores(tokens(views()), "xyz")
    with pytest.raises(ValueError, match="normalise must be one of minmax, raw, not 'softmax'"):
        importance_scores(tokens(views()), "saliency", "softmax")


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
def test_min_max_runs_from_zero_to_one_and_keeps_the_order(drawn):
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
def test_raw_changes_nothing(drawn):
    scores, mask = drawn
    result = normalised(scores.double(), "raw", mask)
    assert torch.equal(result, torch.where(mask, scores, 0.0))


@pytest.mark.parametrize("kind", ["minmax", "raw"])
@pytest.mark.parametrize(("value", "shown"), [(math.nan, "nan"), (math.inf, "inf"), (-0.25, "-0.25")])
def test_bad_scores_are_named(value, shown, kind):
    scores = torch.rand(2, 7)
    scores[1, 2] = value
    with pytest.raises(ValueError, match=f"scores must be finite and 0 or more; row 1, token 2 has {shown}"):
        normalised(scores, kind, MASK)
    with pytest.raises(ValueError, match=r"scores must be shaped as mask, \(2, 7\), not \(2, 6\)"):
        normalised(scores[:, :6], kind, MASK)


@given(rows(), st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_combinations_are_means(drawn, seed):
    a = normalised(drawn[0], "minmax", drawn[1])
    b = torch.rand(a.shape, generator=torch.Generator().manual_seed(seed))
    product, geometric, mean = (unify(a, b, how) for how in ("product", "geometric", "mean"))
    assert (product <= geometric + 1e-6).all() and (geometric <= mean + 1e-6).all()
    torch.testing.assert_close(geometric.square(), product)
    torch.testing.assert_close(unify(a, a, "geometric"), a)
    assert torch.equal(mean, unify(b, a))


def test_combinations_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="how must be one of mean, product, geometric, not 'max'"):
        unify(torch.rand(1, 3), torch.rand(1, 3), "max")
    with pytest.raises(ValueError, match=r"both scores must have one shape, not \(1, 3\) and \(2, 3\)"):
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
def test_cls_row_and_received_attention(heads, groups):
    query, key = states(heads, groups, 11)
    wanted = attention(query, key, 0.3)
    torch.testing.assert_close(cls_row(query, key, 0.3), wanted[:, 0].float())
    torch.testing.assert_close(cls_row(query[:, :, :1], key, 0.3), wanted[:, 0].float())
    for chunk in (1, 4, 256):
        torch.testing.assert_close(received(query, key, 0.3, chunk), wanted.mean(1).float())


@pytest.mark.parametrize("which", ["last", "mean"])
@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_instruction_row_reads_the_question_over_the_visual_tokens(heads, groups, which):
    query, key = states(heads, groups, 12)
    places, asked = [[2, 3, 4, 5], [9, 4]], [[7, 8, 11], [6]]
    columns = torch.tensor([[2, 3, 4, 5], [-1, 9, 4, -1]])
    question = torch.zeros(2, 12, dtype=torch.bool)
    for row, at in enumerate(asked):
        question[row, at] = True
    result = instruction_row(query, key, 0.3, question, columns, which)
    for row in range(2):
        used = asked[row] if which == "mean" else asked[row][-1:]
        one = slice(row, row + 1)
        wanted = attention(query[one][:, :, used], key[one][:, :, places[row]], 0.3).mean(1)[0]
        torch.testing.assert_close(result[row][columns[row] >= 0], wanted.float())
    assert (result[columns < 0] == 0).all()


def test_attention_is_computed_in_float32_whatever_the_model_runs_in():
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


def test_attention_refuses_what_it_cannot_read():
    query, key = states(4, 2, 9)
    question, columns = torch.ones(2, 9, dtype=torch.bool), torch.arange(9).repeat(2, 1)
    with pytest.raises(ValueError, match="which must be 'last' or 'mean', not 'first'"):
        instruction_row(query, key, 1.0, question, columns, "first")
    with pytest.raises(ValueError, match="question must name a token in every row; row 1 has none"):
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
