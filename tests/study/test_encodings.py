"""What a stored encoding depends on: images, weights, settings, and the code that made it."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml

import idsel_core.study.open_study as opening
from idsel_core.study.dataset import read_split
from idsel_core.study.encodings import fingerprint
from idsel_core.study.paths import DATA, ENCODINGS_DEPEND_ON, MODEL, PACKAGE, code_of, project_path

LOADED = """
import sys
from pathlib import Path
import idsel_core
import idsel_core.study.encodings, idsel_core.study.open_backbone
package = Path(idsel_core.__file__).parent
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file and Path(file).is_relative_to(package):
        print(Path(file).relative_to(package))
"""
# They say where files lie, hash and write them, or name a known word; no number of an encoding comes from them.
WITHOUT_NUMBERS = {
    "__init__.py",
    "families.py",
    "hints.py",
    "quantisation.py",
    "study/__init__.py",
    "study/paths.py",
    "study/devices.py",
    "study/ends.py",
    "study/backbone_folders.py",
}


def test_all_code_that_encodes_is_named():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, cwd=PACKAGE.parent
    )
    named = {str(path.relative_to(PACKAGE)) for path in code_of(ENCODINGS_DEPEND_ON)}
    loaded = {name for name in done.stdout.split() if not name.startswith("study/store/")}
    assert "scores/attention_rows.py" in loaded
    assert loaded - named <= WITHOUT_NUMBERS
    assert not any(name.startswith(("methods/", "selection/")) for name in named | loaded)


def test_the_workflow_encodes_again_when_the_same_code_changes():
    folders = yaml.safe_load((PACKAGE.parent / "config/workflow.yaml").read_text())["code"]["encodings"]["of"]
    assert sorted(folders) == sorted(f"idsel_core/{name}" for name in ENCODINGS_DEPEND_ON)


@pytest.mark.parametrize("file", ["scores/attention_rows.py", "backbones/llava.py", "study/encodings.py"])
def test_changed_code_is_another_fingerprint(tmp_path, file):
    split = read_split("validation", DATA)
    package = tmp_path / "idsel_core"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = fingerprint(split, MODEL, package)
    assert before == fingerprint(split)
    with (package / file).open("a") as code:
        code.write("# changed\n")
    after = fingerprint(split, MODEL, package)
    assert {name for name in before if before[name] != after[name]} == {"code"}


def test_a_method_changes_no_fingerprint(tmp_path):
    split = read_split("validation", DATA)
    package = tmp_path / "idsel_core"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    with (package / "methods/topk.py").open("a") as code:
        code.write("# changed\n")
    assert fingerprint(split, MODEL, package) == fingerprint(split)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "model.safetensors"])
def test_other_settings_or_weights_are_another_fingerprint(tmp_path, file):
    split = read_split("validation", DATA)
    assert (MODEL / file).is_file()
    for path in MODEL.iterdir():
        if path.is_file():
            (tmp_path / path.name).symlink_to(path.resolve())
    before = fingerprint(split, tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).unlink()
    (tmp_path / file).write_bytes(content + b" ")
    after = fingerprint(split, tmp_path)
    assert {name for name in before if before[name] != after[name]} == {file}


def test_two_backbones_do_not_share_stored_encodings(tmp_path, monkeypatch):
    other = tmp_path / "other" / "assembled"
    shutil.copytree(project_path(MODEL).resolve(), other, copy_function=os.symlink)
    seen = []

    def noted(path, made_from):
        seen.append((path, made_from))

    monkeypatch.setattr(opening, "read_encoding", noted)
    monkeypatch.setattr(opening, "encode_split", lambda *given: "encoded")
    for backbone in (project_path(MODEL), other):
        assert opening.open_study("validation", backbone=backbone, limit=3, cache=tmp_path).encoded == "encoded"
    (first, _), (second, _) = seen
    assert first == tmp_path / "validation.safetensors"
    assert second == tmp_path / "other-validation.safetensors"
