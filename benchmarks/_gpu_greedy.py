"""A step of gpu.py: the greedy selection of a batch, checked in float64 and timed against plain loops."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks._loops import FEATURES, LOOPS, SCORES, gap, make_features, make_scores
from idsel_core.selection.greedy import id_select

ROUNDING = 1e-6
"""Largest gap of a pick, as a share of the highest score, that rounding explains."""


def measure(
    *, device: str, small: bool, tokens: int, budget: int, dtype: str, target_us: float | None
) -> list[dict[str, Any]]:
    """Return one row for each backend that was checked, and one for each contestant that was timed.

    Raises
    ------
    ValueError
        If a backend's picks part from the rule in float64 by more than rounding; nothing is timed then.
    """
    torch.manual_seed(0)
    batch, width, kind = *((2, 64) if small else (8, 4096)), getattr(torch, dtype)
    triton = find_spec("triton") is not None
    backends = ["torch", *(["triton"] if triton else []), *(["lazy"] if device == "cpu" else [])]
    case = {"tokens": tokens, "budget": budget, "width": width, "batch": batch, "dtype": dtype}
    worst = dict.fromkeys(backends, 0.0)
    for features in FEATURES:
        x = torch.stack([make_features(features, tokens, width) for _ in range(batch)]).to(device, kind)
        for peaks in SCORES:
            s = make_scores(peaks, batch, tokens).to(device)
            for backend in backends:
                worst[backend] = max(worst[backend], check(x, s, budget, backend, f"{features} tokens, {peaks} scores"))
    kinds = len(FEATURES) * len(SCORES)
    rows = [{**case, "part": "agreement", "backend": name, "gap": far, "kinds": kinds} for name, far in worst.items()]
    print(f"picks agree with the rule in float64 on {kinds} kinds of tokens: {', '.join(backends)}")
    x = torch.stack([make_features("clustered", tokens, width) for _ in range(batch)]).to(device, kind)
    s = make_scores("peaked", batch, tokens).to(device)
    calls = {"id_select": lambda: id_select(x, s, budget), "torch": lambda: id_select(x, s, budget, backend="torch")}
    pairs = list(zip(x, s, strict=True))
    calls |= {name: lambda loop=loop: [loop(*pair, budget) for pair in pairs] for name, loop in LOOPS.items()}
    if triton:
        calls["kernel"] = kernel(x, s, budget)
    for name, times in in_turns(calls, device, 2 if small else 30).items():
        rows.append({**case, "part": "times", "features": "clustered", "scores": "peaked", "contestant": name, **times})
        rows[-1]["target_us"] = target_us if name in ("id_select", "kernel") else None
        aim = f"   target: below {target_us} us" if rows[-1]["target_us"] else ""
        queued = "" if times["device_us"] is None else f", {times['device_us']:10.1f} us on the device"
        print(f"{name:>10} {times['median_us']:12.1f} us a batch{queued}{aim}")
    return rows


def check(x: Tensor, scores: Tensor, budget: int, backend: Any, case: str) -> float:
    """Return how far the worst pick of a batch lies below the best token by the rule in float64."""
    order = id_select(x, scores, budget, backend=backend).order
    worst = max(gap(one, of, picks) for one, of, picks in zip(x, scores, order, strict=True))
    if worst > ROUNDING:
        raise ValueError(f"the picks of {backend} part from the rule in float64 by {worst:.1e}: {case}")
    return worst


def kernel(x: Tensor, scores: Tensor, budget: int) -> Callable[[], Tensor]:
    """Return what runs the products and the kernel alone, without the checks of `id_select` and its wait."""
    from idsel_core.selection.gpu_triton import pick_on_gpu
    from idsel_core.selection.precision import full_precision
    from idsel_core.selection.scale import automatic_gamma

    norms = torch.linalg.vector_norm(x.float(), dim=-1)
    inverse, wide = norms.reciprocal(), scores.double()
    counts = torch.full((len(x),), budget)
    real = torch.ones_like(scores, dtype=torch.bool)

    def run() -> Tensor:
        with full_precision(x.device):
            gamma = automatic_gamma(x, inverse, real)
            return pick_on_gpu(x, inverse, wide, counts, gamma, "multiply", restart=True)

    return run


def in_turns(calls: dict[str, Callable[[], object]], device: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Time functions in turn, after two turns that do not count.

    `median_us`, `low_us` and `high_us` are quartiles of the wall time until the device is idle again. `device_us` is
    the median time on the device, queued behind other work, so that it holds no wait for the host unless the function
    waits itself; None on a CPU.
    """
    wall: dict[str, list[float]] = {name: [] for name in calls}
    queued: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, run in calls.items():
            wait(device)
            began = time.perf_counter()
            run()
            wait(device)
            spent = 1e6 * (time.perf_counter() - began)
            alone = on_device(run) if device == "cuda" else None
            if turn >= 2:
                wall[name].append(spent)
                queued[name] += [alone] if alone is not None else []
    found = {}
    for name, times in wall.items():
        low, median, high = torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        alone = float(torch.tensor(queued[name]).median()) if queued[name] else None
        found[name] = {"median_us": median, "low_us": low, "high_us": high, "device_us": alone, "rounds": rounds}
    first = found["id_select"]["median_us"]
    return {name: {**row, "times_ours": row["median_us"] / first} for name, row in found.items()}


def on_device(run: Callable[[], object]) -> float:
    """Return the microseconds that the kernels of a function take on a GPU."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Work of some milliseconds in front, so that all is queued before the first kernel begins.
    torch.cuda._sleep(10_000_000)
    began.record()
    run()
    ended.record()
    torch.cuda.synchronize()
    return 1e3 * began.elapsed_time(ended)


def wait(device: str) -> None:
    """Wait until a device is idle."""
    if device == "cuda":
        torch.cuda.synchronize()
