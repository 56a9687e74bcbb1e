"""Run every benchmark of a device, one after the other: python benchmarks/all.py --device cpu (or cuda).

On a CPU: the greedy against plain loops, all methods, the importance on top of a tower's pass, answers of the embedded
backbone by phase and against a prompt cut by hand, and the result store. On a GPU: the greedy, all methods, and answers
of the embedded backbone and of full-size models with random weights. What fails is named at the end, and the rest runs
all the same. Times lie under the result store, with the device, versions, number of runs and quartiles.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch

FULL_SIZE = {
    "llava-1.5-7b": (192, 64, 16),
    "llava-next-7b": (640, 320, 160),
    "qwen2.5-vl-7b": (192, 64, 16),
    "internvl2.5-8b": (192, 64, 16),
}
"""Models to answer on a GPU, and the visual tokens that they are left."""


def commands(device: str, models: list[str], results: Path) -> list[list[str]]:
    """Return the benchmarks of a device, each a script's name and its arguments."""
    store = results / "benchmarks"
    chosen = [
        ["selection", "--device", device, "--results", str(store)],
        ["peers", "--device", device, "--times", str(results / "times")],
    ]
    if device == "cpu":
        chosen += [["importance", "--results", str(store)], ["store"]]
    chosen.append(["efficiency", "--device", device, "--results", str(results)])
    if device == "cuda":
        for model in models:
            budgets = map(str, FULL_SIZE[model])
            chosen.append([*chosen[2], "--model", model, "--dtype", "bfloat16", "--budgets", *budgets])
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run them; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--models", nargs="*", choices=FULL_SIZE, default=list(FULL_SIZE), help="of full size, on a GPU (default: all)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="result store (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not given.dry_run and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    folder = Path(__file__).parent
    paths = os.pathsep.join(filter(None, [str(folder.parent), os.environ.get("PYTHONPATH")]))
    failed = []
    if not given.dry_run:
        (given.results / "benchmarks").mkdir(parents=True, exist_ok=True)
    for script, *arguments in commands(given.device, given.models, given.results):
        command = [sys.executable, str(folder / f"{script}.py"), *arguments]
        shown = shlex.join([f"benchmarks/{script}.py", *arguments])
        print(f"\n== {shown}", flush=True)
        if given.dry_run:
            continue
        started = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}).returncode
        print(f"== {time.perf_counter() - started:.0f} s, exit status {done}", flush=True)
        if done:
            failed.append(shown)
    for shown in failed:
        print(f"failed: {shown}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
