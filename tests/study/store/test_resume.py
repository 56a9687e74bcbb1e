"""An evaluation resumes after a kill, and gives the rows of one that was not killed."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from idsel_core.methods import get_method
from idsel_core.study.evaluate import Study
from idsel_core.study.open_study import open_study
from idsel_core.study.store import resume
from idsel_core.study.store.results import Results
from idsel_core.study.store.resume import ResumableRows
from idsel_core.study.store.rows import validate
from tests.support.project import PROJECT
from tests.support.resumed import BATCH, METHODS

# Kills itself at the start of a step, or while a chunk is on disk under its temporary name.
KILLED = """
import os, signal, sys
from pathlib import Path
from idsel_core.study.store import resume
from idsel_core.study.evaluate import Study
from idsel_core.study.open_study import open_study
from tests.support.resumed import BATCH, METHODS

resume.ResumableRows.__init__.__defaults__ = (0.0,)
where, count = sys.argv[2], int(sys.argv[3])

def counted(function):
    def call(*arguments):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call

if where == "step":
    Study._shorten = counted(Study._shorten)
else:
    os.fsync = counted(os.fsync)
open_study("validation", limit=14, cache=sys.argv[1]).run(METHODS, BATCH, Path(sys.argv[1]) / "kept")
"""


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(ResumableRows.__init__, "__defaults__", (0.0,))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return open_study("validation", limit=14, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def undisturbed(study):
    return validate("job", study.run(METHODS, BATCH))


@pytest.fixture
def asked(monkeypatch):
    """Count the steps that are really done."""
    steps = []
    ask = Study._shorten

    def counted(study, method, *others):
        steps.append(method)
        return ask(study, method, *others)

    monkeypatch.setattr(Study, "_shorten", counted)
    return steps


@pytest.mark.fast_for(where=["step"])
@pytest.mark.parametrize(("where", "count", "kept"), [("step", 6, 4), ("write", 8, 3), ("write", 9, 4)])
def test_a_killed_evaluation_resumes_and_gives_the_same_rows(study, undisturbed, asked, tmp_path, where, count, kept):
    # A key and every chunk sync the file and then its folder. The four steps of a batch are answered together.
    command = [sys.executable, "-c", KILLED, str(tmp_path), where, str(count)]
    killed = subprocess.run(command, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = study.run(METHODS, BATCH, tmp_path / "kept")
    assert len(asked) == 12 - kept
    assert validate("job", rows).equals(undisturbed)


def test_a_finished_run_asks_nothing_again_until_its_job_is_stored(study, undisturbed, asked, tmp_path):
    results = Results(tmp_path)
    first = study.run(METHODS, BATCH, results.resume_folder("job"))
    again = study.run(METHODS, BATCH, results.resume_folder("job"))
    assert len(asked) == 12
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    other = results.resume_folder("other")
    other.mkdir()
    results.write("job", again, {})
    assert validate("job", results.frame("job").drop(columns="job")).equals(undisturbed)
    assert [path.name for path in other.parent.iterdir()] == ["other"]


@pytest.mark.fast_for(change=["methods"])
@pytest.mark.parametrize("change", ["methods", "batch", "questions", "weights"])
def test_another_run_starts_anew(study, asked, tmp_path, change):
    study.run(METHODS, BATCH, tmp_path)
    asked.clear()
    other, methods, batch = study, METHODS, BATCH
    if change == "methods":
        methods = [*METHODS[:3], get_method("random", budget=16, seed=4)]
    elif change == "batch":
        batch = 7
    elif change == "questions":
        other = open_study("validation", limit=21, cache=tmp_path / "cache")
    else:
        bias = next(study.backbone.model.parameters()).data
        bias += 1e-3
    try:
        other.run(methods, batch, tmp_path)
    finally:
        if change == "weights":
            bias -= 1e-3
    assert len(asked) == 4 * -(-len(other.split.questions) // batch)
    assert len(list(tmp_path.glob("*/key.json"))) == 2


def chunked(folder: Path, steps: int = 6) -> tuple[ResumableRows, list[Path]]:
    kept = ResumableRows(folder, {"a": 1})
    for step in range(steps):
        kept.add(pd.DataFrame({"step": [step], "text": ["x" * 50]}))
    return kept, sorted(kept.folder.glob("*.parquet"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "lost"])
def test_a_damaged_chunk_and_those_after_it_are_run_again(tmp_path, damage):
    whole, chunks = chunked(tmp_path)
    if damage == "lost":
        chunks[2].unlink()
    else:
        chunks[2].write_bytes(chunks[2].read_bytes()[: 40 if damage == "truncated" else 0])
    again = ResumableRows(tmp_path, {"a": 1})
    assert again.done == 2
    assert again.rows()["step"].tolist() == [0, 1]
    for step in range(2, 6):
        again.add(whole.rows().iloc[[step]])
    assert ResumableRows(tmp_path, {"a": 1}).rows().equals(whole.rows())


def test_chunks_have_the_length_asked_for_and_no_folder_means_no_file(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(resume.time, "monotonic", lambda: now)
    kept = ResumableRows(tmp_path, {}, every=30)
    for now in range(10, 110, 10):  # noqa: B007
        kept.add(pd.DataFrame({"step": [0]}))
    names = [path.name for path in sorted(kept.folder.glob("*.parquet"))]
    assert names == ["00000000-00000003.parquet", "00000003-00000006.parquet", "00000006-00000009.parquet"]
    monkeypatch.chdir(tmp_path / kept.folder.name)
    free = ResumableRows(None, {})
    free.add(pd.DataFrame({"step": [0]}))
    assert len(free.rows()) == 1 and len(list(Path.cwd().iterdir())) == 4


def test_a_full_disk_loses_only_rows_after_the_last_chunk(study, undisturbed, asked, tmp_path, monkeypatch):
    sync, left = os.fsync, 12

    def full(descriptor):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; what was stored before is untouched: .*parquet"):
            study.run(METHODS, BATCH, tmp_path)
    assert list(tmp_path.glob("*/.*")) == []
    asked.clear()
    assert validate("job", study.run(METHODS, BATCH, tmp_path)).equals(undisturbed)
    assert 0 < len(asked) < 12


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_asked(study, asked, tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    with pytest.raises(OSError, match="results"):
        study.run(METHODS, BATCH, Results(tmp_path / "results").resume_folder("job"))
    assert asked == []
