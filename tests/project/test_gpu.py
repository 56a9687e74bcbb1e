"""The measurements of a GPU run on a CPU, at a small size: each step, after a kill, a fault, with less installed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import _gpu_greedy, gpu
from tests.support.project import PROJECT

HIDE = """
import os
from importlib.machinery import PathFinder

hidden, find = os.environ["HIDDEN"].split(), PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

PathFinder.find_spec = find_spec
"""
"""Startup of Python that finds no package of the environment's HIDDEN."""

OLDER = """
from transformers.models.auto import modeling_auto

del modeling_auto.AutoModelForMultimodalLM
"""
"""Startup of Python with a transformers that lacks a class."""


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(PROJECT / "benchmarks/gpu.py"), "--results", str(folder), *arguments]


def run(
    folder: Path, *steps: str, more: tuple[str, ...] = (), startup: str = "", hidden: str = ""
) -> subprocess.CompletedProcess:
    """Run steps on the CPU, from another folder and with no more on the path than what `startup` brings."""
    (folder / "sitecustomize.py").write_text(startup)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder), "HIDDEN": hidden}
    small = ("--device", "cpu", "--size", "small", *more, "--steps", *steps)
    return subprocess.run(command(folder, *small), cwd=folder, env=environment, capture_output=True, text=True)


def read(folder: Path, step: str) -> tuple[dict, list[dict]]:
    first, *rows = map(json.loads, (folder / f"cpu-small/{step}.jsonl").read_text().splitlines())
    return first, rows


def check_greedy(rows: list[dict]) -> None:
    agreement = [row for row in rows if row["part"] == "agreement"]
    assert {row["backend"] for row in agreement} == {"torch", "triton", "lazy"}
    assert all(row["gap"] <= 1e-6 and row["kinds"] == 9 for row in agreement)
    times = {row["contestant"]: row for row in rows if row["part"] == "times"}
    assert set(times) == {"id_select", "torch", "kernel", "reference", "divprune", "cdpruner", "scope"}
    assert times["id_select"]["times_ours"] == 1
    assert all(row["low_us"] <= row["median_us"] <= row["high_us"] for row in times.values())


def check_language(rows: list[dict], tokens: int, budgets: tuple[int, ...]) -> None:
    by_phase = {(row["kept_tokens"], row["phase"]): row for row in rows}
    assert set(by_phase) == {(n, phase) for n in (tokens, *budgets) for phase in ("prefill", "decode", "whole")}
    assert all(by_phase[tokens, phase]["times_faster"] == 1 for phase in ("prefill", "decode", "whole"))
    # Keys and values of 2 layers, 32 wide, in float32.
    assert {n: by_phase[n, "whole"]["cache_bytes"] for n in (tokens, *budgets)} == {
        n: (n + 64) * 2 * 2 * 32 * 4 for n in (tokens, *budgets)
    }


def check_answers(rows: list[dict], tokens: int, budgets: tuple[int, ...]) -> None:
    timed = [row for row in rows if row["part"] == "answers"]
    phases = {(row["method"], row["kept_tokens"], row["phase"]) for row in timed if row["phase"] != "end to end"}
    assert phases == {("full", tokens, phase) for phase in ("encode", "prefill", "decode")} | {
        ("idselection", n, phase) for n in budgets for phase in ("encode", "select", "prefill", "decode")
    }
    whole = {(row["method"], row["budget"]) for row in timed if row["phase"] == "end to end"}
    left_out = [row["why"] for row in rows if row["part"] == "left out"]
    if left_out:
        assert left_out == ["a prompt cannot be cut by hand where positions have several axes"] * len(budgets)
    assert whole == (set() if left_out else {(m, n) for m in ("full", "ideal", "idselection") for n in budgets})


