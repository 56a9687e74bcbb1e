"""``gamma="auto"``: its definition, what it does not depend on, and where a fixed gamma fails and it does not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from idsel_core.selection.greedy import id_select
from idsel_core.selection.scale import WEIGHT, automatic_gamma, mean_distance
from tests.support.selections import UPDATES, cosine_table, make_features, problems, resembles


def norms_of(x):
    norms = x.double().norm(dim=-1)
    return torch.where(norms > 0, 1 / norms, 0.0).to(torch.promote_types(x.dtype, torch.float32))


def reference(x):
    """Return the mean of 1 - cos over all pairs of different tokens (N, D), by plain loops."""
    cosines = cosine_table(x.tolist())
    pairs = [1 - cosines[i][j] for i in range(len(x)) for j in range(len(x)) if i != j]
    return math.fsum(pairs) / len(pairs) if pairs else 0.0


@given(problems(batch=3))
@settings(max_examples=60, deadline=None)
def test_the_mean_distance_is_that_of_all_pairs_whatever_the_padding_holds(problem):
    x, mask = problem["features"].clone(), problem["mask"]
    x[~mask] = math.nan
    found = mean_distance(x, norms_of(x.nan_to_num()), mask)
    wanted = [reference(row[real]) for row, real in zip(x, mask, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=1e-9)


def test_a_tight_cluster_loses_no_digits():
    draw = np.random.default_rng(0)
    x = torch.tensor(np.ones(32) + 1e-5 * draw.standard_normal((40, 32)))
    exact = float((x / x.norm(dim=1, keepdim=True)).var(dim=0).sum())
    assert float(mean_distance(x[None], norms_of(x[None]), torch.ones(1, 40, dtype=torch.bool))) == pytest.approx(exact)


@pytest.mark.parametrize("common", [0, 1.5, 30])
@pytest.mark.parametrize("count", [50, 700])
def test_float32_features_lose_no_more_digits_than_their_cosines(count, common):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, count, 1024, generator=draw) + common * torch.randn(1024, generator=draw)
    x *= torch.logspace(-6, 6, count)[:, None]
    real = torch.arange(count) < torch.tensor([count, count // 2])[:, None]
    found, exact = (mean_distance(y, norms_of(y), real) for y in (x, x.double()))
    torch.testing.assert_close(found, exact, atol=1e-7, rtol=0)


@given(problems(gammas=("auto",)))
@settings(max_examples=60, deadline=None)
def test_auto_is_the_gamma_whose_weight_at_the_mean_distance_is_the_stated_one(problem):
    row, count = 0, int(id_select(**problem).counts[0])
    x = problem["features"][row][problem["mask"][row]]
    distance = max(reference(x), 1e-14)
    gamma = -math.log(WEIGHT) / distance**2
    found = automatic_gamma(x[None], norms_of(x[None]), torch.ones(1, len(x), dtype=torch.bool))
    assert float(found) == pytest.approx(gamma, rel=1e-6) or distance < 1e-12
    fixed = {**problem, "gamma": float(found)}
    wanted = id_select(**fixed, backend="torch").order[row, :count]
    for backend in ("torch", "lazy"):
        assert resembles(id_select(**problem, backend=backend).order[row, :count], wanted, fixed, row)


@given(problems(batch=1, gammas=("auto",), features=("gaussian", "clustered")), st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_auto_keeps_its_picks_when_all_distances_change_by_one_factor(problem, size):
    """A vector at right angles to all unit features divides every distance by 1 + its squared length."""
    x = torch.nn.functional.normalize(problem["features"], dim=-1)
    plain = {**problem, "features": x}
    shifted = {**problem, "features": 3 * torch.nn.functional.pad(x, (0, 1), value=size)}
    count = int(id_select(**plain).counts[0])
    if reference(x[0][problem["mask"][0]]) > 1e-9:
        assert gamma_of(shifted) == pytest.approx(gamma_of(plain) * (1 + size**2) ** 2, rel=1e-6)
    wanted = id_select(**plain).order[0, :count]
    assert resembles(id_select(**shifted).order[0, :count], wanted, {**plain, "gamma": gamma_of(plain)}, 0)


@pytest.mark.parametrize("update", UPDATES)
def test_a_fixed_gamma_changes_its_picks_where_auto_keeps_them(update):
    x, scores, _ = shifted_problem()
    x = torch.nn.functional.normalize(x, dim=-1)
    shifted = 3 * torch.nn.functional.pad(x, (0, 1), value=4.0)

    def orders(gamma):
        return [id_select(features, scores, 40, gamma, update).order[0] for features in (x, shifted)]

    assert torch.equal(*orders("auto"))
    plain, moved = orders(20.0)
    assert len(set(plain.tolist()) & set(moved.tolist())) < 36


@given(problems(batch=1, gammas=("auto",), features=("gaussian", "clustered")), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_auto_does_not_depend_on_the_lengths_or_the_order_of_the_features(problem, seed):
    draw = torch.Generator().manual_seed(seed)
    problem["mask"] = torch.ones_like(problem["mask"])
    problem["budget"] = min(problem["budget"], problem["mask"].shape[1])
    plain = id_select(**problem).order[0]
    lengths = torch.rand(problem["features"].shape[:2], generator=draw, dtype=torch.float64) * 9 + 0.1
    longer = {**problem, "features": problem["features"] * lengths[..., None]}
    assert resembles(id_select(**longer).order[0], plain, {**problem, "gamma": gamma_of(problem)}, 0)
    mixed = torch.randperm(problem["features"].shape[1], generator=draw)
    moved = {**problem, "features": problem["features"][:, mixed], "scores": problem["scores"][:, mixed]}
    assert gamma_of(moved) == pytest.approx(gamma_of(problem))


def gamma_of(problem):
    x = problem["features"]
    return float(automatic_gamma(x, norms_of(x), problem["mask"])[0])


def test_each_image_of_a_batch_has_a_gamma_of_its_own():
    draw = np.random.default_rng(1)
    wide = torch.tensor(make_features("gaussian", 60, 16, draw))
    x = torch.stack([wide, wide + 12, wide[:, :1] + wide / 30])
    gammas = automatic_gamma(x, norms_of(x), torch.ones(3, 60, dtype=torch.bool))
    assert gammas[1] > 10 * gammas[0]
    scores = torch.rand(3, 60, generator=torch.Generator().manual_seed(0)).double()
    for backend in ("torch", "lazy"):
        together = id_select(x, scores, 20, gamma="auto", backend=backend).order
        for row in range(3):
            alone = id_select(x[row], scores[row], 20, gamma=float(gammas[row]), backend="torch").order[0]
            assert torch.equal(together[row], alone)


@pytest.mark.parametrize("update", UPDATES)
def test_auto_keeps_its_picks_when_one_vector_is_added_to_all_features(update):
    x, scores, common = shifted_problem()
    far, further = (id_select(x + size * common, scores, 40, "auto", update).order[0] for size in (10, 1000))
    assert len(set(far.tolist()) & set(further.tolist())) >= 36


def test_a_common_vector_turns_a_fixed_gamma_into_top_k_and_leaves_auto_diverse():
    """A fixed gamma then suppresses all tokens alike, so that every pick is followed by a restart."""
    x, scores, common = shifted_problem()
    picks = {
        (gamma, size): id_select(x + size * common, scores, 40, gamma, "subtract").order[0]
        for gamma in (20.0, "auto")
        for size in (0, 30)
    }
    clusters = {which: len(set((order // 10).tolist())) for which, order in picks.items()}
    assert clusters == {(20.0, 0): 20, (20.0, 30): 5, ("auto", 0): 20, ("auto", 30): 20}
    assert picks[20.0, 30].tolist() == scores.argsort(descending=True)[:40].tolist()


def shifted_problem():
    """Return clustered features, of which one cluster is the most important, scores, and a common vector."""
    draw = np.random.default_rng(2)
    cluster = np.repeat(np.arange(20), 10)
    x = draw.standard_normal((20, 64))[cluster] + 0.3 * draw.standard_normal((200, 64))
    scores = np.where(cluster < 5, 0.8, 0.2) + 0.1 * draw.random(200)
    return torch.tensor(x), torch.tensor(scores), torch.tensor(draw.standard_normal(64))


@pytest.mark.parametrize("x", [torch.ones(5, 3), torch.zeros(5, 3), torch.ones(1, 3)])
def test_auto_of_one_token_of_duplicates_and_of_zero_vectors(x):
    scores = torch.linspace(1, 0.2, len(x))
    order = id_select(x, scores, len(x), gamma="auto").order[0].tolist()
    assert order == list(range(len(x)))
