"""The tables of papers: their grids, what they are estimated to cost, and what is refused."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from idsel_core.loading.random_models import read_architecture
from idsel_core.study.cli import main
from idsel_core.study.cost import flops_analytic, flops_analytic_step, flops_prefill
from idsel_core.study.paths import MODEL
from idsel_core.study.run import paper, paper_cost, paper_times
from idsel_core.study.run.paper import read_tasks, table_file
from idsel_core.study.run.paper_cost import Rates, describe, estimate, measured_rates, memory_bytes, with_questions
from idsel_core.study.run.sweeps import read_sweep
from idsel_core.study.store.times import Times
from tests.support.project import PROJECT
from tests.support.rows import make_times

TASKS = read_tasks()
GRIDS = [name for name in paper.list_tables() if not paper_times.is_timing(table_file(name))]
SEVEN = "llava-hf/llava-1.5-7b-hf"


def test_each_table_says_what_it_is():
    tables = paper.list_tables()
    assert {"headline", "llava15_7b", "llava_next_7b", "qwen25vl_7b", "internvl3_8b", "gamma", "importance"} <= set(
        tables
    )
    assert all(title.endswith(".") and len(title) > 20 for title in tables.values())


@pytest.mark.parametrize("name", GRIDS)
def test_each_grid_can_be_estimated(name):
    sweep = read_sweep(table_file(name))
    shares = estimate(sweep, Rates(), TASKS)
    assert len(shares) == len({(job["backbone"], job["data"]) for job in sweep.jobs.values()})
    assert all(one.hours > 0 and one.answers >= one.questions for one in shares)
    text = describe(sweep, shares, memory_bytes(sweep, Rates()), Rates(), TASKS)
    assert f"\n{name}: {len(sweep.jobs)} jobs of one GPU each" in text
    assert all(word in text for word in ("GPU hours", "Memory", "Downloads", "Disk", "an assumption"))


@pytest.mark.parametrize("name", GRIDS)
def test_answers_are_those_of_the_jobs(name):
    sweep = read_sweep(table_file(name))
    shares = estimate(sweep, Rates(), TASKS)
    assert sum(one.jobs for one in shares) == len(sweep.jobs)
    sizes = {f"lmms:{task}": known["questions"] for task, known in TASKS.items()}
    wanted = sum(sizes[job["data"]] * len(job["budgets"] or [0]) for job in sweep.jobs.values())
    assert sum(one.answers for one in shares) == wanted


def sweep_of(**grid):
    """Read a grid of this project's own keys from a file, as the command does."""
    with tempfile.TemporaryDirectory() as folder:
        return read_sweep(write(Path(folder), **grid))


def test_hours_are_the_sum_of_their_parts():
    sweep = sweep_of(method=["full", "idselection"])
    rates = Rates(tflops=50, bandwidth=500, batch=4, answer=6, overhead=0.01)
    config, parameters = read_architecture("llava-1.5-7b"), 7_063_427_072
    seconds = 398 * (flops_analytic(config, 0, 0).encode / 50e12 + 0.01)
    for tokens in (576, 16):
        step = max(flops_analytic_step(config, tokens, 64).total / 50e12, 2 * parameters / 500e9 / 4)
        seconds += 12578 * (flops_prefill(config, tokens, 64).total / 50e12 + 5 * step + 0.01)
    (share,) = estimate(sweep, rates, TASKS)
    assert share.hours == pytest.approx(seconds / 3600)
    assert (share.jobs, share.questions, share.answers) == (2, 12578, 2 * 12578)


def test_what_hours_depend_on():
    def hours(rates=None, image=(480, 640), **change):
        sweep = sweep_of(**{"budget": 64} | change)
        return sum(one.hours for one in estimate(sweep, rates or Rates(), TASKS, image_size=image))

    base = hours()
    assert hours(budget=[16]) < base < hours(budget=[[64, 16]]) < hours(budget=[[64, 60]])
    assert hours(budget=[64 / 576]) == base
    assert hours(Rates(tflops=200)) < base < hours(Rates(bandwidth=500))
    assert hours(image=(1000, 1000)) == base  # LLaVA-1.5 brings all images to one size
    wide = {"backbone": ["Qwen/Qwen2.5-VL-7B-Instruct"], "method": ["full"]}
    assert hours(**wide) < hours(image=(960, 1280), **wide)
    assert hours(data=["lmms:gqa", "lmms:pope"]) == pytest.approx(base + hours(data="lmms:pope"))
    assert hours(data=["lmms:gqa", "lmms:gqa"]) == base  # the same jobs
    assert hours(gamma=[5.0, 20.0]) > 1.9 * base
    assert hours(questions=8) < base / 100
    assert hours(Rates(answer=1)) < base < hours(Rates(answer=16)) == hours(Rates(answer=160))  # GQA allows 16
    assert hours(Rates(batch=1)) > base
    assert hours(dtype="float32") > base == hours(quantisation="int8")


