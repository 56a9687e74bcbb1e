"""Run the jobs of a grid, one run of a grid at a time; a dry run tells how many, how long and how much disk."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from idsel_core.study.run.gpu_lease import visible
from idsel_core.study.run.notebook_runner import check_parameters, load_parameters
from idsel_core.study.run.sweeps import NOTEBOOK, Sweep, read_sweep
from idsel_core.study.run.workflow import call_snakemake, check_project, only_run, shadow_project

_SNAKEFILE = "workflow/sweep.smk"


def check_slurm(profile: Path) -> None:
    """Refuse a profile for Slurm where there is no Slurm.

    Raises
    ------
    FileNotFoundError
        If `sbatch` or Snakemake's plugin is missing.
    """
    if not shutil.which("sbatch"):
        raise FileNotFoundError(f"{profile} hands jobs to Slurm, but there is no sbatch here; run it on a login node")
    if not importlib.util.find_spec("snakemake_executor_plugin_slurm"):
        remedy = "`.venv/bin/python -m pip install -c constraints.txt -e '.[cluster]'`"
        raise FileNotFoundError(f"{profile} needs Snakemake's Slurm plugin: {remedy}")


def cancel_jobs(prefix: str) -> None:
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


def run_sweep(grid: Path, profile: Path, cores: int, dry_run: bool, more: Sequence[str] = ()) -> int:
    """Run the jobs of a grid that are not up to date.

    Parameters
    ----------
    grid : Path
        As for `read_sweep`.
    profile : Path
        Folder of a Snakemake profile, which says where jobs run.
    cores : int
        How many jobs run side by side, where they run here.
    dry_run : bool
        Only tell what would run; nothing is written.
    more : sequence of str
        More arguments for Snakemake.

    Returns
    -------
    int
        0, or 1 if not all jobs ran.

    Raises
    ------
    OSError, ValueError
        If the grid cannot run, before anything is written.
    """
    check_project(_SNAKEFILE, NOTEBOOK, "config/workflow.yaml")
    settings = _read_profile(profile)
    here, slurm = settings.get("executor", "local") == "local", settings.get("executor") == "slurm"
    if slurm:
        check_slurm(profile)
    sweep = read_sweep(grid)
    for parameters in sweep.jobs.values():
        check_parameters(NOTEBOOK, parameters)
    gpus = len(visible()) if here and sweep.device != "cpu" else 0
    sweep.check(here)
    sweep.store.check(*sweep.jobs)
    print(sweep.estimate((gpus or cores) if here else settings.get("jobs", 1)), flush=True)

    # Its own lock outlives a killed run; the one here ends with its processes.
    command = ["--snakefile", _SNAKEFILE, "--profile", str(profile), "--nolock"]
    # Snakemake reads the value as YAML, in which many characters mean something.
    command += ["--config", f"grid={quote(str(grid.absolute()))}"]
    command += ["--cores", str(cores)] if here else []
    command += ["--resources", f"gpu={gpus}"] if gpus else []
    if dry_run:
        with shadow_project() as shadow:
            # Its log would tell of files in a folder that is gone.
            return _told(call_snakemake([*command, "--dry-run", *more], folder=shadow), sweep, here, dry_run)
    with only_run(Path(".cache/sweeps") / f"{sweep.name}.lock", f"sweep is at work on {grid}") as lock:
        started = time.time()
        if slurm:
            prefix = f"idsel-{hashlib.sha256(str(sweep.store.root.resolve()).encode()).hexdigest()[:16]}"
            command += ["--slurm-jobname-prefix", prefix]
            cancel_jobs(prefix)
        status = _told(call_snakemake([*command, *more], lock), sweep, here, dry_run)
    if not status:
        print(f"Took {time.time() - started:.0f} s; rows in {sweep.store.root}/, notebooks in logs/{sweep.name}/.")
    return status


def _read_profile(profile: Path) -> dict[str, Any]:
    file = profile / "config.yaml"
    if not file.is_file():
        there = sorted(str(path.parent) for path in Path("workflow/profiles").glob("*/config.yaml"))
        raise FileNotFoundError(f"no profile {profile}: it has no config.yaml; there are {', '.join(there) or 'none'}")
    return load_parameters(file)


def _told(status: int, sweep: Sweep, here: bool, dry_run: bool) -> int:
    """Say where to look where a run failed; returns 1 then, else 0."""
    if status and dry_run:
        print("error: Snakemake could not tell what would run (see above)", file=sys.stderr)
    elif status:
        print(f"error: not all jobs ran; their notebooks with tracebacks are in logs/{sweep.name}/", file=sys.stderr)
        if not here:
            print("What the jobs printed is in .snakemake/slurm_logs/.", file=sys.stderr)
    return int(bool(status))
