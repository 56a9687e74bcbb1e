"""Times of contestants that run in turn, and the files that keep them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import torch
from torch.utils.benchmark import Timer

from idsel_core.results import replace

Clock = Literal["wall", "thread"]


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, seconds: float = math.inf, clock: Clock = "wall"
) -> pd.DataFrame:
    """Run all contestants in turn, so that what else the machine does weighs on all alike.

    Parameters
    ----------
    contestants : Mapping
        Functions by name. The first is the one that the others are compared with.
    rounds : int
        Turns that count, 1 or more; one more, before them, does not.

    seconds : float
        Once this long has passed, no further turn begins.
    clock : {"wall", "thread"}
        What is measured: time, or the time for which the processor ran the calling thread, on which other processes
        weigh less. It is the better one where torch has one thread and no GPU, and meaningless elsewhere.

    Returns
    -------
    DataFrame
        One row a contestant: `contestant`, `median_ms`, `low_ms` and `high_ms` (quartiles), `fastest_ms`, `rounds`,
        `clock`, and its time as a multiple of the first one's: `ratio`, the median over turns of that in the same turn,
        and `fastest_ratio`, of the fastest turns, which another process on the machine disturbs least.

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


def store(path: Path, rows: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    """Write times as parquet and where they come from as JSON beside it, each whole or not at all.

    Parameters
    ----------
    path : Path
        The parquet file; its folder is made.
    rows : DataFrame
        The times.
    provenance : Mapping
        What `provenance` returns.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    note = json.dumps({"rows": len(rows), **provenance}, indent=1, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    replace(path, table.replace_schema_metadata({"idsel_provenance": note}))
    replace(path.with_suffix(".json"), note + "\n")
