"""Every notebook in notebooks/: its form, its parameters, and a run with the small settings of config/smoke/."""

import functools
from pathlib import Path

import jupytext
import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from PIL import Image

from idsel_core.study.run.notebook_runner import check_parameters, load_parameters, run
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times
from tests.support import tiny_smollm2, tiny_whisper
from tests.support.project import PROJECT
from tests.support.rows import make_rows

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
WORKFLOW = yaml.safe_load((PROJECT / "config/workflow.yaml").read_text())
DRAWING = WORKFLOW["drawing"]

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_the_workflow_runs_all_notebooks_and_no_others():
    assert [path.stem for path in NOTEBOOKS] == sorted(
        [
            *(*WORKFLOW["jobs"], *WORKFLOW["timed"], DRAWING["notebook"]),
            *(WORKFLOW["sweep"], *WORKFLOW["by_hand"], *WORKFLOW["shown"], *WORKFLOW["explored"]),
            *WORKFLOW["fetched"],
        ]
    )
    jobs = set(WORKFLOW["jobs"])
    assert all({job, *read} <= jobs for job, read in WORKFLOW["reads"].items())
    assert {job for read in WORKFLOW["timed"].values() for job in read} <= jobs
    assert set(WORKFLOW["splits"]) <= {split for splits in WORKFLOW["jobs"].values() for split in splits}


@each_notebook
def test_form(path):
    cells = code_cells(path)
    assert cells[0].metadata.get("tags") == ["parameters"]
    assert len(cells) <= 15
    assert [cell.source for cell in cells if len(cell.source.splitlines()) > 25] == []
    assert [cell.source for cell in cells if cell.outputs or cell.execution_count is not None] == []
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@each_notebook
def test_each_parameter_is_explained(path):
    parameters = papermill.inspect_notebook(path)
    assert parameters
    assert [name for name, parameter in parameters.items() if not parameter["help"]] == []


@each_notebook
def test_notebook_and_script_are_in_step(path):
    def content(file: Path) -> list[tuple[str, str, list[str]]]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in jupytext.read(file).cells]

    assert content(path) == content(path.with_suffix(".py"))


@each_notebook
@pytest.mark.parametrize("folder", ["config", "config/smoke"])
def test_configured_parameters_exist(path, folder):
    check_parameters(path, load_parameters(PROJECT / folder / f"{path.stem}.yaml"))


