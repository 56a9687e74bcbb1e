"""`id_select` against a slow float64 reference, its properties and its errors."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import benchmarks._loops as loops
from idsel_core.selection import cpu_lazy
from idsel_core.selection import greedy as selection
from idsel_core.selection.budget import is_above, resolve_budget
from idsel_core.selection.greedy import id_select
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from tests.support.selections import (
    EXHAUSTED,
    FEATURES,
    GAMMAS,
    INF,
    SCORES,
    UPDATES,
    cosine_table,
    follow,
    make_features,
    make_scores,
    problems,
    resembles,
)


def small_cases(count, feature_kind, update):
    """Yield random features, scores, budget and gamma, with every kind of scores and every gamma in turn."""
    rng = np.random.default_rng([FEATURES.index(feature_kind), UPDATES.index(update)])
    for _, (kind, gamma) in zip(range(count), itertools.cycle(itertools.product(SCORES, GAMMAS)), strict=False):
        n = int(rng.integers(1, 17))
        yield (
            torch.tensor(make_features(feature_kind, n, int(rng.integers(2, 9)), rng)),
            torch.tensor(make_scores(kind, n, rng)),
            int(rng.integers(1, n + 1)),
            gamma,
        )


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("features", FEATURES)
def test_picks_in_float64_are_those_of_the_slow_reference(features, update):
    for x, s, k, gamma in small_cases(300, features, update):
        cosines = cosine_table(x.tolist())
        for trace, exhausted in itertools.product((False, True), EXHAUSTED):
            order = id_select(x, s, k, gamma, update, trace=trace, exhausted=exhausted).order[0].tolist()
            assert len(set(order)) == k
            behind, _ = follow(cosines, s.tolist(), order, gamma, update, exhausted)
            # Duplicates of equal score are ties that products of equal vectors may round apart.
            allowed = 1e-14 * float(s.max()) + math.ulp(0.0) if features == "duplicates" else 0.0
            assert max(behind) <= allowed


def test_picks_in_float32_differ_from_the_reference_only_at_ties_within_rounding():
    cases = left = 0
    for features, update in itertools.product(FEATURES, UPDATES):
        for x, s, k, gamma in small_cases(120, features, update):
            if (features, gamma) == ("tight", INF):
                continue  # there everything hangs on which distances count as zero
            exhausted, slack = EXHAUSTED[cases % 2], 1e-6 * float(s.max())
            order = id_select(x.float(), s.float(), k, gamma, update, exhausted=exhausted).order[0].tolist()
            cosines = cosine_table(x.float().double().tolist())
            behind, _ = follow(cosines, s.float().double().tolist(), order, gamma, update, exhausted, slack)
            assert max(behind) <= slack
            cases, left = cases + 1, left + (max(behind) > 0)
    assert cases > 1000 and left <= 0.01 * cases


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("features", ["gaussian", "clustered"])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 0.0), (torch.float32, 1e-7)])
def test_picks_nest_over_budgets_and_follow_the_reference_for_many_tokens(features, update, dtype, allowed):
    rng = np.random.default_rng(7)
    n = 300
    x = torch.tensor(make_features(features, n, 64, rng)).to(dtype)
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).tolist()
    for kind in ("peaked", "flat", "uniform"):
        s = torch.tensor(make_scores(kind, n, rng)).to(dtype)
        orders = {k: id_select(x, s, k, 20.0, update).order[0] for k in (1, 9, 60, 200, n)}
        behind, _ = follow(cosines, s.double().tolist(), orders[n].tolist(), 20.0, update)
        assert max(behind) <= allowed * float(s.max())
        assert sum(v > 0 for v in behind) <= 2
        for k, order in orders.items():
            assert torch.equal(order, orders[n][:k])


@given(problems(torch.float32), st.booleans())
@settings(max_examples=80, deadline=None)
def test_selection_keeps_exactly_the_budget_in_raster_order_without_repeats(problem, trace):
    picks = id_select(**problem, trace=trace)
    lengths = problem["mask"].sum(1)
    asked = resolve_budget(problem["budget"], lengths)
    assert picks.counts.tolist() == asked.tolist() == (picks.indices >= 0).sum(1).tolist()
    assert picks.requested == problem["budget"] and len(picks) == len(lengths)
    assert picks.indices.shape == picks.order.shape == (len(lengths), int(asked.max()))
    assert torch.equal(picks.scores, problem["scores"].masked_fill(~problem["mask"], -INF))
    kept = torch.zeros_like(problem["mask"])
    for row, (indices, count) in enumerate(zip(picks.rows(), asked.tolist(), strict=True)):
        assert (
            picks.indices[row, count:].tolist()
            == picks.order[row, count:].tolist()
            == [-1] * (len(picks.indices[row]) - count)
        )
        assert indices.tolist() == sorted(set(picks.order[row, :count].tolist()))
        assert problem["mask"][row, indices].all()
        kept[row, indices] = True
    assert torch.equal(picks.keep_mask(kept.shape[1]), kept)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_picks_do_not_depend_on_other_rows_or_on_padding(problem):
    mask = problem["mask"]
    dirty = problem | {
        "features": problem["features"].masked_fill(~mask[..., None], math.nan),
        "scores": torch.where(
            mask, problem["scores"], torch.tensor([-7.0, math.nan, INF]).double()[torch.arange(mask.shape[1]) % 3]
        ),
    }
    together, traced = id_select(**dirty), id_select(**dirty, trace=True)
    for row, count in enumerate(together.counts.tolist()):
        places = mask[row].nonzero()[:, 0]
        alone = {name: problem[name][row, places] for name in ("features", "scores")}
        alone = id_select(**(problem | alone | {"mask": None, "budget": count}), trace=True)
        for picks in (together, traced):
            assert resembles(picks.order[row, :count], places[alone.order[0]], problem, row)
        if torch.equal(traced.order[row, :count], places[alone.order[0]]):
            torch.testing.assert_close(traced.trace[row, :count][:, places], alone.trace[0])
        assert (traced.trace[row, :, ~mask[row]] == -INF).all() and (traced.trace[row, count:] == -INF).all()


CONTINUOUS = {"scores": ("uniform", "peaked"), "features": ("gaussian", "clustered")}


@given(problems(**CONTINUOUS), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_permuting_the_tokens_permutes_the_picks(problem, random):
    n = problem["mask"].shape[1]
    shuffle = torch.tensor(random.sample(range(n), n))
    moved = {name: problem[name][:, shuffle] for name in ("features", "scores", "mask")}
    # gamma 0 and the multiply rule leave nothing but zeros after the first pick: ties everywhere.
    problem["gamma"] = problem["gamma"] or 1.0
    a, b = id_select(**problem), id_select(**(problem | moved))
    assert torch.equal(a.order, torch.where(b.order < 0, -1, shuffle[b.order]))


@given(problems(torch.float32), st.integers(-20, 20))
@settings(max_examples=60, deadline=None)
def test_picks_do_not_depend_on_the_scale_of_the_scores(problem, power):
    scaled = problem | {"scores": problem["scores"] * 2.0**power}
    assert torch.equal(id_select(**problem).order, id_select(**scaled).order)


@given(problems(gammas=(INF,), features=("gaussian",), scores=("uniform", "tied", "flat", "zero")))
@settings(max_examples=40, deadline=None)
def test_infinite_gamma_is_top_k_with_ties_to_the_lowest_index(problem):
    picks = id_select(**problem)
    ranking = picks.scores.sort(dim=1, descending=True, stable=True).indices
    for row, count in enumerate(picks.counts.tolist()):
        assert picks.order[row, :count].tolist() == ranking[row, :count].tolist()


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("gamma", [20.0, INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equal_scores_one_token_of_each_kind_is_picked_before_duplicates(dtype, gamma, update):
    rng = np.random.default_rng(3)
    kinds = rng.integers(12, size=80)
    x = torch.tensor(rng.standard_normal((12, 40))[kinds] * rng.uniform(0.1, 9, (80, 1))).to(dtype)
    order = id_select(x, torch.ones(80, dtype=dtype), 12, gamma, update).order[0]
    assert order[0] == 0
    assert sorted(kinds[order]) == sorted(set(kinds))


@given(problems(torch.float32), st.sampled_from([torch.float16, torch.bfloat16]))
@settings(max_examples=40, deadline=None)
def test_half_precision_inputs_are_computed_in_float32(problem, dtype):
    problem["scores"] = problem["scores"] / problem["scores"].max().clamp_min(1)
    half = {name: problem[name].to(dtype) for name in ("features", "scores")}
    full = {name: value.float() for name, value in half.items()}
    a, b = id_select(**(problem | half)), id_select(**(problem | full))
    assert torch.equal(a.order, b.order) and torch.equal(a.scores, b.scores)


@given(problems(batch=2))
@settings(max_examples=60, deadline=None)
def test_trace_holds_the_scores_before_each_pick(problem):
    picks = id_select(**problem, trace=True)
    assert picks.trace.dtype == torch.float32 and id_select(**problem).trace is None
    for row, count in enumerate(picks.counts.tolist()):
        order, trace = picks.order[row, :count], picks.trace[row, :count]
        places = problem["mask"][row].nonzero()[:, 0]
        inside = torch.searchsorted(places, order)
        _, wanted = follow(
            cosine_table(problem["features"][row, places].tolist()),
            problem["scores"][row, places].tolist(),
            inside.tolist(),
            problem["gamma"],
            problem["update"],
            problem["exhausted"],
        )
        scale = float(problem["scores"].max())
        torch.testing.assert_close(trace[:, places], torch.tensor(wanted).float(), rtol=1e-5, atol=1e-6 * scale)
        assert (trace.gather(1, order[:, None])[:, 0] == trace.amax(dim=1)).all()
        assert problem["exhausted"] == "restart" or (trace.diff(dim=0).nan_to_num(neginf=0) <= 0).all()


def test_the_least_suppressed_token_is_next_once_no_score_is_positive():
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.7, 0.7], [0.0, 1.0]])
    s = torch.tensor([1.0, 0.9, 0.4, 0.0])
    picks = id_select(x, s, 4, 2.0, "subtract", trace=True, exhausted="continue")
    assert picks.order.tolist() == [[0, 1, 3, 2]]
    torch.testing.assert_close(picks.trace[0, -1, 2], torch.tensor(0.4 - math.exp(-2 * (1 - 0.5**0.5) ** 2)))
    assert id_select(x, torch.zeros(4), 3, exhausted="continue").order.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("backend", ["torch", "lazy"])
@pytest.mark.parametrize("update", UPDATES)
def test_a_new_sweep_begins_from_the_first_scores_once_no_score_is_positive(update, backend):
    # Two groups of duplicates, one far more important, and a token of no importance in the background.
    x = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    s = torch.tensor([0.9, 1.0, 0.8, 0.3, 0.2, 0.0])
    order = id_select(x, s, 6, update=update, backend=backend).order[0].tolist()
    assert order == [1, 3, 0, 4, 2, 5]
    left = id_select(x, s, 6, update=update, backend=backend, exhausted="continue").order[0].tolist()
    assert left[:3] == [1, 3, 5] if update == "subtract" else left[:2] == [1, 3]
    assert id_select(x, 0 * s, 3, update=update, backend=backend).order.tolist() == [[0, 1, 2]]


def test_exhausted_images_keep_their_importance_and_the_others_of_the_batch_their_picks():
    """The token of the background is the least suppressed one; a new sweep leaves it for last."""
    rng = np.random.default_rng(0)
    x = torch.tensor(np.concatenate([make_features("tight", 40, 16, rng), 9 * rng.standard_normal((20, 16))]))
    s = torch.cat([torch.linspace(1, 0.5, 40), torch.full((20,), 1e-4)]).double()
    even = torch.full((60,), 1.0).double()
    both = id_select(torch.stack([x, x]), torch.stack([s, even]), 30, 20.0, "subtract").order
    left = id_select(x, s, 30, 20.0, "subtract", exhausted="continue").order[0]
    assert (both[0] < 40).sum() >= 2 * (left < 40).sum()
    assert torch.equal(both[1], id_select(x, even, 30, 20.0, "subtract").order[0])


def test_zero_vectors_are_at_distance_one():
    x, s = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0]]), torch.tensor([1.0, 0.9, 0.8])
    trace = id_select(x, s, 3, 1.0, "subtract", trace=True).trace[0]
    torch.testing.assert_close(trace[1, 1:], s[1:] - math.exp(-1))


def test_opposite_tokens_are_suppressed_less_than_orthogonal_ones():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert id_select(x, torch.ones(3), 2, gamma=0.5).order.tolist() == [[0, 2]]


def test_unbatched_input_is_a_batch_of_one():
    x, s, mask = torch.randn(9, 5), torch.rand(9), torch.arange(9) < 7
    assert torch.equal(id_select(x, s, 4, mask=mask).order, id_select(x[None], s[None], 4, mask=mask[None]).order)


def test_inputs_are_not_changed_and_no_gradient_is_recorded():
    x, s = torch.randn(2, 30, 4, requires_grad=True), torch.rand(2, 30, requires_grad=True)
    before = x.detach().clone(), s.detach().clone()
    for trace in (False, True):
        picks = id_select(x, s, 20, trace=trace)
        assert not picks.scores.requires_grad and (picks.trace is None or not picks.trace.requires_grad)
    assert torch.equal(x, before[0]) and torch.equal(s, before[1])
    picks.scores.zero_()
    assert torch.equal(s, before[1])


def test_autocast_does_not_change_the_picks():
    x, s = torch.randn(200, 64), torch.ones(200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [id_select(x, s, 150, trace=trace).order for trace in (False, True)]
    assert torch.equal(inside[0], id_select(x, s, 150).order)
    assert torch.equal(inside[1], id_select(x, s, 150, trace=True).order)


def test_the_tf32_setting_is_restored():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for setting in ("tf32", "ieee"):
            matmul.fp32_precision = setting
            with pytest.raises(KeyError), full_precision(torch.device("cuda")):
                assert matmul.fp32_precision == "ieee"
                raise KeyError
            assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = before


def test_the_tf32_setting_of_an_older_torch_is_restored(monkeypatch):
    """Before 2.9 it is a flag of another name."""
    older = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends.cuda, "matmul", older)
    with full_precision(torch.device("cuda")):
        assert older == SimpleNamespace(allow_tf32=False)
    assert older == SimpleNamespace(allow_tf32=True)


class Watch(TorchDispatchMode):
    """Counts kernels and host syncs, and remembers the largest tensor."""

    def __enter__(self):
        self.kernels = self.syncs = self.largest = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        self.syncs += func is torch.ops.aten._local_scalar_dense.default
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("scores", [torch.rand(3000), torch.ones(3000)])
def test_no_tensor_of_all_pairs_is_allocated(scores, trace):
    x = torch.randn(3000, 8)
    with Watch() as seen:
        id_select(x, scores, 10, trace=trace)
    assert seen.largest <= 10 * 3000


def test_a_round_is_a_few_kernels_for_the_whole_batch_without_synchronisation():
    def cost(batch, budget):
        x, s = torch.randn(batch, 50, 8), torch.rand(batch, 50)
        with Watch() as seen:
            id_select(x, s, budget, trace=True)
        return seen

    assert cost(1, 30).kernels == cost(8, 30).kernels
    assert cost(8, 5).syncs == cost(8, 30).syncs
    assert (cost(8, 30).kernels - cost(8, 20).kernels) / 10 <= 24


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(("n", "k"), [(576, 64), (576, 16), (300, 300), (700, 50)])
def test_lazy_picks_the_same_tokens_as_torch(n, k, update):
    rng = np.random.default_rng(n + k)
    for features, scores in itertools.product(("gaussian", "clustered", "common"), ("peaked", "uniform", "flat")):
        x = make_features("clustered" if features == "common" else features, n, 64, rng)
        x = torch.tensor(x + 1.5 * rng.standard_normal(64) * (features == "common"))
        s = torch.tensor(make_scores(scores, n, rng))
        problem = {"features": x[None], "scores": s[None], "gamma": 20.0, "update": update}
        problem["mask"] = torch.ones(1, n, dtype=torch.bool)
        for exhausted in EXHAUSTED:
            problem["exhausted"] = exhausted
            ours, torched = (id_select(**problem, budget=k, backend=name).order[0] for name in ("lazy", "torch"))
            assert resembles(ours, torched, problem, 0), (features, scores, exhausted)


SIZES = {
    "SHORT": (0, 3, 96),
    "LONGEST_TABLE": (0, 2048),
    "FIRST_ROWS": (1, 3),
    "CALLS": (0, 2**12, 2**23),
    "SMALL": (0, 2**18),
    "TABLE_ROWS": (2, 128),
    "CHUNK": (16, 2**22),
    "COPY": (0, 16, 999),
}


@given(problems(), st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SIZES.items()}))
@settings(max_examples=200, deadline=None)
def test_lazy_picks_the_same_tokens_as_torch_in_ragged_batches_and_blocks_of_any_size(problem, sizes):
    torched = id_select(**problem, backend="torch").order
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(cpu_lazy, name, value)
        ours = id_select(**problem, backend="lazy").order
    for row, count in enumerate((torched >= 0).sum(1).tolist()):
        assert resembles(ours[row, :count], torched[row, :count], problem, row)


@pytest.mark.parametrize("backend", ["lazy", "torch"])
def test_duplicates_of_many_features_count_as_duplicates(backend):
    x = torch.cat([torch.full((3, 40_000), 0.1), torch.eye(3, 40_000)])
    assert id_select(x, torch.tensor([0.9, 0.8, 0.7, 0.3, 0.2, 0.1]), 4, backend=backend).order.tolist() == [
        [0, 3, 4, 5]
    ]


def test_lazy_picks_the_same_tokens_with_several_threads():
    x, s, mask = (
        torch.randn(7, 90, 16),
        torch.rand(7, 90),
        torch.arange(90) < torch.tensor([90, 80, 7, 90, 1, 33, 60])[:, None],
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ours = id_select(x, s, 0.4, mask=mask, backend="lazy").order
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours, id_select(x, s, 0.4, mask=mask, backend="torch").order)


@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_rows_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for rows, others in ((1, 9), (4, 9), (9, 4), (9, 9)):
            a, b = torch.randn(rows, 5, dtype=torch.float64), torch.randn(others, 5, dtype=torch.float64)
            assert torch.allclose(cpu_lazy.row_products(a, b), torch.einsum("td,pd->tp", a, b), atol=1e-12)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("budget", "most"), [(16, 3), (64, 6), (192, 2)])
def test_lazy_multiplies_few_rows_for_a_pick(budget, most, monkeypatch):
    counted = []
    multiply = cpu_lazy.row_products
    monkeypatch.setattr(cpu_lazy, "row_products", lambda a, b: counted.append(len(a) * len(b)) or multiply(a, b))
    n = 576
    for features, scores in itertools.product(loops.FEATURES, loops.SCORES):
        torch.manual_seed(0)
        x, s = loops.make_features(features, n, 4096), loops.make_scores(scores, n)
        counted.clear()
        id_select(x, s, budget)
        assert 0 < sum(counted) <= min(most * budget, 0.61 * n) * n, (features, scores, sum(counted) / n)


def test_the_bounds_of_the_benchmark_multiply_what_they_say():
    x = torch.randn(200, 8, dtype=torch.float64)
    table = x @ x.T
    for name, picked in (("K rows at once", 7), ("K rows in turn", 7)):
        lengths, total, *rows = loops.BOUNDS[name](x, picked)
        assert torch.allclose(lengths, x.square().sum(1).sqrt())
        assert torch.allclose(total, x.sum(0))
        assert torch.allclose(torch.cat([row.reshape(-1, 200) for row in rows]), table[:picked])
    blocks = loops.BOUNDS["half the table"](x, picked)[2:]
    assert [tuple(block.shape) for block in blocks] == [(128, 200), (72, 72)]
    assert torch.allclose(blocks[0], table[:128])
    assert torch.allclose(blocks[1], table[128:, 128:])


def test_auto_takes_lazy_on_a_cpu_and_torch_for_a_trace(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu_lazy, "pick_lazily", lambda *given: seen.append(given) or [0, 1])
    assert id_select(X, S, 2).order.tolist() == [[0, 1]] * 2
    assert len(seen) == 2
    id_select(X, S, 2, trace=True)
    assert len(seen) == 2


def test_environment_variables_do_not_choose_the_backend(monkeypatch):
    monkeypatch.setenv("IDSEL_BACKEND", "torch")
    monkeypatch.setattr(selection, "pick_in_rounds", None)
    assert id_select(X, S, 2).counts.tolist() == [2, 2]
    with pytest.raises(TypeError, match="not callable"):
        id_select(X, S, 2, backend="torch")


def test_backends_that_cannot_run_here_are_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'torch', 'lazy', 'triton', not 'cuda'"):
        id_select(X, S, 2, backend="cuda")
    monkeypatch.setattr(selection, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"backend 'triton' needs tensors on a GPU or .*, not cpu tensors"):
        id_select(X, S, 2, backend="triton")
    with pytest.raises(ValueError, match="backend 'lazy' needs tensors on the CPU, not on meta"):
        id_select(X.to("meta"), S.to("meta"), 2, backend="lazy")
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="backend 'triton' needs the package triton, which is not installed"):
        id_select(X, S, 2, backend="triton")


X, S = torch.randn(2, 5, 3), torch.rand(2, 5)
ROW = torch.tensor([[True] * 5, [False] * 5])


def changed(tensor, value, *place):
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": X.numpy()}, TypeError, "features must be a tensor of a float dtype, not ndarray"),
        ({"features": X.long()}, TypeError, "features must be a tensor of a float dtype, not torch.int64"),
        ({"scores": S > 0}, TypeError, "scores must be a tensor of a float dtype, not torch.bool"),
        ({"features": X[0, 0]}, ValueError, r"features must be \(B, N, D\) or \(N, D\) .*, not \(3,\)"),
        ({"features": X[:, :0]}, ValueError, r"without an empty axis, not \(2, 0, 3\)"),
        ({"features": X[:0]}, ValueError, r"without an empty axis, not \(0, 5, 3\)"),
        ({"scores": S[:, :4]}, ValueError, r"scores must be \(2, 5\), like features, not \(2, 4\)"),
        ({"scores": S[0]}, ValueError, r"scores must be \(2, 5\), like features, not \(5,\)"),
        ({"mask": S}, TypeError, "mask must be a bool tensor, not torch.float32"),
        ({"mask": [True] * 5}, TypeError, "mask must be a bool tensor, not list"),
        ({"mask": ROW[:, :4]}, ValueError, r"mask must be \(2, 5\), like features, not \(2, 4\)"),
        ({"mask": ROW}, ValueError, "mask must be True at a token of every row; row 1"),
        ({"scores": S.to("meta")}, ValueError, "must be on one device, not cpu, meta"),
        (
            {"features": changed(X, math.nan, 1, 2, 0)},
            ValueError,
            "features must be finite, .*; row 1, token 2 has nan",
        ),
        ({"features": changed(X, -INF, 0, 4, 1)}, ValueError, "features must be finite, .*; row 0, token 4 has inf"),
        ({"scores": changed(S, math.nan, 1, 3)}, ValueError, "scores must be finite; row 1, token 3 has nan"),
        ({"scores": changed(S, INF, 0, 0)}, ValueError, "scores must be finite; row 0, token 0 has inf"),
        ({"scores": changed(S, -0.5, 1, 1)}, ValueError, "scores must be 0 or more; row 1, token 1 has -0.5"),
        ({"gamma": -1.0}, ValueError, "gamma must be a number from 0 to infinity or 'auto', not -1.0"),
        ({"gamma": math.nan}, ValueError, "gamma must be a number from 0 to infinity or 'auto', not nan"),
        ({"gamma": "20"}, ValueError, "gamma must be a number from 0 to infinity or 'auto', not '20'"),
        ({"gamma": True}, ValueError, "gamma must be a number from 0 to infinity or 'auto', not True"),
        ({"gamma": "automatic"}, ValueError, "gamma must be a number from 0 to infinity or 'auto', not 'automatic'"),
        ({"exhausted": "stop"}, ValueError, "exhausted must be one of 'restart', 'continue', not 'stop'"),
        ({"update": "divide"}, ValueError, "update must be one of 'subtract', 'multiply', not 'divide'"),
        ({"budget": 0}, ValueError, ", not 0$"),
        ({"budget": 1.5}, ValueError, r"a share of them \(float, above 0 and up to 1\), not 1.5"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=message):
        id_select(**({"features": X, "scores": S, "budget": 2} | arguments))


@pytest.mark.parametrize(
    ("budget", "lengths", "counts"),
    [
        (3, [2, 3, 9], [2, 3, 3]),
        (np.int64(3), [9], [3]),
        (9, [2, 9], [2, 9]),
        (10, [2, 9], [2, 9]),
        (10**30, [1], [1]),
        (1.0, [1, 7], [1, 7]),
        (0.5, [1, 3, 4, 5], [1, 2, 2, 3]),
        (0.01, [1, 40, 60, 149, 150], [1, 1, 1, 1, 2]),
        (np.float32(0.25), [8], [2]),
    ],
)
def test_a_budget_gives_the_number_of_tokens(budget, lengths, counts):
    assert resolve_budget(budget, torch.tensor(lengths)).tolist() == counts


@pytest.mark.parametrize("budget", [True, "64", None, torch.tensor(4), 1j])
def test_budgets_that_are_no_numbers_are_refused(budget):
    with pytest.raises(TypeError, match="budget must be a number of tokens"):
        resolve_budget(budget, torch.tensor([5]))


@pytest.mark.parametrize("budget", [0, -3, 0.0, -0.1, 1.0001, math.nan, INF])
def test_budgets_out_of_range_are_refused(budget):
    with pytest.raises(ValueError, match=f"budget must be .*{budget}"):
        resolve_budget(budget, torch.tensor([5]))


@pytest.mark.parametrize("backend", ["torch", "lazy"])
def test_a_budget_above_the_longest_row_keeps_all_tokens(backend):
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    picks = id_select(X, S, 6, mask=mask, backend=backend)
    assert [row.tolist() for row in picks.rows()] == [[0, 1, 2, 3, 4], [0, 1]] and picks.requested == 6
    assert torch.equal(picks.order, id_select(X, S, 5, mask=mask, backend=backend).order)


@pytest.mark.parametrize(("budget", "above"), [(3, [True, False, False]), (4, [True, True, False]), (1.0, [False] * 3)])
def test_only_numbers_of_tokens_are_above_a_row(budget, above):
    assert is_above(budget, torch.tensor([2, 3, 4])).tolist() == above


def test_a_selection_is_built_from_an_order():
    picks = Selection.from_order(torch.tensor([[4, 0, 2], [1, -1, -1]]), torch.rand(2, 5).double(), 0.5)
    assert picks.indices.tolist() == [[0, 2, 4], [1, -1, -1]] and picks.counts.tolist() == [3, 1]
    assert [row.tolist() for row in picks.rows()] == [[0, 2, 4], [1]]
    assert picks.scores.dtype == torch.float32
    with pytest.raises(ValueError, match="n must be above the highest kept index 4, not 4"):
        picks.keep_mask(4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        picks.requested = 3


def test_rows_that_are_alike_pick_alike_and_rows_of_other_features_do_not():
    """Questions about one image often bring the same scores; they are picked once, but only where all is the same."""
    generator = torch.Generator().manual_seed(5)
    features, scores = torch.randn(2, 30, 8, generator=generator), torch.rand(1, 30, generator=generator).expand(2, 30)
    mask = torch.ones(5, 30, dtype=torch.bool)
    mask[4, 20:] = False
    rows = [0, 1, 0, 1, 0]
    batch = id_select(features[rows], scores[[0] * 5], 9, 5.0, mask=mask)
    for row, image in enumerate(rows):
        alone = id_select(features[image], scores[0], 9, 5.0, mask=mask[row])
        assert torch.equal(batch.order[row], alone.order[0])
    assert not torch.equal(batch.order[0], batch.order[1])
    assert not torch.equal(batch.order[0], batch.order[4])


def test_parts_of_a_batch_join_in_the_order_of_their_rows():
    draw = torch.Generator().manual_seed(0)
    features, scores = torch.randn(4, 9, 5, generator=draw), torch.rand(4, 9, generator=draw)
    long, short = (id_select(features[rows], scores[rows], count) for rows, count in (([3, 0], 6), ([1, 2], 2)))
    joined = Selection.join([(torch.tensor([1, 2]), short), (torch.tensor([3, 0]), long)], 0.5)
    assert joined.counts.tolist() == [6, 2, 2, 6] and joined.requested == 0.5 and joined.features is None
    assert torch.equal(joined.scores, scores)
    for row, wanted in enumerate([long.rows()[1], *short.rows(), long.rows()[0]]):
        assert torch.equal(joined.rows()[row], wanted)
    assert torch.equal(joined.order[0], long.order[1]) and joined.order[1, 2:].tolist() == [-1] * 4
    merged = dataclasses.replace(short, features=torch.ones(2, 2, 3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="all parts must have features, or none; 1 of 2 have"):
        Selection.join([(torch.tensor([1, 2]), merged), (torch.tensor([3, 0]), long)], 0.5)
    both = [
        (torch.tensor([1, 2]), merged),
        (torch.tensor([3, 0]), dataclasses.replace(long, features=2 * torch.ones(2, 6, 3))),
    ]
    features = Selection.join(both, 0.5).features
    assert features.dtype == torch.float32 and features[:, :, 0].sum(1).tolist() == [12, 2, 2, 12]


@pytest.mark.parametrize("backend", ["lazy", "torch"])
def test_a_norm_too_small_for_a_reciprocal_counts_as_zero(backend):
    x, s = torch.eye(4, 6).repeat(2, 1), torch.linspace(1, 0.3, 8)
    tiny, zero = x.clone(), x.clone()
    tiny[1], zero[1] = 1e-40, 0
    picks = [id_select(each, s, 5, gamma=20.0, backend=backend).order for each in (tiny, zero)]
    assert torch.equal(*picks)