def test_memory_follows_the_type_of_the_weights():
    half, whole, own = (memory_bytes(sweep_of(dtype=dtype), Rates())[SEVEN] for dtype in ("float16", "float32", "auto"))
    assert half == own and whole == 2 * half
    with pytest.raises(ValueError, match="'float17' is no torch dtype"):
        memory_bytes(sweep_of(dtype="float17"), Rates())


def test_memory_counts_quantised_layers_in_their_bits():
    entries = 32 * (4 * 4096**2 + 3 * 4096 * 11008)  # queries, keys, values, outputs; gate, up, down
    outputs = 32 * (4 * 4096 + 2 * 11008 + 4096)
    whole, eight, four = (memory_bytes(sweep_of(quantisation=q), Rates())[SEVEN] for q in ("", "int8", "int4"))
    assert whole - eight == entries - 4 * outputs
    assert whole - four == entries * 3 // 2 - 4 * entries // 64


def test_what_is_told_of_a_quantised_grid():
    def told(**grid):
        sweep = sweep_of(**grid)
        lines = describe(sweep, estimate(sweep, Rates(), TASKS), memory_bytes(sweep, Rates()), Rates(), TASKS)
        return {line.split(":")[0]: line for line in lines.splitlines()}

    plain, small, wide = told(), told(quantisation="int4"), told(dtype="float32")
    assert "weights, and the cache" in plain["Memory of the GPU"]
    assert "weights in int4, and the cache" in small["Memory of the GPU"]
    assert plain["Downloads"] == small["Downloads"] == wide["Downloads"]  # what is downloaded is the checkpoint


@pytest.mark.parametrize(
    "image", [(480, 640), (448, 448), (1344, 1344), (100, 1200), (640, 480), (1000, 1600), (900, 901), (3000, 400)]
)
def test_tiles_are_those_of_internvls_own_processor(image):
    config, _ = paper.published("OpenGVLab/InternVL3-8B-hf")
    processor = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448})
    tiles = processor(np.zeros((*image, 3), np.uint8), crop_to_patches=True, max_patches=12)["pixel_values"]
    height, width = paper_cost._size(config, image)
    count = height * width // 448**2
    assert len(tiles) == count + (count > 1)


def test_a_task_of_this_project_has_the_length_of_its_own_file():
    for path in (PROJECT / "idsel_core/study/harness/tasks").glob("*.yaml"):
        if path.stem in ("hallusion_bench_image", "vqav2_testdev"):
            continue  # in no table
        said = f"max_new_tokens: {TASKS['idsel_' + path.stem]['new_tokens']}"
        assert re.search(rf"{said}\b", path.read_text())
    assert TASKS["gqa"]["new_tokens"] == 16


def test_the_rate_is_that_of_stored_times_of_a_gpu(tmp_path):
    assert measured_rates(tmp_path) == Rates()
    times = Times(tmp_path)
    rows = make_times().assign(phase="prefill", flops=8e12, median_ms=[40.0], low_ms=39.0, high_ms=41.0)
    times.write("on_cpu", rows.assign(device="cpu"), {})
    assert measured_rates(tmp_path) == Rates()
    times.write("on_gpu", pd.concat([rows, rows.assign(phase="decode", flops=1.0)]).assign(device="A GPU"), {})
    found = measured_rates(tmp_path, batch=2, tflops=None)
    assert found.tflops == pytest.approx(200) and found.measured == "A GPU (1 prefills)" and found.batch == 2
    assert measured_rates(tmp_path, tflops=5.0) == Rates(tflops=5.0)
    faster = rows.assign(device="Another", median_ms=4.0, low_ms=4.0, high_ms=4.0)
    times.write("on_another", pd.concat([faster] * 3), {})
    found = measured_rates(tmp_path)
    assert found.tflops == pytest.approx(2000)
    assert found.measured == "Another (3 prefills; also stored, not used: A GPU)"


