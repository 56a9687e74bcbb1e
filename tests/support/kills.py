"""Kill a sweep of 61 jobs at five random moments, go on each time, and compare its store with an undisturbed run's.

    python -m tests.support.kills

The seed fixes after how many stored jobs each kill comes, and how much later.
"""

import argparse
import fcntl
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.small import build, command, environment, same, sweep

GRID = {
    "method": ["full", "idselection", "topk", "random"],
    "budget": [64, 32, 16],
    "importance": ["unified", "saliency"],
    "gamma": [5.0, 20.0, 50.0],
    "update": ["subtract", "multiply"],
    "seed": [0, 1, 2, 3, 4, 5],
}


@dataclass(frozen=True)
class Kill:
    """One kill of the whole process group: when it came, and what it left."""

    seconds: float
    stored: int
    half_written: list[str]
    """Temporary files in the store and beside the encodings."""
    orphans: int
    """Processes that were still there a moment later, kernels mostly; they end by themselves."""

    def __str__(self) -> str:
        left = ", ".join(self.half_written) or "nothing"
        return (
            f"killed after {self.seconds:.0f} s, {self.stored} jobs stored; left behind: {left}; {self.orphans} orphans"
        )


def stored(project: Path) -> int:
    return len(list(project.glob("results/sweeps/grid/*.parquet")))


def leftovers(project: Path) -> list[str]:
    """Return files that no finished run may leave."""
    kept = [*project.glob("results/**/.*"), *project.glob(".cache/**/*.tmp"), *project.glob(".cache/**/*.split")]
    kept += [*project.glob(".snakemake/incomplete/*"), *project.glob(".snakemake/locks/*")]
    return sorted(str(path.relative_to(project)) for path in kept)


def at_work(project: Path) -> list[int]:
    """Return the processes whose working folder is the project."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve(strict=True) == project.resolve() and (process / "cmdline").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def unlocked(project: Path) -> bool:
    """Tell whether the next runner will find the lock free."""
    with (project / ".cache/sweeps/grid.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def run_and_kill(project: Path, after: int, delay: float, log: Path, patience: float = 1200) -> Kill:
    """Run the sweep until so many jobs are stored, wait a moment more, and kill its process group."""
    started = time.monotonic()
    with log.open("ab") as out:
        run = subprocess.Popen(
            command(), cwd=project, env=environment(), stdout=out, stderr=out, start_new_session=True
        )
    try:
        while stored(project) < after:
            assert run.poll() is None and time.monotonic() < started + patience, log.read_text()
            time.sleep(0.05)
        time.sleep(delay)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    seconds = time.monotonic() - started
    temporary = [name for name in leftovers(project) if name.endswith((".tmp", ".split"))]
    return Kill(seconds, stored(project), temporary, len(at_work(project)))


def moments(jobs: int, kills: int, seed: int, longest: float) -> list[tuple[int, float]]:
    """Draw how many jobs are stored when each kill comes, and how many seconds later it does."""
    draw = random.Random(seed)
    return [(after, draw.uniform(0, longest)) for after in sorted(draw.sample(range(jobs - 2), kills))]


def starts(log: Path) -> Counter[str]:
    """Count how often each job was started."""
    return Counter(re.findall(r"^Job \d+: run ([a-z]+-[0-9a-f]{10})$", log.read_text(), re.MULTILINE))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="idsel-killing-") as folder:
        calm, killed = (build(Path(folder) / name, GRID) for name in ("calm", "killed"))
        began = time.monotonic()
        done = sweep(calm)
        assert done.returncode == 0, done.stderr
        jobs = stored(calm)
        print(f"undisturbed: {jobs} jobs in {time.monotonic() - began:.0f} s", flush=True)
        began, log = time.monotonic(), Path(folder) / "killed.log"
        for after, delay in moments(jobs, given.kills, given.seed, longest=10):
            print(run_and_kill(killed, after, delay, log), flush=True)
        done = sweep(killed)
        assert done.returncode == 0, done.stderr
        with log.open("a") as out:
            out.write(done.stderr + done.stdout)
        started = starts(log)
        again = sum(started.values()) - jobs
        print(f"{given.kills} kills: {jobs} jobs in {time.monotonic() - began:.0f} s, {again} of them started again")
        assert same(killed, calm)
        assert not leftovers(killed) and not at_work(killed) and unlocked(killed), leftovers(killed)
        print("the store equals the undisturbed run's, row for row; no temporary file, lock or process is left")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
