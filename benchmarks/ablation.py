"""Time an ablation against one run with all tokens and against runs of one setting each: python benchmarks/ablation.py.

The 48 settings are gamma x update x budget of ID-Selection. Run with all tokens, single settings and the whole ablation
take turns in one process, once with the images' encodings at hand, and once with the vision tower in every run. Only
every so many a setting runs by itself, and its time stands for its neighbours'. Beside the times stand the FLOPs, which
no implementation gets around as long as each prompt is read: of the tower, and of the prefills of all prompts, with
the beginnings that questions about one image share read once where all tokens are kept.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from idsel_core import IDSelection
from idsel_core.study.cost import flops_analytic, flops_prefill
from idsel_core.study.dataset import FULL
from idsel_core.study.evaluate import Study
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.store.files import write_table
from idsel_core.study.store.provenance import provenance
from idsel_core.study.timing.interleaved import in_turns

GAMMAS = (0.0, 5.0, 10.0, 20.0, 50.0, 100.0)
UPDATES = ("subtract", "multiply")


def settings(budgets: list[int], importance: str) -> list[IDSelection]:
    """Return the settings of the ablation."""
    return [
        IDSelection(budget, gamma=gamma, update=update, importance=importance)
        for budget in budgets
        for update in UPDATES
        for gamma in GAMMAS
    ]


def compare(study: Study, methods: list[IDSelection], given: argparse.Namespace) -> dict[str, float]:
    """Return how many times a run with all tokens, and all single runs together, the whole ablation takes."""
    alone = methods[:: given.every]
    calls: dict[str, Callable[[], object]] = {"full": lambda: study.run([FULL], batch=given.batch)}
    calls |= {f"single {n}": lambda one=one: study.run([one], batch=given.batch) for n, one in enumerate(alone)}
    calls["ablation"] = lambda: study.run(methods, batch=given.batch)
    times = in_turns(calls, given.rounds, given.seconds, given.clock).set_index("contestant")["median_ms"]
    singles = times[[name for name in calls if name.startswith("single")]].mean() * len(methods)
    return {"full_runs": times["ablation"] / times["full"], "single_runs": times["ablation"] / singles}


def flops(study: Study, rows: pd.DataFrame) -> dict[str, float]:
    """Return GFLOPs: of the tower, of full prompts one by one and with common beginnings, and of the ablation."""
    config: object = study.backbone.model.config
    whole, images = rows[rows["method"] == FULL], len(study.split.images)
    visual = int(whole["tokens_before"].iloc[0])
    each = whole["prefill_gflops"].mean()
    beginning = flops_prefill(config, visual, 0).total / 1e9
    return {
        "tower": flops_analytic(config, 0, 0).encode / 1e9 * images,
        "full": each * len(whole),
        "full_shared": beginning * images + (each - beginning) * len(whole),
        "ablation": float(rows.loc[rows["method"] != FULL, "prefill_gflops"].sum()),
    }


def main() -> int:
    """Print the ratios and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=140, help="questions (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=50, help="questions at a time (default: %(default)s)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 64, 32, 16], help="visual tokens kept")
    parser.add_argument("--importance", nargs="+", default=["unified", "saliency"], help="scores (default: both)")
    parser.add_argument("--every", type=int, default=7, help="how many settings a single run stands for")
    parser.add_argument("--rounds", type=int, default=3, help="turns that are measured (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1800, help="about the most seconds for one case")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--clock",
        choices=("wall", "thread"),
        default="thread",
        help="thread: CPU time of one thread, less disturbed by other processes (default: %(default)s)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/benchmarks"), help="folder of the times (default: %(default)s)"
    )
    parser.add_argument("--job", default="ablation-cpu", help="name of the file in it (default: %(default)s)")
    given = parser.parse_args()
    if given.clock == "thread" and given.threads != 1:
        parser.error("--clock thread is for --threads 1")
    started = time.perf_counter()
    torch.set_num_threads(given.threads)
    stored = open_study("validation", limit=given.questions)
    print(f"CPU {platform.machine()}, {given.threads} threads, torch {torch.__version__}, {given.clock} time")
    tables = []
    for importance in given.importance:
        methods = settings(given.budgets, importance)
        counted = flops(stored, stored.run([FULL, *methods], batch=given.batch))
        for tower, study in ((False, stored), (True, replace(stored, encoded=None))):
            ratios = compare(study, methods, given)
            extra = counted["tower"] if tower else 0.0
            bounds = {
                "bound_full_runs": (counted["ablation"] + extra) / (counted["full_shared"] + extra),
                "bound_full_apart": (counted["ablation"] + extra) / (counted["full"] + extra),
            }
            row = {"importance": importance, "tower": tower, "settings": len(methods), **ratios, **bounds}
            tables.append(row | {f"{name}_gflops": value for name, value in counted.items()})
            print(
                f"{importance}, {'with the tower' if tower else 'encodings at hand'}: {len(methods)} settings take "
                f"{ratios['full_runs']:.1f} runs with all tokens and {ratios['single_runs']:.2f} of the single runs; "
                f"by FLOPs {bounds['bound_full_runs']:.1f}, or {bounds['bound_full_apart']:.1f} where each full prompt "
                "is read by itself",
                flush=True,
            )
    rows = pd.DataFrame(tables).assign(device=f"CPU {platform.machine()}", threads=given.threads, backbone=str(MODEL))
    parameters = {name: str(value) for name, value in vars(given).items()}
    path = given.results / f"{given.job}.parquet"
    write_table(path, rows, provenance(parameters, started=started))
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
