"""The runner: parameters are checked before anything runs, and a failure leaves the executed notebook."""

import socket

import nbformat
import pytest
from jupyter_client.connect import LocalPortCache
from papermill.cli import papermill as papermill_command

from idsel_core.study.run.notebook_runner import check_parameters, defaults, load_parameters
from tests.support.commands import command

main = command("run")

SOURCE = """
results_dir = "results"  # the store
gammas = [
    0.0,
    20.0,
]  # on a log scale
questions: int = 4  # how many
share = 0.5  # of all
shuffle = True  # their order
limit = None  # none by default
"""

WORK = """
import sys
print(f"{questions} questions, {gammas}")
print("half\\rdone", file=sys.stderr)
1 / (questions - 4)
"""


BOMB = "a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
"""Doubled thirty times more, such a file needs more memory than there is."""


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "sweep.ipynb"
    cells = [
        nbformat.v4.new_code_cell(SOURCE.strip(), metadata={"tags": ["parameters"]}, id="parameters"),
        nbformat.v4.new_code_cell(WORK.strip(), id="work"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=cells), path)
    return path


def test_defaults_are_read_from_the_parameters_cell(notebook):
    assert defaults(notebook) == {
        "results_dir": "results",
        "gammas": [0.0, 20.0],
        "questions": 4,
        "share": 0.5,
        "shuffle": True,
        "limit": None,
    }


@pytest.mark.parametrize(
    "parameters",
    [{}, {"questions": 7, "gammas": []}, {"share": 1}, {"limit": 3}, {"limit": "all"}, {"shuffle": False}],
)
def test_what_fits_is_accepted(notebook, parameters):
    check_parameters(notebook, parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gamma": 20.0}, r"no parameter 'gamma', did you mean 'gammas'\? Known are \['gammas', 'limit', 'questions'"),
        ({"zzz": 20.0}, r"no parameter 'zzz'. Known are"),
        ({"questions": "7"}, r"'questions' of .* is '7' \(str\); allowed is int, e.g. 4"),
        ({"questions": True}, "is True .bool.; allowed is int"),
        ({"questions": 7.5}, "is 7.5 .float.; allowed is int"),
        ({"questions": None}, "is None .NoneType.; allowed is int"),
        ({"gammas": 20.0}, "is 20.0 .float.; allowed is list"),
        ({"shuffle": 1}, "is 1 .int.; allowed is bool"),
    ],
)
def test_what_does_not_fit_is_refused(notebook, parameters, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(notebook, parameters)


def test_an_unknown_notebook_names_those_there(notebook):
    with pytest.raises(FileNotFoundError, match=r"sweeps\.ipynb; its folder has \['sweep\.ipynb'\]"):
        defaults(notebook.with_name("sweeps.ipynb"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "must hold a mapping of names to values, not a list"),
        ("a: [1", "is not YAML"),
        ("a: 1\na: 2", "a name is given twice"),
        (BOMB, "references"),
        ("[" * 9000, "nested too deeply"),
    ],
    ids=["list", "cut off", "twice", "bomb", "nested"],
)
def test_a_parameter_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    path = tmp_path / "parameters.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_parameters(path)


def test_an_empty_parameter_file_means_the_defaults(tmp_path):
    path = tmp_path / "parameters.yaml"
    path.write_text("# nothing\n")
    assert load_parameters(path) == {}


def test_the_command_runs_a_notebook_with_file_and_pairs(notebook, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("questions: 5\ngammas: [1.0]\n")
    output = tmp_path / "logs" / "sweep.ipynb"
    assert main([str(notebook), str(output), "-f", str(tmp_path / "p.yaml"), "-p", "questions", "6"]) == 0
    executed = nbformat.read(output, as_version=4)
    assert executed.metadata.papermill.parameters == {"questions": 6, "gammas": [1.0]}
    shown = capsys.readouterr().err
    for line in ("sweep: 6 questions, [1.0]", "sweep: half", "sweep: done", "sweep: cell 3 of 3, "):
        assert line in shown


def test_a_failing_cell_ends_in_1_and_leaves_the_executed_notebook(notebook, tmp_path, capsys):
    output = tmp_path / "executed.ipynb"
    assert main([str(notebook), str(output)]) == 1
    assert (
        f"failed in cell 2: ZeroDivisionError: division by zero\nThe executed notebook with the traceback is {output}"
        in (capsys.readouterr().err)
    )
    assert "ZeroDivisionError" in output.read_text()


def test_a_wrong_call_ends_in_2_and_writes_nothing(notebook, tmp_path, capsys):
    output = tmp_path / "logs" / "executed.ipynb"
    assert main([str(notebook), str(output), "-p", "gamma", "1.0"]) == 2
    assert "error: " in capsys.readouterr().err
    assert not output.parent.exists()


@pytest.fixture
def taken(monkeypatch):
    """Give kernels a port that another process holds, so many times."""
    with socket.socket() as holder:
        holder.bind(("localhost", 0))
        holder.listen()
        free = LocalPortCache.find_available_port
        times = []

        def find(cache, ip):
            return holder.getsockname()[1] if times and times.pop() else free(cache, ip)

        monkeypatch.setattr(LocalPortCache, "find_available_port", find)
        yield times


def test_a_kernel_that_loses_its_port_to_another_is_started_again(notebook, tmp_path, capsys, taken):
    taken.append(True)
    assert main([str(notebook), str(tmp_path / "out.ipynb"), "-p", "questions", "5"]) == 0
    told = capsys.readouterr().err
    assert f"{notebook}: the kernel could not start; once more" in told
    assert "sweep: 5 questions, [0.0, 20.0]" in told


def test_a_kernel_that_cannot_start_ends_in_1(notebook, tmp_path, capsys, taken):
    taken.extend([True] * 100)
    assert main([str(notebook), str(tmp_path / "out.ipynb"), "-p", "questions", "5"]) == 1
    told = capsys.readouterr().err
    assert told.count("the kernel could not start; once more") == 2
    assert f"{notebook}: Kernel died before replying to kernel_info" in told


def test_plain_papermill_runs_the_same_notebook(notebook, tmp_path):
    output = tmp_path / "executed.ipynb"
    with pytest.raises(SystemExit) as stopped:
        papermill_command(
            [str(notebook), str(output), "-p", "questions", "5", "--no-progress-bar"], standalone_mode=True
        )
    assert not stopped.value.code
    assert "5 questions" in output.read_text()
