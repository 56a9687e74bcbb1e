"""The benchmarks run, on too little to say anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
import torch

from benchmarks import all as everything
from idsel_core import list_methods
from idsel_core.loading.random_models import CONFIGS
from idsel_core.study.store.times import Times
from idsel_core.study.timing.interleaved import in_turns
from tests.support.project import PROJECT


def run(*arguments: str, script: str = "peers") -> subprocess.CompletedProcess:
    command = [sys.executable, f"benchmarks/{script}.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)


def test_every_method_is_timed_or_left_out_with_a_reason(tmp_path):
    out = tmp_path / "times.parquet"
    done = run("--cases", "40:9", "--width", "1024", "--rounds", "1", "--memory", "1e-5", "--out", str(out))
    assert done.returncode == 0, done.stderr
    times = pd.read_parquet(out).set_index("method")
    assert set(times.index) == set(list_methods())
    assert times.at["fastervlm", "ratio"] == 1 and "N = 40, K = 9" in done.stdout
    left_out = times[times["left_out"] != ""]["left_out"]
    assert {"downsample", "scope", "mmtok", "divprune"} <= set(left_out.index)
    assert "more than --memory 1e-05" in left_out["scope"] and "acts on the image" in left_out["downsample"]
    assert bool((times.loc[["fastv", "sparsevlm", "pyramiddrop", "dart"], "ms"] > 0).all())
    assert bool((times["ms"].isna() == (times["left_out"] != "")).all())


@pytest.mark.slow
def test_what_one_drop_cannot_reach_is_left_out():
    done = run("--cases", "600:9", "--width", "1024", "--rounds", "1", "--methods", "sparsevlm")
    assert done.returncode == 0, done.stderr
    assert "sparsevlm  left out: one drop of 600 tokens leaves" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "9:40"), "argument --cases: a case is tokens:kept, not '9:40'"),
        (("--out", "times.txt"), "--out must end in .csv or .parquet, not 'times.txt'"),
        (("--width", "64"), "--width must be 1024 or more, not 64"),
    ],
)
@pytest.mark.fast_for(arguments=[("--width", "64")])
def test_wrong_arguments_are_refused(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2 and message in done.stderr


def test_the_store_is_written_and_asked():
    command = [sys.executable, "benchmarks/store.py", "--rows", "1000", "--jobs", "10"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "write 10 jobs of 100 rows" in done.stdout and "  20 rows" in done.stdout and "  1000 rows" in done.stdout


def test_answers_are_timed_by_phase_and_against_the_ideal(tmp_path):
    small = ("--runs", "1", "--warmup", "0", "--new", "1", "--results", str(tmp_path))
    done = run("--budgets", "16", *small, script="efficiency")
    assert done.returncode == 0, done.stderr
    rows = Times(tmp_path).frame("efficiency-assembled-cpu")
    assert set(rows["phase"]) == {"encode", "select", "prefill", "decode", "end to end"}
    assert set(rows["method"]) == {"full", "ideal", "idselection"}
    assert rows["peak_bytes"].isna().all()
    assert "Measured on cpu" in done.stdout and "times the ideal" in done.stdout and "turn/s" in done.stderr


@pytest.mark.slow
def test_methods_without_an_ideal_are_timed_without():
    small = ("--runs", "1", "--warmup", "0", "--new", "1")
    with TemporaryDirectory() as folder:
        done = run("--method", "fastv", "--budgets", "192", "16", *small, "--results", folder, script="efficiency")
    assert done.returncode == 0, done.stderr
    assert "left out: fastv at 16: fastv cannot bring 576 visual tokens down to 16" in done.stdout
    assert "left out: the ideal of fastv at 192: fastv drops tokens inside" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nowhere"), "nowhere"),
        (("--device", "abacus"), "abacus"),
        (("--budgets", "0"), "budget"),
        (("--runs", "0"), "runs must be an int of 1 or more, not 0"),
    ],
)
@pytest.mark.slow
def test_wrong_calls_are_told(arguments, message, tmp_path):
    done = run(*arguments, "--results", str(tmp_path), script="efficiency")
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr and message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_selection_is_timed_and_its_picks_are_the_reference_s(tmp_path):
    small = ("--cases", "40:9", "--width", "64", "--scaling", "50:5", "60:5", "--scaling-width", "8", "--batch", "2")
    done = run(*small, "--rounds", "1", "--results", str(tmp_path), script="selection")
    assert done.returncode == 0, done.stderr
    times = pd.read_parquet(tmp_path / "selection-cpu.parquet")
    loops = times[times["part"] == "loops"]
    ours = {"id_select", "id_select (continue)", "id_select (gamma 20)", "id_select (torch)"}
    bounds = {"bound: K rows at once", "bound: K rows in turn", "bound: half the table"}
    assert set(loops["contestant"]) == ours | {"reference", "divprune", "cdpruner", "scope"} | bounds
    assert bool(loops["same_picks"].all()) and bool((loops["gap"] < 1e-6).all())
    assert bool((loops.loc[loops["contestant"] == "id_select", "ratio"] == 1).all())
    assert set(times.loc[times["part"] == "scaling", "batch"]) == {1, 2}
    assert bool((times["fastest_ms"] <= times["median_ms"]).all())
    note = json.loads((tmp_path / "_provenance/selection-cpu.json").read_text())
    assert note["rows"] == len(times) and note["parameters"]["width"] == "64"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_named():
    done = run("--device", "cuda", script="selection")
    assert done.returncode == 2 and "--device cuda: torch sees no GPU here" in done.stderr


def test_turns_that_do_not_count():
    with pytest.raises(ValueError, match="rounds must be 1 or more, not 0"):
        in_turns({"nothing": lambda: None}, 0)


@pytest.mark.slow
def test_the_importance_is_timed_on_a_tower_with_cls(tmp_path):
    config = json.loads((CONFIGS / "llava-1.5-7b.json").read_text())
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "image_size": 28}
    config["text_config"] |= {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "small.json").write_text(json.dumps(config))
    given = ("--config", str(tmp_path / "small.json"), "--rounds", "1", "--batches", "1", "--results", str(tmp_path))
    done = run(*given, script="importance")
    assert done.returncode == 0, done.stderr
    times = pd.read_parquet(tmp_path / "importance-cpu.parquet")
    assert set(times["tower"]) == {"embedded", "small"}
    small = times[times["tower"] == "small"].set_index("contestant")
    assert list(small.index) == ["tower", "saliency", "saliency and keys", "received"]
    assert bool((small["view_ms"].drop("tower") > 0).all()) and small.at["tower", "overhead"] == 0
    assert "of the pass; the view alone" in done.stdout


@pytest.mark.slow
def test_thread_time_is_for_one_thread():
    for script in ("selection", "importance"):
        done = run("--clock", "thread", "--threads", "2", script=script)
        assert done.returncode == 2 and "--clock thread is for" in done.stderr


@pytest.mark.slow
def test_one_command_names_all_benchmarks_of_a_cpu(tmp_path):
    there = {path.stem for path in (PROJECT / "benchmarks").glob("[!_]*.py")} - {"all", "gpu"}
    done = run("--dry-run", "--results", str(tmp_path / "store"), script="all")
    assert done.returncode == 0, done.stderr
    named = {line.split("benchmarks/")[1].split(".py")[0] for line in done.stdout.splitlines() if "== " in line}
    assert named == there
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_benchmark_whose_times_are_there_is_skipped(tmp_path, capfd, monkeypatch):
    small = ["store", "--rows", "100", "--jobs", "2", "--results", str(tmp_path), "--job", "small"]
    monkeypatch.setattr(everything, "commands", lambda *_: [small])
    for arguments, steps in (([], 6), ([], 0), (["--again"], 6)):
        assert everything.main(arguments) == 0
        assert capfd.readouterr().out.count(" GiB") == steps
    assert len(pd.read_parquet(tmp_path / "small.parquet")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("script", ["all", "efficiency", "gpu", "importance", "peers", "selection", "store"])
def test_a_benchmark_explains_its_options(script, tmp_path):
    command = [sys.executable, PROJECT / f"benchmarks/{script}.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"python benchmarks/{script}.py" in done.stdout and "default: " in done.stdout


@pytest.mark.slow
def test_times_of_all_methods_are_stored_with_what_was_left_out(tmp_path):
    small = ("--cases", "40:9", "--width", "1024", "--rounds", "1", "--methods", "topk", "downsample")
    done = run(*small, "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert set(Times(tmp_path).frame("peers-cpu")["method"]) == {"fastervlm", "topk"}
    assert set(Times(tmp_path).provenance("peers-cpu")["parameters"]["missing"]) == {"downsample at 9 of 40"}


@pytest.mark.slow
def test_benchmarks_that_fail_are_named_and_the_others_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(everything, "commands", lambda *_: [["peers", "--width", "1"], ["store", "--help"]])
    assert everything.main(["--results", str(tmp_path)]) == 1
    out, err = capfd.readouterr()
    assert "failed: benchmarks/peers.py --width 1" in err and "failed: benchmarks/store.py" not in err
    assert "benchmarks/store.py --help" in out and "exit status 0" in out
