"""Run the jobs of a grid, one run of a grid at a time; --dry-run tells how many, how long and how much disk."""

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from idsel_core.study.run.gpu_lease import visible
from idsel_core.study.run.sweeps import read_sweep


def check_slurm(profile: Path) -> None:
    if not shutil.which("sbatch"):
        raise FileNotFoundError(f"{profile} hands jobs to Slurm, but there is no sbatch here; run it on a login node")
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        remedy = "`.venv/bin/python -m pip install -c constraints.txt -e '.[cluster]'`"
        raise FileNotFoundError(f"{profile} needs Snakemake's Slurm plugin: {remedy}")


def cancel(prefix: str) -> None:
    """Cancel the Slurm jobs that a killed run left in the queue; they would write what this run's jobs write."""
    queue = ["squeue", "--noheader", "--me", "--format=%A %j"]
    told = False
    while True:
        lines = subprocess.run(queue, check=True, capture_output=True, text=True).stdout.splitlines()
        left = [line.split()[0] for line in lines if line.split()[1].startswith(f"{prefix}_")]
        if not left:
            return
        if not told:
            print(f"Cancelling {len(left)} Slurm jobs that a killed run of this sweep left in the queue.", flush=True)
        told = True
        subprocess.run(["scancel", "--quiet", *left], check=False)
        time.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grid", help="a YAML file such as config/grids/example.yaml")
    parser.add_argument("--profile", type=Path, default=Path("workflow/profiles/local"), help="where jobs run")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="how many jobs run side by side here")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would run")
    given, more = parser.parse_known_args()

    try:
        profile = yaml.safe_load((given.profile / "config.yaml").read_text())
        here = profile.get("executor", "local") == "local"
        if profile.get("executor") == "slurm":
            check_slurm(given.profile)
        sweep = read_sweep(given.grid)
        gpus = len(visible()) if here and sweep.device != "cpu" else 0
        sweep.check(here)
        sweep.store.check(*sweep.jobs)
        print(sweep.estimate((gpus or given.cores) if here else profile.get("jobs", 1)), flush=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    locks = Path(".cache/sweeps")
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / f"{sweep.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: another `make sweep` is at work on {given.grid}", file=sys.stderr)
            return 2
        started = time.time()
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "--snakefile",
            "workflow/sweep.smk",
            "--profile",
            str(given.profile),
        ]
        # The lock above ends with its processes, Snakemake's own outlives a killed one.
        command += ["--nolock", "--config", f"grid={given.grid}"]
        command += ["--cores", str(given.cores)] if here else []
        command += ["--resources", f"gpu={gpus}"] if gpus else []
        command += ["--dry-run"] if given.dry_run else []
        if profile.get("executor") == "slurm":
            prefix = f"idsel-{hashlib.sha256(str(sweep.store.root.resolve()).encode()).hexdigest()[:16]}"
            command += ["--slurm-jobname-prefix", prefix]
            if not given.dry_run:
                cancel(prefix)
        # Snakemake holds the lock too, so that it keeps others out where this process alone is killed.
        status = subprocess.run([*command, *more], check=False, pass_fds=[lock.fileno()]).returncode
    if status:
        print(f"error: not all jobs ran; their notebooks with tracebacks are in logs/{sweep.name}/", file=sys.stderr)
        if not here:
            print("What the jobs printed is in .snakemake/slurm_logs/.", file=sys.stderr)
    elif not given.dry_run:
        print(f"Took {time.time() - started:.0f} s; rows in {sweep.store.root}/, notebooks in logs/{sweep.name}/.")
    return status


if __name__ == "__main__":
    sys.exit(main())