def test_a_step_of_each_kind_runs(tmp_path):
    steps = ("greedy-24-6-float32", "language-llava-1.5-7b", "answers-llava-1.5-7b")
    done = run(tmp_path, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 steps are done" in done.stdout
    for step in steps:
        first, _ = read(tmp_path, step)
        assert first["step"] == step and first["device"] == "cpu" and first["size"] == "small"
        assert first["torch"] == torch.__version__ and first["code"] == gpu.code_hash()
    check_greedy(read(tmp_path, steps[0])[1])
    check_language(read(tmp_path, steps[1])[1], 576, (192, 64, 16))
    check_answers(read(tmp_path, steps[2])[1], 576, (192, 64, 16))


@pytest.mark.slow
def test_all_steps_run(tmp_path):
    done = run(tmp_path, "")
    assert done.returncode == 0, done.stdout + done.stderr
    for step, given in gpu.steps("small").items():
        _, rows = read(tmp_path, step)
        if step.startswith("greedy"):
            check_greedy(rows)
        else:
            check = check_language if step.startswith("language") else check_answers
            check(rows, given["tokens"], given["budgets"])


def test_what_was_done_before_a_kill_is_not_run_again(tmp_path):
    steps = ("greedy-24-6-float32", "greedy-24-6-bfloat16")
    small = ("--device", "cpu", "--size", "small", "--steps", *steps)
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen(command(tmp_path, *small), stdout=said, start_new_session=True)
    waited = time.monotonic()
    while f"== {steps[1]}" not in (tmp_path / "said").read_text():
        assert first.poll() is None and time.monotonic() - waited < 300
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert [path.name for path in (tmp_path / "cpu-small").glob("*.jsonl")] == [f"{steps[0]}.jsonl"]
    before = (tmp_path / f"cpu-small/{steps[0]}.jsonl").stat()
    done = run(tmp_path, *steps)
    assert done.returncode == 0, done.stderr
    assert f"{steps[0]}: done before" in done.stdout and f"{steps[1]}: done," in done.stdout
    assert (tmp_path / f"cpu-small/{steps[0]}.jsonl").stat() == before


def test_a_step_that_fails_and_one_that_needs_a_newer_transformers_stop_no_other(tmp_path):
    # The rows of the first step cannot be written.
    (tmp_path / "cpu-small/language-llava-1.5-7b.jsonl.part").mkdir(parents=True)
    done = run(tmp_path, "language-llava-1.5-7b", "language-internvl2.5-8b", "answers-llava-1.5-7b", startup=OLDER)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 3 steps are done" in done.stdout
    told = done.stdout.splitlines()[-2:]
    assert told[0].startswith("language-llava-1.5-7b failed: IsADirectoryError: ")
    assert told[1].startswith("answers-llava-1.5-7b skipped: Could not import module 'AutoModelForMultimodalLM'.")
    assert told[1].endswith(f"(transformers: {transformers.__version__})")
    check_language(read(tmp_path, "language-internvl2.5-8b")[1], 1280, (320, 128, 64))


def test_a_torch_alone_measures_the_selection(tmp_path):
    hidden = "lazy_loader transformers pandas pyarrow matplotlib seaborn PIL scipy sklearn tqdm yaml safetensors"
    done = run(tmp_path, "greedy-24-6-float32", "answers-qwen", startup=HIDE, hidden=hidden)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 steps are done" in done.stdout
    assert "answers-qwen2.5-vl-7b skipped: No module named 'transformers' (transformers: None)" in done.stdout
    first, rows = read(tmp_path, "greedy-24-6-float32")
    assert first["transformers"] is None
    check_greedy(rows)


def test_no_step_runs_past_the_end_of_the_time(tmp_path):
    done = run(tmp_path, "greedy-24-6-float32", more=("--minutes", "0"))
    assert done.returncode == 1
    assert "greedy-24-6-float32 stopped: the 0 minutes are over; run the same command again to go on" in done.stdout
    assert not list((tmp_path / "cpu-small").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu"), "--device cpu is for --size small"),
        (("--device", "cpu", "--size", "small", "--steps", "greed-"), "--steps: no step begins with greed-; known: "),
        pytest.param(
            ("--steps", "greedy"),
            "sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
@pytest.mark.fast_for(arguments=[("--device", "cpu")])
def test_wrong_calls_are_refused(arguments, message, tmp_path):
    done = subprocess.run(command(tmp_path, *arguments), capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr


def test_picks_that_part_from_the_rule_are_refused(monkeypatch):
    x, scores = torch.eye(12)[None], torch.linspace(0.1, 1, 12)[None]
    assert _gpu_greedy.check(x, scores, 4, "torch", "") == 0
    real = _gpu_greedy.id_select
    # The picks of other scores.
    monkeypatch.setattr(_gpu_greedy, "id_select", lambda x, s, k, backend: real(x, s.flip(1), k, backend=backend))
    with pytest.raises(ValueError, match=r"the picks of torch part from the rule in float64 by 9.0e-01: eye, rising"):
        _gpu_greedy.check(x, scores, 4, "torch", "eye, rising")


def test_the_full_size_is_what_is_published():
    full = gpu.steps("full")
    greedy = {(one["tokens"], one["budget"], one["dtype"], one["target_us"]) for one in full.values() if "dtype" in one}
    assert greedy == {(n, k, d, t) for n, k, t in ((576, 64, 100), (2880, 320, 1000)) for d in ("float32", "bfloat16")}
    assert sum(name.startswith(("language-", "answers-")) for name in full) == 2 * len(gpu.MODELS) == 8
