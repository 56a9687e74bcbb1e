"""List the tables of papers, say what one would cost, or measure it: each is a grid in config/paper.

The grid's jobs run as those of `idsel sweep` do, here or on a cluster, one GPU a job; rows go to results/sweeps/TABLE.
--limit 8 is a first look at everything, with rows of its own; a model or data set of your own in place of the grid's is
a rehearsal without downloads. What stands behind -- goes to Snakemake.

    idsel paper
    idsel paper headline --dry-run
    idsel paper headline --limit 8
    idsel paper headline --limit 8 --backbone MODEL --data PHOTOS --split NAME --device cpu --dtype float32
    idsel paper llava15_7b --profile workflow/profiles/slurm
"""

from __future__ import annotations

import argparse
from pathlib import Path

from idsel_core.study.commands._arguments import add_cores, natural, positive

_LOCAL = Path("workflow/profiles/local")
_OWN = ("backbone", "data", "split", "device", "dtype")
"""Keys of a grid that arguments can replace."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("table", nargs="?", metavar="TABLE", help="name of a table; without one, all are listed")
    parser.add_argument(
        "--dry-run", action="store_true", help="tell jobs, GPU hours, downloads, disk and memory; run nothing"
    )
    parser.add_argument(
        "--limit", type=natural, default=0, metavar="N", help="ask so many questions of each data set; 0 asks all"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help=f"where jobs run: {_LOCAL} or workflow/profiles/slurm (default: {_LOCAL})",
    )
    add_cores(parser)
    own = parser.add_argument_group("a rehearsal, in place of the grid's own")
    own.add_argument("--backbone", metavar="MODEL", help="hub id or folder of a model")
    own.add_argument("--data", metavar="DATA", help="folder or table of questions, or lmms:TASK")
    own.add_argument("--split", metavar="NAME", help="split of the data")
    own.add_argument("--device", help="torch device, cpu or cuda")
    own.add_argument("--dtype", help="type of the weights")
    guess = parser.add_argument_group("what the estimate takes for granted")
    guess.add_argument(
        "--tflops", type=_positive, help="TFLOP/s that the GPU reaches (default: as stored times say, or 100)"
    )
    guess.add_argument(
        "--bandwidth", type=_positive, default=1000.0, help="GB/s of the GPU's memory (default: %(default)g)"
    )
    guess.add_argument("--batch", type=positive, help="prompts at a time (default: the grid's)")
    guess.add_argument("--answer", type=positive, default=8, help="tokens of an answer (default: %(default)s)")
    guess.add_argument("--text", type=natural, default=64, help="text tokens of a prompt (default: %(default)s)")
    guess.add_argument(
        "--image-size",
        type=positive,
        nargs=2,
        default=[480, 640],
        metavar="PIXELS",
        help="height and width of images, where a model does not bring all to one size (default: 480 640)",
    )


def run(given: argparse.Namespace) -> int:
    """List, estimate or run."""
    from idsel_core.study.paths import TIMES, project_path
    from idsel_core.study.run import paper, paper_times

    tables = paper.list_tables()
    if given.table is None:
        width = max(map(len, tables), default=0)
        print("\n".join(f"{name:{width}}  {title}" for name, title in tables.items()) or "no tables in config/paper")
        return 0
    path = paper.table_file(given.table)
    if paper_times.is_timing(path):
        for name in ("limit", "profile", *_OWN):
            if getattr(given, name):
                raise ValueError(
                    f"{given.table} holds times, which are measured here and now, so --{name} means nothing"
                )
        if given.dry_run:
            print(f"{tables[given.table]}\n\n{paper_times.describe_timing(path)}")
        else:
            paper_times.run_timing(path)
        return 0
    from idsel_core.study.run import paper_cost
    from idsel_core.study.run.run_sweep import run_sweep
    from idsel_core.study.run.sweeps import read_sweep

    instead = {name: getattr(given, name) for name in _OWN}
    if not given.dry_run or any(instead.values()):
        # Without downloads there is nothing to estimate but what a sweep says of itself.
        grid = paper.rehearsed(path, given.limit, instead)
        return run_sweep(grid, given.profile or _LOCAL, given.cores, given.dry_run, given.more)
    sweep = paper_cost.with_questions(read_sweep(path), given.limit)
    rates = paper_cost.measured_rates(
        project_path(TIMES),
        tflops=given.tflops,
        bandwidth=given.bandwidth,
        batch=given.batch or next(job["batch"] for job in sweep.jobs.values()),
        answer=given.answer,
    )
    assumed = {"image_size": tuple(given.image_size), "text_tokens": given.text}
    tasks = paper.read_tasks()
    shares = paper_cost.estimate(sweep, rates, tasks, **assumed)
    memory = paper_cost.memory_bytes(sweep, rates, **assumed)
    print(f"{tables[given.table]}\n\n{paper_cost.describe(sweep, shares, memory, rates, tasks)}")
    return 0


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value
