"""Run the notebooks of all studies through Snakemake, and say where the figures are and how long a whole run took."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from idsel_core.study.paths import CACHE, ROWS, TIMES, TIMING
from idsel_core.study.run.workflow import call_snakemake, check_project, only_run, read_workflow, shadow_project
from idsel_core.study.store.results import Results

_SNAKEFILE = "workflow/Snakefile"


def make_figures(cores: int, dry_run: bool = False, more: Sequence[str] = ()) -> int:
    """Run what is not up to date.

    Parameters
    ----------
    cores : int
        How many notebooks run side by side.
    dry_run : bool
        Only tell what would run; nothing is written.
    more : sequence of str
        More arguments for Snakemake; how long such a run took is not noted.

    Returns
    -------
    int
        0, or 1 if not everything ran.

    Raises
    ------
    OSError, ValueError
        If stored rows are damaged or cannot be written, or another run is at work, before anything is changed.
    """
    check_project(_SNAKEFILE, "config/workflow.yaml")
    workflow = read_workflow()
    call = ["--snakefile", _SNAKEFILE, "--cores", str(cores)]
    options = ["--rerun-incomplete", "--keep-going", "--scheduler", "greedy", "--quiet", "host", "reason"]
    if dry_run:
        with shadow_project() as shadow:
            return call_snakemake([*call, *options, "--nolock", "--dry-run", *more], folder=shadow)
    with only_run(Path(".cache/figures.lock"), "`make figures` is at work") as lock:
        Results(ROWS).check(*workflow["jobs"])
        # The lock above ends with its processes, Snakemake's own outlives a killed one.
        if any(Path(".snakemake/locks").glob("*")):
            call_snakemake([*call, "--unlock", "--quiet", "all"], lock)
        started = time.time()
        status = call_snakemake([*call, *options, *more], lock)
        seconds = time.time() - started
    if status:
        print("error: not everything ran; the executed notebooks with their tracebacks are in logs/", file=sys.stderr)
        return 1
    outputs = [Path(path) for path in workflow["drawing"]["outputs"]]
    made = [ROWS / f"{job}.parquet" for job in workflow["jobs"]]
    made += [TIMES / f"{job}.parquet" for job in workflow.get("timed", {})]
    made += [CACHE / f"{split}.safetensors" for split in workflow["splits"]]
    if not more and all(path.stat().st_mtime >= started for path in [*made, *outputs]):
        timing = {"seconds": round(seconds), "cores": cores, "machine": platform.machine()}
        TIMING.write_text(json.dumps(timing) + "\n")
    for folder in sorted({path.parent for path in outputs if path.parent.is_dir()}):
        print(f"{folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    left_out = [job for job in workflow.get("fetched", []) if job not in Results(ROWS).jobs()]
    if left_out:
        print(f"Left out, as they fetch models: {', '.join(left_out)}; `make help` names their targets.")
    print(f"Took {seconds:.0f} s on {cores} cores; rows in {ROWS}/, executed notebooks in logs/.")
    return 0
