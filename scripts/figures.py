"""Run the Snakefile, one run at a time, and say where the figures are and how long a whole run took."""

import argparse
import fcntl
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import yaml

from idsel_core.study.store.files import CorruptResult
from idsel_core.study.store.results import Results

LOCK = Path(".cache/figures.lock")
TIMING = Path("results/timing.json")


def snakemake(lock: int, *arguments: str) -> int:
    # Snakemake holds the lock too, so that it keeps others out where this process alone is killed.
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", *arguments],
        check=False,
        pass_fds=[lock],
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", type=int, default=2, help="how many notebooks run side by side")
    given, more = parser.parse_known_args()

    workflow = yaml.safe_load(Path("config/workflow.yaml").read_text())
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("error: another `make figures` is at work in this folder", file=sys.stderr)
            return 2
        try:
            Results("results").check(*workflow["jobs"])
        except (OSError, CorruptResult) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        # This lock ends with its processes, Snakemake's own outlives a killed one.
        if any(Path(".snakemake/locks").glob("*")):
            snakemake(lock.fileno(), "--unlock", "--cores", str(given.cores), "--quiet", "all")
        started = time.time()
        status = snakemake(
            lock.fileno(),
            *("--cores", str(given.cores), "--rerun-incomplete", "--keep-going", "--scheduler", "greedy"),
            *("--quiet", "host", "reason", *more),
        )
        seconds = time.time() - started
    if status:
        print("error: not everything ran; the executed notebooks with their tracebacks are in logs/", file=sys.stderr)
        return status

    outputs = [Path(path) for path in workflow["drawing"]["outputs"]]
    made = [Path(f"results/{job}.parquet") for job in workflow["jobs"]]
    made += [Path(f"results/times/{job}.parquet") for job in workflow.get("timed", {})]
    made += [Path(f".cache/encodings/{split}.safetensors") for split in workflow["splits"]]
    if not more and all(path.stat().st_mtime >= started for path in [*made, *outputs]):
        timing = {"seconds": round(seconds), "cores": given.cores, "machine": platform.machine()}
        TIMING.write_text(json.dumps(timing) + "\n")
    for folder in sorted({path.parent for path in outputs}):
        files = sorted(path.name for path in folder.iterdir())
        print(f"{folder}/: {', '.join(files)}")
    print(f"Took {seconds:.0f} s on {given.cores} cores; rows in results/, executed notebooks in logs/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
