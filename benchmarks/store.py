"""Time writing and reading a store of many rows: python benchmarks/store.py.

Made-up rows are written job by job into a temporary folder. One job is read with all checks, and pandas reads a few
columns of the whole folder.
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

from idsel_core.study.store.files import write_table
from idsel_core.study.store.provenance import provenance
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


def main() -> None:
    """Print one line a step, and keep the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows of all jobs (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=50, help="jobs that they are split into (default: %(default)s)")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="folder to write the times to (default: none)")
    parser.add_argument("--job", default="store-cpu", help="name of the file in it (default: %(default)s)")
    given = parser.parse_args()
    each, began, steps = given.rows // given.jobs, time.perf_counter(), []

    def timed(what: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        answer = step()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
        print(f"{what:58} {seconds:7.2f} s, at most {peak:.2f} GiB")
        steps.append({"step": what, "seconds": seconds, "peak_gib": peak})
        return answer

    with tempfile.TemporaryDirectory() as folder:
        store = Results(folder)

        def write() -> None:
            for job in range(given.jobs):
                store.write(f"job{job}", make_rows(each, f"method{job % 10}", job), {})

        timed(f"write {given.jobs} jobs of {each} rows", write)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.parquet"))
        print(f"{size / 2**20:.0f} MiB on disk, {size / (each * given.jobs):.1f} bytes a row")
        timed("read one job and check its rows", lambda: store.frame("job0"))
        timed("read one job unchecked", lambda: pd.read_parquet(store.path("job0")))
        one = [("method", "==", "method3"), ("budget", "==", 16)]
        rows = timed("one budget of one method", lambda: pd.read_parquet(folder, columns=["correct"], filters=one))
        print(f"  {len(rows)} rows")
        by = ["method", "budget"]
        rows = timed("three columns of all rows", lambda: pd.read_parquet(folder, columns=[*by, "correct"]))
        print(f"  {len(rows)} rows")
        timed("accuracy of each method and budget", lambda: rows.groupby(by, observed=True)["correct"].mean())
    if given.results:
        note = provenance({"rows": given.rows, "jobs": given.jobs}, started=began)
        write_table(given.results / f"{given.job}.parquet", pd.DataFrame(steps), note)


if __name__ == "__main__":
    main()
