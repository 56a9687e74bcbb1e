"""Time id_select against straightforward loops: python benchmarks/selection.py --device cpu (or cuda).

On one image, these take turns: id_select as it runs by default and with each backend of the device; DivPrune, CDPruner
and SCOPE as loops over the whole N x N table of cosines; and such a loop of ID-Selection's own rule, the reference.
"id_select (continue)" goes on with scores that have run out where the default begins a new sweep, and
"id_select (gamma 20)" suppresses at a fixed gamma where the default takes it from each image's distances.
Features are random, clustered, or clustered with a common part, as projector outputs are; scores are peaked, uniform or
equal. Then id_select is timed alone for growing images and budgets, with the time for each of the K x N pairs.

Three more contestants pick nothing. They read the features for their lengths and their mean, and multiply a part of the
table by plain calls: K rows at once, K rows of which each waits for the one before, as equal scores demand, or half the
table. They say about how fast a selection that multiplies as much can be ("bound: ...").

Picks are compared with the reference's. Where they differ, `gap` says how far the worst pick was below the best token,
as a share of the highest score, when the rule follows the picks in float64. The exit status is 1 if that is more than
rounding.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks._loops import BOUNDS, FEATURES, LOOPS, SCORES, gap, make_features, make_scores, reference
from idsel_core.selection.greedy import id_select
from idsel_core.study.store.files import write_table
from idsel_core.study.store.provenance import provenance
from idsel_core.study.timing.interleaved import in_turns

SCALING = [(n, k) for n in (2000, 4000, 8000, 16000) for k in (64, 256, 1024)]


def compare(n: int, k: int, given: argparse.Namespace) -> pd.DataFrame:
    """Time all contestants on one image of every kind."""
    tables = []
    for features in given.features:
        x = make_features(features, n, given.width).to(given.device)
        for kind in given.scores:
            s = make_scores(kind, n).to(given.device)
            calls = {"id_select": lambda s=s, x=x: id_select(x, s, k)}
            calls["id_select (continue)"] = lambda s=s, x=x: id_select(x, s, k, exhausted="continue")
            calls["id_select (gamma 20)"] = lambda s=s, x=x: id_select(x, s, k, gamma=20.0)
            calls["id_select (torch)"] = lambda s=s, x=x: id_select(x, s, k, backend="torch")
            calls |= {name: lambda loop=loop, s=s, x=x: loop(x, s, k) for name, loop in LOOPS.items()}
            calls |= {f"bound: {name}": lambda part=part, x=x: part(x, k) for name, part in BOUNDS.items()}
            times = in_turns(calls, given.rounds, given.seconds, given.clock)
            order = id_select(x, s, k).order[0]
            same = torch.equal(order, reference(x, s, k))
            case = {"part": "loops", "tokens": n, "budget": k, "batch": 1, "width": given.width}
            tables.append(times.assign(**case, features=features, scores=kind, same_picks=same, gap=gap(x, s, order)))
            show(tables[-1], f"{features:>10} {kind:>8}")
    return pd.concat(tables)


def show(times: pd.DataFrame, case: str) -> None:
    """Print one line a case."""
    by_name = times.set_index("contestant")
    ours = by_name.loc["id_select"]
    ratios = "  ".join(f"{name} {by_name.at[name, 'fastest_ratio']:.1f}x" for name in by_name.index[1:])
    spread = f"({ours['low_ms']:.2f}-{ours['high_ms']:.2f}, fastest {ours['fastest_ms']:.2f})"
    picks = "same" if ours["same_picks"] else f"part at a tie, gap {ours['gap']:.0e}"
    print(f"{case} {ours['median_ms']:9.2f} ms {spread:<36}{picks}; {ratios}", flush=True)


def scale(given: argparse.Namespace) -> pd.DataFrame:
    """Time id_select alone for growing images, budgets and at last the batch."""
    rows = []
    for kind in given.scores:
        for (n, k), batch in [*((case, 1) for case in given.scaling), (given.scaling[-1], given.batch)]:
            x = torch.stack([make_features("clustered", n, given.scaling_width) for _ in range(batch)]).to(given.device)
            s = make_scores(kind, batch, n).to(given.device)
            times = in_turns(
                {"id_select": lambda s=s, x=x, k=k: id_select(x, s, k)}, given.rounds, given.seconds, given.clock
            )
            pair = 1e6 * times["fastest_ms"] / (batch * n * k)
            case = {"part": "scaling", "tokens": n, "budget": k, "batch": batch, "width": given.scaling_width}
            rows.append(times.assign(**case, features="clustered", scores=kind, ns_a_pair=pair))
            print(
                f"{kind:>8} N = {n:6} K = {k:5} batch {batch:3} {times.at[0, 'median_ms']:10.1f} ms {pair[0]:8.2f} ns",
                flush=True,
            )
        single = pd.concat(rows).query("scores == @kind and batch == 1")
        if len(single) > 2:
            slope = np.polyfit(np.log(single["tokens"] * single["budget"]), np.log(single["fastest_ms"]), 1)[0]
            print(f"{kind:>8} time grows as (K x N)^{slope:.2f}")
    return pd.concat(rows)


def case(text: str) -> tuple[int, int]:
    """Read "N:K"."""
    n, k = map(int, text.split(":"))
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"a case is tokens:kept, not {text!r}")
    return n, k


def main() -> int:
    """Print the times and keep them; returns 1 if picks part by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = {"nargs": "+", "metavar": "N:K", "type": case}
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--clock",
        choices=("wall", "thread"),
        default="wall",
        help="thread: CPU time, less disturbed by other processes",
    )
    parser.add_argument("--rounds", type=int, default=25, help="turns that are measured (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=20, help="about the most seconds for one case (default: %(default)s)"
    )
    parser.add_argument(
        "--cases",
        **several,
        default=[(576, 16), (576, 64), (576, 192), (2880, 320)],
        help="tokens and budget (default: 576:16 576:64 576:192 2880:320)",
    )
    parser.add_argument("--width", type=int, default=4096, help="width of a token's features (default: %(default)s)")
    parser.add_argument(
        "--features", nargs="+", choices=FEATURES, default=FEATURES, help="kinds of features (default: all)"
    )
    parser.add_argument("--scores", nargs="+", choices=SCORES, default=SCORES, help="kinds of scores (default: all)")
    parser.add_argument(
        "--scaling", **several, default=SCALING, help="cases of id_select alone (default: up to 16000:1024)"
    )
    parser.add_argument(
        "--scaling-width", type=int, default=256, help="width of features in these (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="images at once in the last of these, as well (default: %(default)s)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/benchmarks"), help="folder of the times (default: %(default)s)"
    )
    parser.add_argument("--job", help="name of the file in it (default: selection and the device)")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    if given.clock == "thread" and (given.device, given.threads) != ("cpu", 1):
        parser.error("--clock thread is for --device cpu --threads 1")
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    machine = torch.cuda.get_device_name() if given.device == "cuda" else f"CPU {platform.machine()}"
    print(f"{machine}, {given.threads} threads, torch {torch.__version__}, {given.clock} time")
    print("id_select: median (quartiles, fastest); the others: how many times as long, fastest turns")
    tables = []
    for n, k in given.cases:
        print(f"\nN = {n}, K = {k}, D = {given.width}")
        tables.append(compare(n, k, given))
    print(f"\nid_select alone, D = {given.scaling_width}: median, and the fastest for each of the K x N pairs")
    rows = pd.concat([*tables, scale(given)]).assign(device=machine, threads=given.threads)
    parameters = {name: str(value) for name, value in vars(given).items()}
    path = given.results / f"{given.job or f'selection-{given.device}'}.parquet"
    write_table(path, rows, provenance(parameters, device=machine, started=started))
    print(f"\nwritten to {path}")
    wrong = rows[rows["gap"] > 1e-6]
    print(*(f"picks part: {row}" for row in wrong.to_dict("records")), sep="\n", file=sys.stderr, end="")
    return bool(len(wrong))


if __name__ == "__main__":
    sys.exit(main())
