"""The built wheel holds all that the package needs, and works from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.project import PROJECT

pytestmark = pytest.mark.slow

PRUNE = """
import sys
import torch
import idsel_core
from idsel_core import IDSelection, build_random, list_architectures, prune
from idsel_core.loading.random_models import read_architecture

assert idsel_core.__file__.startswith(sys.prefix), idsel_core.__file__
assert "llava-1.5-7b" in list_architectures()
config = read_architecture("llava-1.5-7b")
small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
config.text_config.update({**small, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 32100})
config.vision_config.update({**small, "num_hidden_layers": 3, "image_size": 56})
model = build_random(config, dtype=torch.float32)
prompt = torch.tensor([[1, *[config.image_token_id] * 16, 5, 6]])
inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt), "pixel_values": torch.randn(1, 3, 56, 56)}
with prune(model, IDSelection(budget=4)) as run, torch.no_grad():
    model.generate(**inputs, max_new_tokens=2, do_sample=False)
print([(record.before, record.after) for record in run.report])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that nothing is left in the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(PROJECT / "idsel_core", source / "idsel_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, source], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """Install the wheel into an empty environment that sees the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Folders that a .pth names are searched last, and their own .pth files, such as this project's, are not read.
    (site / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    return folder


def run(environment: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program = environment / "bin" / command[0]
    return subprocess.run([program, *command[1:]], cwd=folder, env=clean, capture_output=True, text=True)


def test_the_wheel_holds_types_and_configurations_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"idsel_core/py.typed", "idsel_core/__init__.pyi"} <= names
    configs = {f"idsel_core/loading/configs/{path.name}" for path in (PROJECT / "idsel_core/loading/configs").iterdir()}
    assert configs <= names and len(configs) > 10
    modules = {path.relative_to(PROJECT).as_posix() for path in (PROJECT / "idsel_core").rglob("*.py")}
    assert modules <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"idsel_core"}


def test_an_installed_wheel_prunes_a_model_in_an_empty_folder(environment, tmp_path):
    done = run(environment, tmp_path, "python", "-c", PRUNE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[(16, 4)]"
    assert list(tmp_path.iterdir()) == []


def test_the_command_of_an_installed_wheel_works_in_an_empty_folder(environment, tmp_path):
    told = run(environment, tmp_path, "idsel", "--help")
    assert told.returncode == 0 and "evaluate" in told.stdout
    cost = run(environment, tmp_path, "idsel", "cost", "--model", "llava-1.5-7b", "--budgets", "576", "64")
    assert cost.returncode == 0 and "576x32" in cost.stdout, cost.stderr
    asked = run(environment, tmp_path, "idsel", "evaluate")
    assert asked.returncode == 2 and "Traceback" not in asked.stderr
    assert list(tmp_path.iterdir()) == []
