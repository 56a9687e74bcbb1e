"""Time id_select against straightforward loops: python benchmarks/selection.py.

All contestants run in turn, many times, and the fastest run of each counts. The features are random, in clusters, or
in clusters with much in common (as projector outputs are); the scores peaked or equal.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.benchmark import Timer

from idsel_core.selection import id_select


def naive(x: Tensor, scores: Tensor, k: int, gamma: float = 20.0) -> Tensor:
    """ID-Selection with all N x N weights, one step after the other."""
    x = normalize(x, dim=-1)
    weights = torch.exp(-gamma * (1 - x @ x.T).clamp_min(0).square())
    picked = torch.zeros_like(scores, dtype=torch.bool)
    picks = []
    for _ in range(k):
        best = scores.masked_fill(picked, -torch.inf).argmax()
        picks.append(best)
        picked[best] = True
        scores = scores - weights[best] * scores[best].clamp_min(0)
    return torch.stack(picks)


def divprune(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """Max-min distance: the token whose nearest pick is farthest; first, whose nearest neighbour is."""
    x = normalize(x, dim=-1)
    distance = 1 - x @ x.T
    picks = distance.topk(2, dim=0, largest=False).values[1].argmax()[None]
    for _ in range(k - 1):
        picks = torch.cat([picks, distance[picks].amin(dim=0).argmax()[None]])
    return picks


def cdpruner(x: Tensor, scores: Tensor, k: int) -> Tensor:
    """Greedy determinant of diag(r) S diag(r), by incremental Cholesky."""
    x = normalize(x, dim=-1)
    r = (scores - scores.min() + 1e-6) / (scores.max() - scores.min() + 1e-6)
    kernel = r[:, None] * (x @ x.T) * r
    gain = kernel.diagonal().clone()
    factors = torch.zeros(k, len(x))
    picks = []
    for step in range(k):
        best = gain.argmax()
        picks.append(best)
        row = (kernel[best] - factors[:step, best] @ factors[:step]) / gain[best].clamp_min(1e-12).sqrt()
        factors[step] = row
        gain = gain - row.square()
        gain[best] = -torch.inf
    return torch.stack(picks)


def make_features(kind: str, n: int, d: int) -> Tensor:
    """Return (n, d) features."""
    noise = torch.randn(n, d)
    if kind == "random":
        return noise
    x = torch.randn(40, d)[torch.randint(40, (n,))] + 0.5 * noise
    return x if kind == "clustered" else x + 1.5 * torch.randn(d)


def fastest(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the milliseconds of each contestant's fastest run."""
    timers = {name: Timer("run()", globals={"run": run}) for name, run in contestants.items()}
    seen = [{name: timer.timeit(1).mean for name, timer in timers.items()} for _ in range(rounds)]
    return {name: 1e3 * min(turn[name] for turn in seen) for name in timers}


def main() -> None:
    """Print one line a case: milliseconds of id_select, and how many times as long the others take."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 64, 192])
    arguments = parser.parse_args()
    n, d = arguments.tokens, arguments.width
    torch.manual_seed(0)
    print(f"N = {n}, D = {d}, CPU {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("others as multiples of id_select; batch: 4 images at once / one by one\n")
    print("   K   features  scores   id_select   naive  DivPrune  CDPruner  batch")
    for k in arguments.budgets:
        for kind in ("random", "clustered", "alike"):
            x = torch.stack([make_features(kind, n, d) for _ in range(4)])
            for peaked in (True, False):
                s = torch.randn(4, n).mul(2).softmax(1) if peaked else torch.ones(4, n)
                time = fastest(
                    {
                        "id_select": lambda x=x, s=s, k=k: id_select(x[0], s[0], k),
                        "naive": lambda x=x, s=s, k=k: naive(x[0], s[0], k),
                        "divprune": lambda x=x, s=s, k=k: divprune(x[0], s[0], k),
                        "cdpruner": lambda x=x, s=s, k=k: cdpruner(x[0], s[0], k),
                        "batch": lambda x=x, s=s, k=k: id_select(x, s, k),
                        "one by one": lambda x=x, s=s, k=k: [id_select(a, b, k) for a, b in zip(x, s, strict=True)],
                    },
                    arguments.rounds,
                )
                ours = time["id_select"]
                print(
                    f"{k:4} {kind:>10} {'peaked' if peaked else 'equal':>7} {ours:8.2f} ms "
                    f"{time['naive'] / ours:6.1f}x {time['divprune'] / ours:8.1f}x {time['cdpruner'] / ours:8.1f}x "
                    f"{time['batch'] / time['one by one']:6.2f}"
                )


if __name__ == "__main__":
    main()
