"""Run all benchmarks of a CPU, one after the other: python benchmarks/all.py. Those of a GPU: benchmarks/gpu.py.

The greedy against plain loops, the selection of all methods up to 12,000 tokens, the importance on top of a tower's
pass, the store, an ablation against single runs, and answers of the embedded backbone by phase and against a prompt
cut by hand. A benchmark whose times are there is skipped, so that a killed run resumes. Those that fail are named at
the end. Times lie in results/times and results/benchmarks, with device, versions, number of runs and quartiles.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path


def commands(results: Path) -> list[list[str]]:
    """Return the benchmarks, each a script's name and its arguments."""
    own, times = ["--results", str(results / "benchmarks")], ["--results", str(results / "times")]
    return [
        ["selection", *own, "--job", "selection-cpu"],
        ["peers", *times, "--job", "peers-cpu"],
        *([name, *own, "--job", f"{name}-cpu"] for name in ("importance", "store", "ablation")),
        ["efficiency", *times, "--job", "efficiency-assembled-cpu"],
    ]


def output(arguments: list[str]) -> Path | None:
    """Return the file that a benchmark writes with these arguments, None if they do not name one."""
    if not {"--results", "--job"} <= set(arguments):
        return None
    folder, job = (arguments[arguments.index(option) + 1] for option in ("--results", "--job"))
    return Path(folder) / f"{job}.parquet"


def main(arguments: list[str] | None = None) -> int:
    """Run them; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="parent of times and benchmarks (default: %(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="also run benchmarks whose times are there")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    given = parser.parse_args(arguments)
    failed = []
    for script, *arguments in commands(given.results):
        shown, written = shlex.join([f"benchmarks/{script}.py", *arguments]), output(arguments)
        if written and written.exists() and not given.again:
            print(f"\n-- skipped, {written} is there: {shown}", flush=True)
            continue
        print(f"\n== {shown}", flush=True)
        if given.dry_run:
            continue
        started = time.perf_counter()
        done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{script}.py")), *arguments]).returncode
        print(f"== {time.perf_counter() - started:.0f} s, exit status {done}", flush=True)
        if done:
            failed.append(shown)
    for shown in failed:
        print(f"failed: {shown}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
