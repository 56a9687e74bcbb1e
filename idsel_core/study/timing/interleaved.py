"""Time several functions in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pandas as pd
import torch
from torch.utils.benchmark import Timer

Clock = Literal["wall", "thread"]


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, seconds: float = math.inf, clock: Clock = "wall"
) -> pd.DataFrame:
    """Time functions in turn, so that other load of the machine meets all of them alike.

    Parameters
    ----------
    contestants : Mapping
        Functions by name; the others are compared with the first.
    rounds : int
        Turns that are measured, 1 or more. One warm-up turn comes before them.
    seconds : float
        No turn begins after this time, but one is always measured.
    clock : {"wall", "thread"}
        Wall time, or CPU time of the calling thread. The latter is less disturbed by other processes, and only
        meaningful with one torch thread and no GPU.

    Returns
    -------
    DataFrame
        One row a function: `contestant`, `median_ms`, `low_ms` and `high_ms` (quartiles), `fastest_ms`, `rounds`,
        `clock`, and its time as a multiple of the first one's: `ratio`, the median over turns, and `fastest_ratio`,
        of the fastest turns.

    Raises
    ------
    ValueError
        If `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be 1 or more, not {rounds}")
    threads = torch.get_num_threads()
    how: dict[str, Any] = {"num_threads": threads} | ({"timer": time.thread_time} if clock == "thread" else {})
    timers = {name: Timer("run()", globals={"run": run}, **how) for name, run in contestants.items()}
    started = time.perf_counter()
    turns: list[dict[str, float]] = []
    while len(turns) < 2 or (len(turns) <= rounds and time.perf_counter() - started < seconds):
        turns.append({name: 1e3 * timer.timeit(1).mean for name, timer in timers.items()})
    times = pd.DataFrame(turns[1:])
    summary = pd.DataFrame(
        {
            "median_ms": times.median(),
            "low_ms": times.quantile(0.25),
            "high_ms": times.quantile(0.75),
            "fastest_ms": times.min(),
            "ratio": times.div(times.iloc[:, 0], axis=0).median(),
            "fastest_ratio": times.min() / times.iloc[:, 0].min(),
        }
    )
    return summary.assign(rounds=len(times), clock=clock).rename_axis("contestant").reset_index()
