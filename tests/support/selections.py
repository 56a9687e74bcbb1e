"""Hypothesis strategies of selection problems."""

import math

import numpy as np
import torch
from hypothesis import strategies as st

INF = math.inf
UPDATES = ("subtract", "multiply")
EXHAUSTED = ("restart", "continue")
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
        "exhausted": draw(st.sampled_from(EXHAUSTED)),
    }


def resembles(order, wanted, problem, row):
    """Whether two orders are the same, or part only at ties, such as between duplicates."""
    if torch.equal(order, wanted):
        return True
    x, s = problem["features"][row], problem["scores"][row].masked_fill(~problem["mask"][row], -INF)
    slack = 1e-14 * float(s.max())
    rule = problem["gamma"], problem["update"], problem.get("exhausted", "restart")
    behind, _ = follow(cosine_table(x.tolist()), s.tolist(), order.tolist(), *rule, slack)
    return max(behind) <= slack


def cosine_table(x):
    norms = [math.sqrt(math.fsum(a * a for a in row)) for row in x]
    return [
        [math.fsum(map(float.__mul__, a, b)) / (p * q) if p and q else 0.0 for b, q in zip(x, norms, strict=True)]
        for a, p in zip(x, norms, strict=True)
    ]


def follow(cosines, scores, order, gamma, update, exhausted="restart", slack=0.0):
    """Run the rule by plain loops in float64 along `order`.

    Return how far each pick stood below the best token (0 where it is the best, ties to the lowest index), and the
    scores before each pick. Scores count as run out at 2^-39 of the highest one. Where the best is within `slack` of
    that, both readings are followed, and the one that fits the picks better is returned.
    """
    floor, alive = 2.0**-39 * max(scores), dict.fromkeys(range(len(scores)))
    readings = [([], [], list(scores))]  # how far below, trace, scores
    for i in order:
        seen = []
        for behind, trace, s in readings:
            best = max(s[j] for j in alive)
            again = [scores[j] if j in alive else s[j] for j in range(len(s))]
            near = exhausted == "restart" and abs(best - floor) <= slack
            for now in [s, again] if near else [again if exhausted == "restart" and best <= floor else s]:
                first = max(alive, key=lambda j, now=now: (now[j], -j))
                gap = 0.0 if i == first else max(now[first] - now[i], math.ulp(0.0))
                row = [now[j] if j in alive else -INF for j in range(len(now))]
                after = list(now)
                for j in alive:
                    d = max(0.0, 1.0 - cosines[i][j])
                    w = math.exp(-gamma * d * d) if d > 1e-14 else 1.0
                    after[j] = now[j] - w * max(now[i], 0.0) if update == "subtract" else now[j] * (1.0 - w)
                seen.append(([*behind, gap], [*trace, row], after))
        readings = sorted(seen, key=lambda reading: max(reading[0]))[:8]
        del alive[i]
    return readings[0][:2]
