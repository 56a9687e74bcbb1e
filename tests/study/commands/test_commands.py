"""The command ``idsel``: it answers at once, helps, and tells in one sentence what is wrong."""

import json
import subprocess
import sys
import time

import pytest

from idsel_core.study.cli import COMMANDS, main
from idsel_core.study.paths import MODEL
from tests.support.commands import command
from tests.support.project import PROJECT

IDSEL = [sys.executable, "-m", "idsel_core.study.cli"]
HEAVY = {"torch", "transformers", "pandas", "numpy", "pyarrow", "matplotlib", "snakemake", "papermill", "yaml"}


def test_help_imports_nothing_heavy_and_answers_at_once():
    code = "import sys; from idsel_core.study.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"sys.exit(str({HEAVY!r} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert told.stderr.strip() == "set()"
    # Other processes may keep the machine busy: the fastest of several counts.
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([*IDSEL, "--help"], cwd=PROJECT, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name} " not in said] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_says_what_it_does_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert f"\n    idsel {name}" in said
    shown = said.split("options:")[1].split("\n")
    bare = [line for line in shown if line.lstrip().startswith("-") and not line.lstrip().startswith("-h")]
    assert bare or name == "explain"


def refused(capsys, words, status=2):
    """Return what a wrong call is told, which is one line and no traceback."""
    assert command(words[0])(words[1:]) == status
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    last = said.split("\n")[-1]
    assert "error: " in last and (last == said or said.startswith("usage: "))
    return last


@pytest.fixture
def model(tmp_path):
    """Return a function that writes a model folder with a configuration and no weights."""

    def write(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("asking", ["evaluate", "encode"])
def test_a_model_that_cannot_be_evaluated_is_told_why(asking, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bert = refused(capsys, [asking, "--backbone", model(model_type="bert")])
    assert "holds a model of type 'bert', which is not supported; supported: gemma3" in bert
    assert "holds no weights (*.safetensors)" in refused(capsys, [asking, "--backbone", model(model_type="llava")])
    assert "of type None" in refused(capsys, [asking, "--backbone", model()])
    (tmp_path / "config.json").write_text("[")
    assert "cannot be read" in refused(capsys, [asking, "--backbone", str(tmp_path)])
    (tmp_path / "config.json").unlink()
    assert "the folder has no config.json" in refused(capsys, [asking, "--backbone", str(tmp_path)])
    hub = refused(capsys, [asking, "--backbone", "llava-hf/llava-1.5-7b-hf"])
    assert "no model 'llava-hf/llava-1.5-7b-hf'" in hub and "Without a network" in hub and "make env" not in hub


def test_encodings_of_a_model_without_a_fixed_grid_are_not_stored(tmp_path, model, capsys):
    folder = model(model_type="qwen2_vl")
    (tmp_path / "model.safetensors").touch()
    assert "the study encodes all other images while it asks" in refused(capsys, ["encode", "--backbone", folder])


def test_a_missing_embedded_backbone_names_its_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert f"no model in {MODEL}: run `make env`" in refused(capsys, ["evaluate", "--split", "x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--method", "idselecton"], "unknown method 'idselecton', did you mean 'idselection'?; known: "),
        (["evaluate", "--budget", "0"], "budget must be"),
        (["evaluate", "--budget", "many"], "visual tokens such as 64, or a share such as 0.1, not 'many'"),
        (["evaluate", "--split", "tset"], "no split 'tset' in data/scenes; there are: hard, rich, rich-"),
        (["evaluate", "--data", "nowhere"], "no data nowhere; beside it are: benchmarks, config, data,"),
        (["evaluate", "--limit", "-3"], "argument --limit: must be an int of 0 or more, not '-3'"),
        (["evaluate", "--knob", "gama", "3"], "no knob 'gama', did you mean 'gamma'"),
        (["evaluate", "--method", "cdpruner", "--knob", "negated", "0"], "must be true or false, not '0'"),
        (["evaluate", "--method", "full", "--knob", "gamma", "3"], "full has no knobs"),
        (["evaluate", "--knob", "gamma", "3", "--knob", "gamma", "4"], "each knob may be given once"),
        (["evaluate", "--device", "abacus"], "device 'abacus' is unknown; allowed are cpu, cuda"),
        (["cost", "--model", "nowhere"], "no model in nowhere: give a folder"),
        (["cost", "--budgets", "64x"], "must be visual tokens such as 64, or 576x2,64x30 by layers, not '64x'"),
        (["time", "--model", "nowhere"], "no model in nowhere"),
        (["time", "--device", "abacus"], "device 'abacus' is unknown"),
        (["sweep", "nowhere.yaml"], "no grid nowhere.yaml"),
        (["sweep", "config/grids/example.yaml", "--profile", "nowhere"], "no profile nowhere: it has no config.yaml"),
        (["sweep", "config/grids/example.yaml", "--cores", "0"], "must be an int of 1 or more, not '0'"),
        (["evaluate", "--budget", "64.0"], "not 64.0; write 64 for tokens, 0.5 for a share"),
        (["evaluate", "--knob", "gamma", "nan"], "knob gamma of idselection must be a number"),
        (["explain", "nowhere.png"], "no file nowhere.png; in its folder are: none of the kind"),
        (["explain", "docs/figures/nowhere.png"], "no file docs/figures/nowhere.png; in its folder are: "),
        (["explain", "docs"], "no file docs; "),
        (["explain", "README.md"], "no table of README.md tells what it was made from"),
        (["run", "notebooks/nowhere.ipynb", "out.ipynb"], "no notebook notebooks/nowhere.ipynb"),
        (["run", "notebooks/07_sweep.ipynb", "out.ipynb", "-p", "budget", "[1]"], "no parameter 'budget', did you"),
        (["gallery", "nowhere"], "no executed notebooks in nowhere/"),
        (["lease"], "name a command to run"),
        (["harness", "--backbone", "x", "--tasks", "pope"], "needs lmms-eval, which has an environment of its own"),
        (["evaluat"], "invalid choice: 'evaluat' (choose from"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told_in_one_sentence(words, message, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    assert message in refused(capsys, words)


def test_outside_the_project_the_workflow_says_where_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "run this in the folder of the project" in refused(capsys, ["figures"])
    (tmp_path / "grid.yaml").write_text("method: full\n")
    assert "run this in the folder of the project" in refused(capsys, ["sweep", "grid.yaml"])


def test_a_package_that_is_missing_is_named_with_its_remedy(monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setitem(sys.modules, "papermill", None)
    told = refused(capsys, ["run", "notebooks/07_sweep.ipynb", "out.ipynb"])
    assert "idsel run needs papermill, which is not installed: pip install 'idsel_core[notebooks]'" in told


def test_a_knob_reaches_the_method_as_its_type(monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)

    def accuracy(*more):
        arguments = ["--method", "cdpruner", "--budget", "16", "--limit", "35", *more]
        assert command("evaluate")(arguments) == 0
        return capsys.readouterr().out

    plain = accuracy()
    assert plain == accuracy("--knob", "negated", "False") != accuracy("--knob", "negated", "True")
    assert "35 questions of split validation, of 35 wanted: 5 " in plain and "left whole" not in plain
    assert "the budget of 600 is above the tokens of some images, which are left whole" in accuracy(
        "--budget", "600", "--limit", "7"
    )