@each_notebook
def test_an_unknown_parameter_is_refused_before_anything_is_written(path, tmp_path):
    output = tmp_path / "executed" / "notebook.ipynb"
    with pytest.raises(ValueError, match=r"has no parameter 'no_such'.*Known are .*'(results|times)_dir'"):
        run(path, output, {"no_such": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Run a notebook with its small settings, after those it needs; returns the folder with its results and figures."""
    folder = tmp_path_factory.mktemp("smoke")

    @functools.cache
    def run_one(name: str) -> Path:
        if name == DRAWING["notebook"]:
            for job in [*WORKFLOW["jobs"], *WORKFLOW["timed"]]:
                run_one(job)
        for job in [*WORKFLOW["timed"].get(name, []), *WORKFLOW["reads"].get(name, [])]:
            run_one(job)
        for job in WORKFLOW["explored"].get(name, []):
            run_one(job)
        notebook = PROJECT / f"notebooks/{name}.ipynb"
        parameters = load_parameters(PROJECT / f"config/smoke/{name}.yaml")
        # Whatever a notebook writes goes to the test's folder.
        folders = [known for known in papermill.inspect_notebook(notebook) if known in FOLDERS]
        parameters |= {known: str(folder / known.removesuffix("_dir")) for known in folders}
        if name == "18_speech":
            parameters |= {"folder": str(folder / "speech"), "models": ["model"]}
            (folder / "speech").mkdir()
            sentences = [("espeak-ng", "One or two."), ("espeak-ng", "Not so."), ("reading", "All of it.")]
            tiny_whisper.write_folder(folder / "speech", sentences)
        if name == "19_across_backbones":
            tiny_smollm2.write_folder(folder / "tiny/assembled")
            parameters |= {"backbones": ["data/backbone/assembled", str(folder / "tiny/assembled")]}
        run(notebook, folder / f"{name}.ipynb", parameters)
        return folder

    # A kernel that is told another backend shows no figures.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        yield run_one


FOLDERS = ("results_dir", "times_dir", "figures_dir", "tables_dir")


@pytest.mark.parametrize("job", [*WORKFLOW["jobs"], WORKFLOW["sweep"], *WORKFLOW["by_hand"], *WORKFLOW["fetched"]])
def test_a_small_run_stores_its_rows(smoke, job, monkeypatch):
    monkeypatch.chdir(PROJECT)
    results = Results(smoke(job) / "results")
    rows = results.frame(job)
    assert len(rows)
    assert rows["question_id"].nunique() > 1 or job == "01_quickstart"
    note = results.provenance(job)
    assert note["files"]
    assert note["seconds"] > 0
    assert {"commit", "dirty", "packages", "device", "seed"} <= set(note)
    smoke_parameters = load_parameters(PROJECT / f"config/smoke/{job}.yaml")
    for after_the_rows in ("resamples", "ranked"):
        smoke_parameters.pop(after_the_rows, None)
    assert smoke_parameters.items() <= note["parameters"].items()


@pytest.mark.parametrize("job", WORKFLOW["timed"])
def test_a_small_run_stores_its_times(smoke, job, monkeypatch):
    monkeypatch.chdir(PROJECT)
    times = Times(smoke(job) / "times")
    rows = times.frame(job)
    assert {"full", "idselection", "uniform"} & set(rows["method"])
    assert {"select", "prefill", "decode", "encode"} <= set(rows["phase"])
    assert (rows[["median_ms", "runs", "batch", "threads"]] > 0).all(axis=None)
    note = times.provenance(job)
    assert note["files"] and {"commit", "dirty", "packages", "device"} <= set(note)
    smoke_parameters = load_parameters(PROJECT / f"config/smoke/{job}.yaml")
    smoke_parameters.pop("resamples", None)
    assert smoke_parameters.items() <= note["parameters"].items()


@each_notebook
def test_an_executed_notebook_shows_and_saves_each_figure_once(smoke, path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    folder = smoke(path.stem)
    cells = nbformat.read(folder / path.name, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(set(shown)) == len(shown)
    saving = [*WORKFLOW["jobs"], *WORKFLOW["by_hand"], *WORKFLOW["shown"], *WORKFLOW["fetched"]]
    if path.stem in saving and path.stem != "01_quickstart":
        saved = sorted((folder / "figures").glob(f"{path.stem[:2]}_*.png"))
        if sum(other.stem[:2] == path.stem[:2] for other in NOTEBOOKS) > 1:
            saved = [file for file in saved if file.stem in path.with_suffix(".py").read_text()]
        assert len(saved) == len(shown) > 0


def test_the_greedy_is_drawn_pick_by_pick(smoke, monkeypatch):
    monkeypatch.chdir(PROJECT)
    figures = smoke("15_pick_by_pick") / "figures"
    with Image.open(figures / "15_pick_by_pick.gif") as animation:
        count = animation.n_frames
    assert count == load_parameters(PROJECT / "config/smoke/15_pick_by_pick.yaml")["budget"] + 1
    page = (figures / "15_pick_by_pick.html").read_text()
    assert page.count("data:image/jpeg") == count
    assert read_origin(figures / "15_poster.png")["parameters"]["picture"] == "coffee"


@pytest.mark.parametrize("name", WORKFLOW["shown"])
@pytest.mark.parametrize("stored", [False, True], ids=["empty store", "measured rows"])
def test_stored_rows_are_shown_beside_other_numbers(name, stored, tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    results = Results(tmp_path / "results")
    if stored:
        rows = pd.concat([make_rows(budgets=(576,), method="full"), make_rows(budgets=(64,), method="fastv")])
        rows = rows.assign(dataset="vizwiz_vqa_val", backbone="llava-hf/llava-1.5-7b-hf")
        rows = pd.concat([rows, rows.assign(dataset="gqa", split="gqa")], ignore_index=True)
        results.write("made_up", rows, {})
    parameters = load_parameters(PROJECT / f"config/smoke/{name}.yaml")
    parameters |= {"results_dir": str(results.root), "figures_dir": str(tmp_path / "figures")}
    run(PROJECT / f"notebooks/{name}.ipynb", tmp_path / "executed.ipynb", parameters)
    cells = nbformat.read(tmp_path / "executed.ipynb", as_version=4).cells
    shown = "".join(str(output) for cell in cells if cell.cell_type == "code" for output in cell.outputs)
    accuracy = 100 * rows[rows["method"] == "fastv"]["correct"].mean() if stored else 0
    assert (f"48 / {accuracy:.1f}" in shown) == stored
    assert ("Nothing was measured that would have to stay apart" in shown) != stored


def test_figures_are_drawn_from_the_rows_alone(smoke, monkeypatch):
    monkeypatch.chdir(PROJECT)
    folder = smoke(DRAWING["notebook"])
    executed = nbformat.read(folder / f"{DRAWING['notebook']}.ipynb", as_version=4)
    assert "prune(" not in "".join(cell.source for cell in executed.cells)
    for output in map(Path, DRAWING["outputs"]):
        made = folder / output.parent.name / output.name
        assert made.stat().st_size > 100, output
        if made.suffix in (".png", ".pdf"):
            assert read_origin(made).keys() & {"results", "files"}, output
