"""Time queries of a store of many rows: python benchmarks/store.py.

Rows are made up and written job by job in a temporary folder; then the store is checked and asked for a few columns.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from idsel_core.study.store.results import Results

BUDGETS = (192, 128, 64, 32, 16)


def make_rows(count: int, method: str, seed: int) -> pd.DataFrame:
    """Return made-up rows of one method, at some budgets."""
    draw = np.random.default_rng(seed)
    budget = np.repeat(BUDGETS, -(-count // len(BUDGETS)))[:count]
    number = np.concatenate([np.arange((budget == one).sum()) for one in BUDGETS])
    names = ("importance", "normalise", "features", "update", "instruction", "convention")
    return pd.DataFrame(
        {
            **{"backbone": "made-up", "dataset": "made-up", "split": "test", "method": method, "positions": "compact"},
            **dict.fromkeys(names),
            "question_id": np.char.add("q", number.astype(str)),
            "image_id": np.char.add("i", (number // 4).astype(str)),
            "question_type": draw.choice(["existence", "counting", "reading"], count),
            "gamma": 20.0,
            "budget": budget.astype(float),
            "tokens_before": 576,
            "tokens_kept": budget,
            "tokens_average": budget.astype(float),
            "prefill_gflops": 1.0,
            "on_objects": draw.random(count),
            "seed": seed,
            "prediction": draw.choice(["yes", "no"], count),
            "answer": "yes",
            "correct": draw.integers(0, 2, count).astype(float),
            "chance": 0.5,
        }
    )


def timed(what: str, query: Callable[[], Any]) -> Any:
    """Run a query and print how long it took and the most memory that the process has had."""
    started = time.perf_counter()
    answer = query()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    print(f"{what:58} {time.perf_counter() - started:7.2f} s, at most {peak:.2f} GiB")
    return answer


def main() -> None:
    """Print one line a query."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--jobs", type=int, default=50)
    given = parser.parse_args()
    each = given.rows // given.jobs
    with tempfile.TemporaryDirectory() as folder:
        store = Results(folder)

        def write() -> None:
            for job in range(given.jobs):
                store.write(f"job{job}", make_rows(each, f"method{job % 10}", job), {})

        timed(f"write {given.jobs} jobs of {each} rows", write)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.parquet"))
        print(f"{size / 2**20:.0f} MiB on disk, {size / (each * given.jobs):.1f} bytes a row")
        timed("open all, look for rows stored twice", store.dataset)
        rows = timed("one budget of one method", lambda: store.select(["correct"], method="method3", budget=16))
        print(f"  {len(rows)} rows")
        rows = timed("three columns of all rows", lambda: store.select(["method", "budget", "correct"]))
        print(f"  {len(rows)} rows")
        by = ["method", "budget"]
        timed("accuracy of each method and budget", lambda: rows.groupby(by, observed=True)["correct"].mean())


if __name__ == "__main__":
    main()
