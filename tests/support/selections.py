"""Hypothesis strategies of selection problems."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

INF = math.inf
UPDATES = ("subtract", "multiply")
GAMMAS = (0.0, 1.0, 20.0, 300.0, INF)
FEATURES = ("gaussian", "clustered", "tight", "duplicates", "blank")
SCORES = ("uniform", "peaked", "flat", "tied", "sparse", "zero")


def make_features(kind, n, d, rng):
    x = rng.standard_normal((n, d))
    if kind in ("clustered", "tight", "duplicates"):
        centres = rng.standard_normal((max(1, n // 4), d))
        spread = {"clustered": 0.4, "tight": 0.02, "duplicates": 0.0}[kind]
        x = centres[rng.integers(len(centres), size=n)] + spread * x
    if kind == "blank":
        x[rng.random(n) < 0.4] = 0
    return x


def make_scores(kind, n, rng):
    uniform = rng.random(n)
    return {
        "uniform": uniform,
        "peaked": np.exp(3 * rng.standard_normal(n)),
        "flat": np.full(n, uniform[0] + 0.1),
        "tied": rng.integers(4, size=n) / 4,
        "sparse": np.where(rng.random(n) < 0.6, 0.0, uniform),
        "zero": np.zeros(n),
    }[kind]


@st.composite
def problems(draw, dtype=torch.float64, batch=4, scores=SCORES, features=FEATURES, gammas=GAMMAS):
    """Draw a ragged batch with its arguments."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = draw(st.lists(st.integers(1, 24), min_size=1, max_size=batch))
    n, d = max(lengths) + draw(st.integers(0, 3)), draw(st.integers(2, 12))
    mask = np.zeros((len(lengths), n), dtype=bool)
    for row, length in enumerate(lengths):
        mask[row, rng.permutation(n)[:length]] = True
    x = np.stack([make_features(draw(st.sampled_from(features)), n, d, rng) for _ in lengths])
    s = np.stack([make_scores(draw(st.sampled_from(scores)), n, rng) for _ in lengths])
    return {
        "features": torch.tensor(x).to(dtype),
        "scores": torch.tensor(s).to(dtype),
        "mask": torch.tensor(mask),
        "budget": draw(st.one_of(st.integers(1, max(lengths)), st.floats(0.01, 1.0))),
        "gamma": draw(st.sampled_from(gammas)),
        "update": draw(st.sampled_from(UPDATES)),
    }


def resembles(order, wanted, problem, row):
    """Whether two orders are the same, or part only at ties, such as between duplicates."""
    if torch.equal(order, wanted):
        return True
    x, s = problem["features"][row], problem["scores"][row].masked_fill(~problem["mask"][row], -INF)
    behind, _ = follow(cosine_table(x.tolist()), s.tolist(), order.tolist(), problem["gamma"], problem["update"])
    return max(behind) <= 1e-14 * float(s.max())


def cosine_table(x):
    norms = [math.sqrt(math.fsum(a * a for a in row)) for row in x]
    return [
        [math.fsum(map(float.__mul__, a, b)) / (p * q) if p and q else 0.0 for b, q in zip(x, norms, strict=True)]
        for a, p in zip(x, norms, strict=True)
    ]


def follow(cosines, scores, order, gamma, update):
    """Run the rule by plain loops in float64 along `order`.

    Return how far each pick stood below the best token (0 where it is the best, ties to the lowest index), and the
    scores before each pick.
    """
    s, alive = list(scores), dict.fromkeys(range(len(scores)))
    behind, trace = [], []
    for i in order:
        trace.append([s[j] if j in alive else -INF for j in range(len(s))])
        best = max(alive, key=lambda j: (s[j], -j))
        behind.append(0.0 if i == best else max(s[best] - s[i], math.ulp(0.0)))
        del alive[i]
        for j in alive:
            d = max(0.0, 1.0 - cosines[i][j])
            w = math.exp(-gamma * d * d) if d > 1e-14 else 1.0
            s[j] = s[j] - w * max(s[i], 0.0) if update == "subtract" else s[j] * (1.0 - w)
    return behind, trace