def write(tmp_path, **grid):
    path = tmp_path / "grid.yaml"
    path.write_text(
        yaml.safe_dump({"backbone": SEVEN, "data": "lmms:gqa", "method": "idselection", "budget": 16} | grid)
    )
    return path


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"method": "idselektion"}, "did you mean 'idselection'"),
        ({"budget": -1}, "budget"),
        ({"gama": 5.0}, "unknown key 'gama', did you mean 'gamma'"),
        ({"data": "lmms:gqaa"}, "the size of lmms:gqaa is not known; add it to config/paper/tasks.csv, which has gqa"),
        ({"backbone": "some/model"}, "the sizes of some/model are not known here; known are .*llava-1.5-7b-hf"),
    ],
)
def test_grids_that_are_not_allowed(tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        estimate(read_sweep(write(tmp_path, **grid)), Rates(), TASKS)


def test_a_first_look_has_rows_of_its_own(tmp_path):
    path = write(tmp_path, questions=0)
    assert paper.rehearsed(path, 0, folder=tmp_path) == path
    small = paper.rehearsed(path, 8, folder=tmp_path / "x")
    assert small.stem == "grid-8" and yaml.safe_load(small.read_text())["questions"] == 8
    asked = [{**job, "results_dir": ""} for job in with_questions(read_sweep(path), 8).jobs.values()]
    stored = [{**job, "results_dir": ""} for job in read_sweep(small).jobs.values()]
    assert [{**job, "job": ""} for job in asked] == [{**job, "job": ""} for job in stored]


def test_a_rehearsal_replaces_the_grids_own_model_and_data(tmp_path):
    path = write(tmp_path, dtype="float16", budget=[[64, 16]])
    instead = {"backbone": "models/tiny one", "data": "photos", "device": None, "dtype": "float32"}
    grid = paper.rehearsed(path, 8, instead, tmp_path / "x")
    assert grid.stem == "grid-8-tiny_one-photos-float32"
    (job,) = read_sweep(grid).jobs.values()
    asked = {name: job[name] for name in ("backbone", "data", "dtype", "questions", "budgets", "device")}
    own = {"dtype": "float32", "questions": 8, "budgets": [64, 16], "device": "cpu"}
    assert asked == {"backbone": "models/tiny one", "data": "photos", **own}
    assert paper.rehearsed(path, 0, dict.fromkeys(instead), tmp_path / "x") == path


def test_the_command(capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    before = sorted((PROJECT / "results").glob("**/*"))
    assert main(["paper"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in paper.list_tables())
    assert main(["paper", "headline", "--dry-run", "--tflops", "40", "--limit", "8"]) == 0
    shown = capsys.readouterr().out
    assert "16 jobs of one GPU each, 128 answers" in shown and "40 TFLOP/s" in shown
    assert "batches of 8, answers of 8 tokens" in shown
    assert main(["paper", "headline", "--dry-run", "--batch", "3", "--answer", "5"]) == 0
    assert "batches of 3, answers of 5 tokens" in capsys.readouterr().out
    assert main(["paper", "efficiency", "--dry-run"]) == 0
    assert "llava-1.5-7b: 576, 192, 128, 64, 32, 16 visual tokens" in capsys.readouterr().out
    for given in (["--limit", "8"], ["--profile", "workflow/profiles/slurm"], ["--device", "cpu"]):
        assert main(["paper", "efficiency", "--dry-run", *given]) == 2
        told = f"efficiency holds times, which are measured here and now, so {given[0]} means"
        assert told in capsys.readouterr().err
    assert main(["paper", "headlin", "--dry-run"]) == 2
    assert "no table 'headlin', did you mean 'headline'?" in capsys.readouterr().err
    assert sorted((PROJECT / "results").glob("**/*")) == before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"devise": "cpu"}, "unknown key 'devise', did you mean 'device'"),
        ({"dtype": "float17"}, "'float17' is no torch dtype"),
        ({"time": [{"model": "llava-1.5-7b"}]}, "each entry of time has model, budgets"),
        ({"time": [{"model": "llava-15-7b", "budgets": [1]}]}, "no model in llava-15-7b: give a folder"),
        ({"time": [{"model": "llava-1.5-7b", "budgets": [-1]}]}, "budget"),
    ],
)
def test_tables_of_times_that_are_not_allowed(tmp_path, table, message):
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"time": []} | table))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        paper_times.read_timing(tmp_path / "t.yaml")


def test_what_would_be_timed_is_told_of_any_model(tmp_path):
    entry = {"model": str(PROJECT / MODEL), "budgets": [16]}
    (tmp_path / "t.yaml").write_text(
        yaml.safe_dump({"time": [entry, {**entry, "budgets": [8], "layers": 1}], "dtype": "float32"})
    )
    whole, shallow = paper_times.describe_timing(tmp_path / "t.yaml").splitlines()[:2]
    size, less = (float(re.search(r"([\d.]+) GiB of random weights", line)[1]) for line in (whole, shallow))
    assert 0 < less < size < 5


def test_times_are_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_times, "project_path", lambda path: tmp_path / path)
    entry = {"model": str(PROJECT / MODEL), "budgets": [576, 16]}
    table = {"time": [entry], "device": "cpu", "dtype": "float32", "runs": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(table))
    paper_times.run_timing(tmp_path / "small.yaml")
    times = Times(tmp_path / "results/times")
    rows = times.frame("paper_small_assembled")
    assert set(rows["backbone"]) == {"assembled"} and set(rows["method"]) == {"full", "idselection"}
    assert {"encode", "select", "prefill", "decode"} <= set(rows["phase"])
    assert times.provenance("paper_small_assembled")["parameters"]["budgets"] == [576, 16]
