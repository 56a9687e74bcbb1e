"""Tables of docs/efficiency.md from what `benchmarks/gpu.py` measured, whose rows are published in docs/gpu/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MEASURED: Final = Path("results/gpu/cuda-full")
CLAIMED: Final = {("llava-next-7b", 320): "2.5x"}
"""How many times faster the paper says that answers are, by model and visual tokens."""

Step = tuple[dict[str, Any], list[dict[str, Any]]]


def publish_rows(source: Path, target: Path) -> None:
    """Copy the rows of all steps in place of those that were published.

    Raises
    ------
    ValueError
        If there are none, or they were measured on code that is not committed, or, where there was no git, other code.
    """
    from benchmarks.gpu import code_hash

    found = read_steps(source)
    if not found:
        raise ValueError(f"no rows in {source}: run `make bench-gpu` on a machine with a GPU, and copy them here")
    for first, _ in found:
        changed = first["code"] != code_hash() if first["commit"] is None else first["changed"]
        if changed:
            raise ValueError(
                f"step {first['step']} was measured on code that is not committed: delete it, run it again"
            )
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=lambda folder, names: [name for name in names if name[-6:] != ".jsonl"])


def read_steps(folder: Path) -> list[Step]:
    """Return the circumstances and the rows of each step."""
    lines = [list(map(json.loads, path.read_text().splitlines())) for path in sorted(folder.glob("*.jsonl"))]
    return [(first, rows) for first, *rows in lines]


def tables(markdown: Callable[[Iterable[Sequence[str]]], str]) -> str:
    """Return all tables of the published rows, with what they were measured on; or that there are none."""
    steps = read_steps(ROOT / "docs/gpu")
    if not steps:
        return "Not measured on a GPU yet."
    rows = [row for _, found in steps for row in found]
    parts = {
        "The selection of a batch, in microseconds. *Kernel* is the matrix product and the kernel on the device; "
        "*`id_select`* the whole call with its checks. The others are plain loops, image by image, as multiples of "
        "`id_select`. *Gap* is how far the worst pick of any backend lies from the rule in float64, as a share of the "
        "highest score.": greedy(rows),
        "The language model alone, on the full prompt and on prompts cut by hand:": language(rows),
        "Whole models. *Answer* is all of `generate`, *over ideal* the same over a prompt cut by hand:": answers(rows),
    }
    shown = [f"{title}\n\n{markdown(table)}" for title, table in parts.items() if len(table) > 1]
    left_out = [f"- {row['model']}: {row['what']}: {row['why']}" for row in rows if row["part"] == "left out"]
    shown += ["Left out:\n\n" + "\n".join(left_out)] if left_out else []
    return "\n\n".join([*shown, f"Measured on {' and on '.join(dict.fromkeys(machine(first) for first, _ in steps))}."])


def machine(first: Mapping[str, Any]) -> str:
    """Say what a step was measured on."""
    packages = ", ".join(f"{name} {first[name]}" for name in ("torch", "cuda", "triton", "transformers") if first[name])
    return f"{first['device']}, {packages}, commit {(first['commit'] or 'unknown')[:8]}"


def greedy(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of the selection."""
    table = [["tokens", "batch", "dtype", "gap", "kernel", "`id_select`", "target", "met", *LOOPS.values()]]
    cases: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["part"] in ("agreement", "times"):
            cases.setdefault((row["tokens"], row["budget"], row["batch"], row["dtype"]), []).append(row)
    for (tokens, budget, batch, dtype), found in sorted(cases.items()):
        worst = max(row["gap"] for row in found if row["part"] == "agreement")
        times = {row["contestant"]: row for row in found if row["part"] == "times"}
        kernel, ours = times.get("kernel", {}).get("device_us"), times["id_select"]
        target, best = ours["target_us"], ours["median_us"] if kernel is None else kernel
        table.append(
            [
                f"{tokens} -> {budget}",
                str(batch),
                dtype,
                f"{worst:.0e}",
                number(kernel),
                f"{ours['median_us']:.0f} ({ours['low_us']:.0f}-{ours['high_us']:.0f})",
                f"below {target}" if target else "",
                ("yes" if best < target else "no") if target else "",
                *(f"{times[name]['times_ours']:.1f}x" for name in LOOPS),
            ]
        )
    return table


LOOPS: Final = {"torch": "torch form", "divprune": "DivPrune", "cdpruner": "CDPruner", "scope": "SCOPE"}


def language(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of language models alone."""
    head = ["model", "visual tokens", "prefill, ms", "a token, ms", "both, ms", "faster", "cache, MiB", "peak, GiB"]
    cases: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["part"] == "language":
            cases.setdefault((row["model"], row["kept_tokens"]), {})[row["phase"]] = row
    return [
        head,
        *(
            [
                model,
                str(kept),
                *(number(phases[name]["median_ms"]) for name in ("prefill", "decode", "whole")),
                f"{phases['whole']['times_faster']:.2f}x",
                number(phases["whole"]["cache_bytes"] / 2**20),
                number(phases["prefill"]["peak_bytes"], 2**30),
            ]
            for (model, kept), phases in cases.items()
        ),
    ]


def answers(rows: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Return the table of whole models: all tokens, then each budget."""
    phases = ("encode", "select", "prefill", "decode")
    head = ["model", "visual tokens", *(f"{name}, ms" for name in phases), "cache, MiB", "peak, GiB"]
    head += ["answer, ms", "over ideal", "faster", "the paper says"]
    cases: dict[tuple[str, int], dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in rows:
        # "full" comes again beside each budget, end to end.
        if row["part"] == "answers" and (row["method"] != "full" or row["phase"] != "end to end"):
            cases.setdefault((row["model"], row["kept_tokens"]), {})[row["method"], row["phase"]] = row
    table = [head]
    for (model, kept), found in cases.items():
        method = next(name for name, _ in found if name != "ideal")
        by_phase = {name: found.get((method, name), {}) for name in (*phases, "end to end")}
        whole = by_phase["end to end"]
        peaks = [row["peak_bytes"] for row in by_phase.values() if row.get("peak_bytes")]
        table.append(
            [
                model,
                str(kept),
                *(number(by_phase[name].get("median_ms")) for name in phases),
                number(by_phase["decode"]["cache_bytes"] / 2**20),
                number(max(peaks, default=None), 2**30),
                number(whole.get("median_ms")),
                f"{whole['over_ideal']:.3f}" if whole else "",
                f"{1 / whole['over_full']:.2f}x" if whole else "",
                CLAIMED.get((model, kept), ""),
            ]
        )
    return table


def number(value: float | None, unit: float = 1) -> str:
    """Return a number in a unit with one decimal, nothing where it is not known."""
    return "" if value is None else f"{value / unit:,.1f}"
