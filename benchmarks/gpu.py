"""Measure all that needs a GPU, in at most 20 minutes: python benchmarks/gpu.py.

It needs a torch with CUDA and this checkout. A step that needs a package that is not there, or a newer transformers, is
skipped; the end says which and why. Each step runs in a process of its own. When it is done it writes
results/gpu/DEVICE-SIZE/STEP.jsonl and does not run again, so the same command goes on after a kill, a failure or the
end of its time.

greedy-*    the selection of 8 images: picks against a float64 reference, then times against plain loops
language-*  the language model of a full-size model with random weights, on full prompts and on prompts cut by hand
answers-*   whole full-size models by phase (encode, select, prefill, decode), under `prune` and against a cut prompt

`--device cpu --size small` tries every step on a CPU, at a size that says nothing about speed.
`python workflow/scripts/publish.py --gpu` writes the tables of docs/efficiency.md from the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = 3
"""Exit status of a step that cannot run with what is installed."""

MODELS: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {"tokens": 576, "budgets": (192, 64, 16)},
    "llava-next-7b": {"tokens": 2928, "budgets": (640, 320, 160), "image_size": (672, 672)},
    "qwen2.5-vl-7b": {"tokens": 1296, "budgets": (324, 128, 64), "image_size": (1008, 1008)},
    "internvl2.5-8b": {"tokens": 1280, "budgets": (320, 128, 64), "image_size": (896, 896)},
}
"""Full-size models: their visual tokens, and those that they are left."""


def steps(size: str) -> dict[str, dict[str, Any]]:
    """Return all steps in their order, by name: the module in ``benchmarks`` that runs it, and its arguments."""
    found: dict[str, dict[str, Any]] = {}
    cases = {"full": ((576, 64, 100), (2880, 320, 1000)), "small": ((24, 6, None), (40, 9, None))}[size]
    for tokens, budget, target_us in cases:
        for dtype in ("float32", "bfloat16"):
            case = {"tokens": tokens, "budget": budget, "dtype": dtype, "target_us": target_us}
            found[f"greedy-{tokens}-{budget}-{dtype}"] = {"module": "_gpu_greedy", **case}
    for kind in ("language", "answers"):
        for name, model in MODELS.items():
            found[f"{kind}-{name}"] = {"module": f"_gpu_{kind}", "model": name, **model}
    return found


class SkippedStep(Exception):
    """The step cannot run with what is installed here."""


def code_hash() -> str:
    """Return the SHA-256 of the code that is measured, for checkouts without git."""
    found = hashlib.sha256()
    measured = ("idsel_core/**/*.py", "idsel_core/loading/configs/*", "benchmarks/*gpu*.py", "benchmarks/_loops.py")
    for path in sorted(path for pattern in measured for path in ROOT.glob(pattern)):
        found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def circumstances(device: str) -> dict[str, Any]:
    """Return what the first line of a step says about the machine, the packages and the code."""
    import torch

    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "commit": git("rev-parse", "HEAD"),
        "changed": None if (changed := git("status", "--porcelain")) is None else bool(changed),
        "code": code_hash(),
    }


def version(package: str) -> str | None:
    """Return the version of a package, None if it is not there."""
    if package in sys.modules:
        return str(sys.modules[package].__version__)
    try:
        return None if find_spec(package) is None else metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """Return what git says of this checkout, None if it says nothing."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def make_importable() -> None:
    """Let the parts of the package be imported from this checkout, also where lazy_loader is not installed."""
    sys.path.insert(0, str(ROOT))
    if find_spec("lazy_loader") is None:
        package = ModuleType("idsel_core")
        package.__path__ = [str(ROOT / "idsel_core")]
        sys.modules["idsel_core"] = package


def run_step(name: str, device: str, size: str) -> list[dict[str, Any]]:
    """Run one step in this process and return its rows.

    Raises
    ------
    SkippedStep
        If a package is missing, or transformers is too old.
    """
    arguments = dict(steps(size)[name])
    module = arguments.pop("module")
    try:
        step = importlib.import_module(f"benchmarks.{module}")
        rows: list[dict[str, Any]] = step.measure(device=device, small=size == "small", **arguments)
    except ImportError as error:
        # What is missing of the checkout itself is a fault of ours.
        if (error.name or "").partition(".")[0] in ("benchmarks", "idsel_core"):
            raise
        raise SkippedStep(f"{str(error).splitlines()[0]} (transformers: {version('transformers')})") from error
    return rows


def step_main(name: str, device: str, size: str, folder: Path) -> int:
    """Run a step and write its circumstances and rows, one a line, or why there are none."""
    if device == "cpu" and find_spec("triton") is not None:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        lines = [{"step": name, "size": size, **circumstances(device)}, *run_step(name, device, size)]
        part = folder / f"{name}.jsonl.part"
        part.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        part.replace(folder / f"{name}.jsonl")
    except SkippedStep as skipped:
        (folder / f"{name}.why").write_text(str(skipped))
        return SKIPPED
    except Exception as error:
        traceback.print_exc()
        said = str(error).strip().splitlines()
        (folder / f"{name}.why").write_text(f"{type(error).__name__}: {said[0] if said else 'no message'}")
        return 1
    return 0


def start(name: str, given: argparse.Namespace, folder: Path, seconds: float) -> str:
    """Run a step in a process of its own; return "" or why it is not done."""
    why = folder / f"{name}.why"
    why.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--step", name, "--device", given.device, "--size", given.size]
    try:
        code = subprocess.run([*command, "--results", str(given.results)], timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"stopped: the {given.minutes:g} minutes are over; run the same command again to go on"
    if code == 0:
        return ""
    told = why.read_text() if why.exists() else f"the process ended with status {code}"
    return f"skipped: {told}" if code == SKIPPED else f"failed: {told}"


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that are not done; return how many failed or were stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="(default: %(default)s)")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only steps whose names begin so (default: all)")
    parser.add_argument("--minutes", type=float, default=20, help="no step runs past these (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "results/gpu", help="folder (default: %(default)s)")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    make_importable()
    if given.device == "cpu" and given.size == "full":
        parser.error("--device cpu is for --size small: times of a CPU say nothing about a GPU")
    folder = given.results / f"{given.device}-{given.size}"
    folder.mkdir(parents=True, exist_ok=True)
    if given.step:
        return step_main(given.step, given.device, given.size, folder)
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU here")
    chosen = [name for name in steps(given.size) if name.startswith(tuple(given.steps or [""]))]
    if not chosen:
        parser.error(f"--steps: no step begins with {' or '.join(given.steps)}; known: {', '.join(steps(given.size))}")
    end = time.monotonic() + 60 * given.minutes
    undone: dict[str, str] = {}
    for name in chosen:
        if (folder / f"{name}.jsonl").exists():
            print(f"== {name}: done before", flush=True)
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        if reason := start(name, given, folder, max(0.1, end - began)):
            undone[name] = reason
        print(f"== {name}: {reason or 'done'}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"\n{len(chosen) - len(undone)} of {len(chosen)} steps are done; their rows lie in {folder}")
    for name, reason in undone.items():
        print(f"{name} {reason}")
    return sum(not reason.startswith("skipped") for reason in undone.values())


if __name__ == "__main__":
    # The modules of the steps import this one by its name in the folder.
    sys.exit(main())
