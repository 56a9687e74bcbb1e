"""Start-up: the command line answers at once, and the selection costs what torch costs."""

import resource
import subprocess
import sys

import pytest

from tests.support.project import PROJECT

HELP = "from idsel_core.study.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def fastest(*codes: str, turns: int) -> list[float]:
    """Return the least processor seconds that a fresh process takes for each code; they take turns."""
    seconds = [[] for _ in codes]
    for _ in range(turns):
        for code, taken in zip(codes, seconds, strict=True):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(code)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return [min(taken) for taken in seconds]


def test_help_imports_no_package_of_the_core_or_of_the_study():
    printed = run(f"{HELP}import sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})")
    assert "usage: idsel" in printed
    heavy = {"torch", "numpy", "transformers", "pandas", "pyarrow", "matplotlib", "snakemake", "papermill", "yaml"}
    assert not heavy & set(printed.splitlines()[-1].split())


def test_help_takes_less_than_three_tenths_of_a_second():
    (seconds,) = fastest(HELP, turns=3)
    assert seconds < 0.3, seconds


def test_a_notebook_is_run_without_building_grammars():
    """Newer jsonschema builds 39 grammars of addresses when it is imported, which takes longer than torch."""
    printed = run("import sys, papermill, jupyterlab_server\nprint(*{name.partition('.')[0] for name in sys.modules})")
    assert {"jsonschema", "papermill"} <= set(printed.split()) and "lark" not in printed.split()


def test_a_sweep_is_read_without_importing_models():
    """Twice, by the command and by Snakemake; transformers takes longer to import than all else together."""
    printed = run("import sys, idsel_core.study.run.sweeps\nprint(*{name.partition('.')[0] for name in sys.modules})")
    assert "pandas" in printed.split() and "transformers" not in printed.split()


@pytest.mark.slow
def test_the_selection_takes_hardly_longer_to_import_than_torch():
    select = "from idsel_core import id_select\nid_select"
    torch, selection = fastest("import torch", select, turns=4)
    assert selection < 1.15 * torch, (selection, torch)
