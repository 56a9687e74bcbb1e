"""Sweeps: what a grid expands to, how its jobs run, and that no fault loses or changes a row."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from idsel_core.study.dataset import read_data, read_split
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import CACHE, DATA, MODEL
from idsel_core.study.run import sweeps
from idsel_core.study.run.notebook_runner import check_parameters
from idsel_core.study.run.run_sweep import check_slurm
from idsel_core.study.run.sweeps import NOTEBOOK, asked_hash, encodings, read_sweep, settings_hash
from idsel_core.study.store.files import CorruptResult
from idsel_core.study.store.results import Results
from tests.support.hub_folders import photographs, tones
from tests.support.project import PROJECT
from tests.support.small import environment, rows_of
from tests.support.start_slurm import missing
from tests.support.sweeps import same, stamps, sweep, waiting, write_grid


def test_a_knob_goes_to_the_methods_that_have_it(tmp_path):
    jobs = read_sweep(write_grid(tmp_path)).jobs
    asked = [(job["method"], job["budgets"], job["knobs"]) for job in jobs.values()]
    assert asked == [
        ("full", [], {}),
        ("topk", [64], {}),
        ("topk", [32, 16], {}),
        *[("random", budgets, {"seed": seed}) for seed in (0, 1) for budgets in ([64], [32, 16])],
    ]
    assert all(name == job["job"] for name, job in jobs.items())


def test_a_larger_grid_keeps_the_names_of_its_jobs(tmp_path):
    small = read_sweep(write_grid(tmp_path)).jobs
    large = read_sweep(write_grid(tmp_path, seed=[2, 0, 1], method=["topk", "random", "full", "uniform"])).jobs
    assert small.items() <= large.items()
    assert not small.keys() & read_sweep(write_grid(tmp_path, questions=8)).jobs.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": []}, r"names no method; known are \['full', 'no-image', 'idselection'"),
        ({"method": "idselecton"}, "unknown method 'idselecton', did you mean 'idselection'"),
        (
            {"gama": [1.0]},
            r"unknown key 'gama', did you mean 'gamma'\? Known are questions, device, dtype, batch, quantisation, ",
        ),
        ({"gamma": [1.0]}, r"no method of \['full', 'topk', 'random'\] has the knobs \['gamma'\]"),
        ({"budget": [0]}, "budget must be a number of tokens"),
        (
            {"method": ["idselection", "random"], "gamma": ["high"]},
            "knob gamma of idselection must be a number or one of auto, not 'hi",
        ),
        ({"part": "hard"}, "unknown key 'part', did you mean 'split'"),
        ({"methods": "full"}, "unknown key 'methods', did you mean 'method'"),
        ({"seed": []}, "seed is an empty list"),
        ({"budget": [[]]}, "budget holds an empty list"),
        ({"budget": {"from": 1}}, "budget must be a value or a list of values, not .{'from': 1}.$"),
        ({"method": {"full": 1}}, "method must be a value or a list of values"),
        ({"split": 3}, "split must be a name or a list of names, not .3."),
        ({"questions": "many"}, "questions must be one int, not 'many'"),
        ({"device": ["cpu", "cuda"]}, r"device must be one str, not .'cpu', 'cuda'."),
        ({"split": "../hard"}, "split '../hard' is no name"),
        ({"quantisation": "int3"}, "quantisation must be one of int8, int4, not 'int3'"),
        ({"quantisation": ["int4", "int8"]}, "quantisation must be one str, not .'int4', 'int8'."),
        ({"seed": list(range(60000))}, "stands for 120003 jobs, more than 100000"),
        ({"method": ["cdpruner", "random"], "negated": "False"}, "knob negated of cdpruner must be true or false"),
        ({"method": ["sparsevlm", "random"], "layers": 0.5}, "knob layers of sparsevlm must be a list such as"),
    ],
)
def test_a_wrong_grid_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(write_grid(tmp_path, **changes))


def test_how_a_model_is_loaded_is_a_parameter_of_a_job_only_where_it_is_given(tmp_path):
    plain = read_sweep(write_grid(tmp_path)).jobs
    assert not any({"quantisation", "device_map"} & set(job) for job in plain.values())
    loaded = read_sweep(write_grid(tmp_path, quantisation="int4", device_map="auto")).jobs
    assert all((job["quantisation"], job["device_map"]) == ("int4", "auto") for job in loaded.values())
    assert not plain.keys() & loaded.keys()
    for parameters in loaded.values():
        check_parameters(PROJECT / NOTEBOOK, parameters)


@pytest.mark.parametrize("key", ["quantisation", "device_map"])
def test_a_package_that_a_grid_needs_is_missed_before_any_job(key, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find(name))
    grid = read_sweep(write_grid(tmp_path, **{key: {"quantisation": "int8", "device_map": "auto"}[key]}))
    with pytest.raises(ImportError, match=rf"{key}.* needs accelerate: pip install 'idsel_core\[quantised\]'"):
        grid.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "abacus"}, "device 'abacus' is unknown; allowed are cpu, cuda"),
        ({"backbone": "nowhere"}, "there is no folder nowhere"),
        ({"method": "evs"}, "evs compares frames of a video"),
        ({"method": "fastv", "layer": 99}, "tokens cannot be dropped before layer 99 of 5: choose one from 1 to 4"),
        ({"method": "pyramiddrop", "layers": [[0.5, 5]]}, "tokens cannot be dropped before layer 5 of 5"),
        ({"method": "topk", "instruction_layer": 5}, "has 5 layers, from 0 to 4"),
        ({"method": "fastv", "budget": 16}, "cannot bring 576 visual tokens down to 16"),
        ({"split": "tset"}, "no split 'tset'"),
    ],
)
def test_a_grid_that_cannot_run_is_refused_before_any_job(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(PROJECT)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"method": "full", **changes}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_sweep(path).check()


def test_a_tuple_knob_is_a_list_inside_the_list(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("method: pyramiddrop\nlayers: [[0.25, 0.5], [2]]\nbudget: 300\n")
    assert [job["knobs"] for job in read_sweep(path).jobs.values()] == [{"layers": [0.25, 0.5]}, {"layers": [2]}]


@pytest.mark.parametrize("name", [";touch X;#", "a$(touch X)", "{x}", " ", "-rf", "`touch X`", "a'b"])
def test_a_name_that_is_no_folder_is_refused(tmp_path, name):
    path = tmp_path / f"{name}.yaml"
    path.write_text("method: full\n")
    with pytest.raises(ValueError, match=r"the grid's name .* becomes a folder of results"):
        read_sweep(path)


@pytest.mark.parametrize("path", sorted((PROJECT / "config/grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_here_fit_the_notebook(path):
    for parameters in read_sweep(path).jobs.values():
        check_parameters(PROJECT / NOTEBOOK, parameters)


def test_an_estimate_scales_what_the_nearest_finished_jobs_took(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "grid.yaml"
    grid = {"method": ["topk", "full"], "split": "hard", "data": str(PROJECT / DATA), "questions": 7}
    path.write_text(yaml.safe_dump(grid))
    encoding = encodings(MODEL, grid["data"]) / "hard.safetensors"
    encoding.parent.mkdir(parents=True)
    encoding.touch()

    def finish(job: str, rows: int, seconds: float, **parameters: str) -> str:
        file = tmp_path / f"results/{job}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        note = {"rows": rows, "seconds": seconds, "device": "cpu", "parameters": parameters}
        file.write_text(json.dumps(note))
        return read_sweep(path).estimate(cores=2)

    guess = "a guess for 2 jobs, as none with their backbone and device has finished"
    assert guess in read_sweep(path).estimate()
    path.write_text(yaml.safe_dump({**grid, "budget": [64, 1000, 600, 0.5]}))
    MODEL.parent.mkdir(parents=True)
    MODEL.symlink_to(PROJECT / MODEL)
    assert (
        read_sweep(path)
        .estimate()
        .endswith(f", budgets above the 576 tokens of an image of {MODEL} keep all: 600, 1000")
    )
    path.write_text(yaml.safe_dump(grid))
    assert guess in finish("sweeps/other/_provenance/1", 70, 4200.0, backbone="another")
    assert guess in finish("sweeps/other/_provenance/2", 70, 4200.0, backbone=str(MODEL), device="cuda")
    # A minute an answer, by two jobs of 7 answers side by side.
    found = finish("rows/_provenance/ablation", 70, 4200.0)
    assert "2 to run: 14 answers, about 8 min on 2, " in found and found.endswith("; as measured in 1 finished jobs")
    found = finish("sweeps/other/_provenance/3", 7, 6000.0, backbone=str(MODEL), method="topk")
    # topk as topk, full as the mean of both.
    assert "about 58 min on 2, " in found and found.endswith("; as measured in 2 finished jobs")


def test_a_data_set_is_read_once_however_many_jobs_ask_it(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(sweeps, "read_data", lambda *source: read.append(source) or read_data(*source))
    monkeypatch.chdir(PROJECT)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"method": ["topk", "full", "random"], "split": ["hard", "test"], "seed": [0, 1]}))
    grid = read_sweep(path)
    grid.check()
    hard, test = (len(read_split(split).questions) for split in ("hard", "test"))
    assert f"8 jobs, 0 of them stored, 8 to run: {4 * (hard + test)} answers" in grid.estimate()
    assert sorted(read) == [(str(DATA), "hard", 0), (str(DATA), "test", 0)]


def test_encodings_of_other_models_and_data_are_kept_apart():
    folders = [encodings(*pair) for pair in [(MODEL, DATA), ("a/model", DATA), ("b/model", DATA), ("a/model", "data")]]
    assert folders[0] == CACHE
    assert len(set(folders)) == 4


@pytest.mark.parametrize("own_data", [photographs, tones])
def test_a_picture_or_clip_that_takes_the_place_of_another_is_asked_about_anew(own_data, tmp_path):
    table = own_data(tmp_path / "mine", 3) / "mine.csv"
    next(path for path in table.parent.glob("*.csv")).rename(table)
    first, second, third = sorted(path for path in table.parent.iterdir() if path != table)
    asked = str(table), "mine", 0
    before = asked_hash(*asked)
    asked_hash.cache_clear()
    assert asked_hash(*asked) == before
    times = first.stat()
    shutil.copyfile(second, first)
    # What takes the place may be older than the rows; the table and its folder do not change at all.
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    asked_hash.cache_clear()
    assert asked_hash(*asked) != before
    shutil.copyfile(third, first)
    asked_hash.cache_clear()
    assert len({before, asked_hash(*asked), asked_hash(str(table), "mine", 1)}) == 3
    assert asked_hash("lmms:gqa", "test", 0) == ""


def test_a_chat_template_and_settings_are_of_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    hashes = [settings_hash(str(tmp_path))]
    for name in ("chat_template.jinja", "processor_config.json", "config.json"):
        (tmp_path / name).write_text("{ }")
        settings_hash.cache_clear()
        hashes.append(settings_hash(str(tmp_path)))
    assert len(set(hashes)) == 4
    assert settings_hash("llava-hf/llava-1.5-7b-hf") == ""


@pytest.mark.slow
def test_a_job_runs_again_when_what_it_asks_about_or_the_model_has_changed(project):
    before = stamps(project)
    (project / "model/chat_template.jinja").write_text("{{ messages }}")
    dry = sweep(project, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "params have changed since last execution" in dry.stdout + dry.stderr
    assert stamps(project) == before


@pytest.mark.slow
def test_a_sweep_stores_one_parquet_a_job_and_keeps_the_executed_notebooks(finished):
    project, done = finished
    jobs = sorted(read_sweep(project / "grid.yaml").jobs)
    assert Results(project / "results/sweeps/grid").jobs() == jobs
    assert sorted(path.stem for path in (project / "logs/grid").iterdir()) == jobs
    assert "7 jobs, 0 of them stored, 7 to run: 70 answers, about 1 min on 2, " in done.stdout
    assert "; a guess for 7 jobs, as none with their backbone and device has finished" in done.stdout
    assert rows_of(project).groupby("method")["budget"].unique().map(sorted).to_dict() == {
        "full": [576], "random": [16, 32, 64], "topk": [16, 32, 64],
    }  # fmt: skip


@pytest.mark.slow
def test_a_larger_grid_runs_only_what_is_new_and_a_dry_run_nothing(project):
    before = stamps(project)
    write_grid(project, seed=[0, 1, 2])
    dry = sweep(project, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "9 jobs, 7 of them stored, 2 to run: 21 answers" in dry.stdout
    # Those of the same method.
    assert "; as measured in 4 finished jobs" in dry.stdout and "MiB of disk (" in dry.stdout
    assert "guess" not in dry.stdout
    assert stamps(project) == before
    assert sweep(project).returncode == 0
    after = stamps(project)
    assert len(after) == 9 and before.items() <= after.items()


def test_no_character_of_a_path_means_anything_to_a_shell(fresh, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "it's; touch X; # here")
    grids, model, data = "my grids; touch X; #{a}", "a 'model'; touch X; #", 'some "data" $(touch X)'
    (project / "model").rename(project / model)
    (project / "data").rename(project / data)
    (project / grids).mkdir()
    write_grid(project, backbone=model, data=data, method=["random"], budget=[64], seed=[0]).rename(
        project / grids / "two words.yaml"
    )
    encoding = project / encodings(model, data) / "hard.safetensors"
    encoding.parent.mkdir(parents=True)
    encoding.touch()
    command = [sys.executable, "-m", "idsel_core.study.cli", "sweep", f"{grids}/two words.yaml", "--cores", "1"]
    before = set(project.iterdir())
    dry = subprocess.run([*command, "--dry-run"], cwd=project, env=environment(), capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    assert set(project.iterdir()) == before
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(Results(project / "results/sweeps/two words").jobs()) == 1
    assert not list(tmp_path.rglob("X"))


@pytest.mark.slow
def test_a_failing_job_keeps_its_notebook_and_the_others_go_on(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "failing")
    (project / "fail").touch()
    done = sweep(project, "--", "--retries", "0")
    assert done.returncode != 0
    assert "not all jobs ran; their notebooks with tracebacks are in logs/grid/" in done.stderr
    failed = [path for path in (project / "logs/grid").iterdir() if '"ename": "RuntimeError"' in path.read_text()]
    assert len(failed) == 2
    before = stamps(project)
    assert len(before) == 5
    (project / "fail").unlink()
    assert sweep(project).returncode == 0
    assert before.items() <= stamps(project).items()
    assert same(project, finished)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_a_second_runner_is_refused(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "killed")
    with waiting(project):
        second = sweep(project)
        assert second.returncode == 2
        assert "another sweep is at work on grid.yaml" in second.stderr
    assert len(stamps(project)) < 7
    (project / "wait").unlink()
    done = sweep(project)
    assert done.returncode == 0, done.stderr
    assert same(project, finished)


@pytest.mark.slow
def test_a_truncated_parquet_is_named_and_built_again(project, finished):
    path = next(project.glob("results/sweeps/grid/topk-*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptResult, match=rf"{path.name} cannot be read"):
        rows_of(project)
    refused = sweep(project)
    assert refused.returncode == 2 and f"delete {path.relative_to(project)} and run" in refused.stderr
    path.unlink()
    assert sweep(project).returncode == 0
    assert same(project, finished)


@pytest.mark.parametrize("fault", ["weights", "gpu", "split"])
@pytest.mark.slow
def test_what_is_missing_is_told_before_anything_is_lost(project, finished, fault):
    before = stamps(project)
    if fault == "weights":
        (project / "model/model.safetensors").unlink()
        message = "model holds no weights"
    elif fault == "gpu":
        write_grid(project, device="cuda")
        message = "device 'cuda' was asked for, but torch sees no GPU"
    else:
        (project / "data/hard-images.parquet").unlink()
        message = "no split 'hard' in data"
    done = sweep(project, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr
    assert stamps(project) == before
    assert same(project, finished)


def test_a_model_is_not_loaded_onto_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU on this machine"):
        open_backbone(device="cuda")


@pytest.mark.slow
def test_without_slurm_its_profile_says_what_is_missing(project):
    done = sweep(project, "--profile", "workflow/profiles/slurm", PATH="nowhere")
    assert done.returncode == 2
    assert "error: workflow/profiles/slurm hands jobs to Slurm, but there is no sbatch here" in done.stderr


def test_without_the_plugin_or_packages_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program, **where: None if where else program)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"needs Snakemake's Slurm plugin: .*pip install .*\[cluster\]"):
        check_slurm(Path("workflow/profiles/slurm"))
    assert missing() == (
        "no munge, slurm-client, slurmctld, slurmd on this machine; on Debian and Ubuntu: "
        "apt-get install --no-install-recommends munge slurm-client slurmctld slurmd"
    )
    assert "mariadb-server" in missing(accounting=True)


@pytest.mark.parametrize("profile", ["local", "slurm"])
def test_profiles_survive_kills_and_failures(profile):
    settings = yaml.safe_load((PROJECT / f"workflow/profiles/{profile}/config.yaml").read_text())
    assert settings["rerun-incomplete"] and settings["keep-going"] and settings["retries"]
    assert profile == "local" or (settings["slurm-status-command"], settings["slurm-no-account"]) == ("squeue", True)


LEASE = [sys.executable, "-m", "idsel_core.study.cli", "lease"]
HOLD = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"


def hold(folder: Path, gpus: str, **more: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*LEASE, "--locks", str(folder), sys.executable, "-c", HOLD],
        env=environment(CUDA_VISIBLE_DEVICES=gpus, **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )


def test_each_job_leases_a_gpu_of_its_own_and_a_killed_one_gives_it_back(tmp_path):
    holders = [hold(tmp_path, "2,5") for _ in range(2)]
    assert sorted(holder.stdout.readline().strip() for holder in holders) == ["2", "5"]
    third = hold(tmp_path, "2,5")
    time.sleep(2)
    holders[0].kill()
    holders[0].wait()
    freed = third.stdout.readline().strip()
    holders[1].communicate()
    third.communicate()
    assert freed in ("2", "5")
    assert not third.returncode


@pytest.mark.parametrize(("gpus", "more"), [("1", {"SLURM_JOB_ID": "7"}), ("", {})])
def test_where_slurm_gave_one_gpu_or_there_is_none_nothing_is_leased(tmp_path, gpus, more):
    holder = hold(tmp_path, gpus, **more)
    said, _ = holder.communicate()
    assert said.strip() == gpus
    assert list(tmp_path.iterdir()) == []


def test_gpus_that_slurm_gave_are_leased_within_their_job(tmp_path):
    holders = [hold(tmp_path, "0,1", SLURM_JOB_ID=job) for job in "7788"]
    said = [holder.stdout.readline().strip() for holder in holders]
    for holder in holders:
        holder.communicate()
    assert sorted(said[:2]) == sorted(said[2:]) == ["0", "1"]
