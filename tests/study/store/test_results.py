"""The result store: what goes in comes out, nothing half-written is ever seen, and faults are named."""

import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from idsel_core.study.store.files import CorruptResult
from idsel_core.study.store.provenance import provenance, sha256
from idsel_core.study.store.results import Results
from idsel_core.study.store.rows import SCHEMA
from tests.support.project import PROJECT
from tests.support.rows import make_rows
from tests.support.small import disk

FILES = ["_provenance/budget.json", "budget.parquet"]


def files(store):
    return sorted(str(file.relative_to(store.root)) for file in store.root.rglob("*") if file.is_file())


@pytest.fixture
def store(tmp_path):
    return Results(tmp_path / "results")


def test_rows_come_back_as_they_were(store):
    rows = make_rows()
    path = store.write("budget", rows, {"seed": 0})
    assert path == store.root / "budget.parquet"
    back = store.frame("budget")
    assert list(back) == ["job", *SCHEMA.names]
    for name in rows:
        pd.testing.assert_series_equal(
            back[name], rows[name].astype(back[name].dtype), check_names=False, obj=f"column {name}"
        )
    assert store.jobs() == ["budget"]
    assert files(store) == FILES


def test_a_run_id_stands_for_one_configuration_of_one_job(store):
    store.write("budget", make_rows(), {})
    store.write("gamma", make_rows(), {})
    rows = store.frame()
    assert rows.groupby("run_id")[["job", "budget"]].nunique().max().tolist() == [1, 1]
    assert rows["run_id"].nunique() == 4
    again = Results(store.root.parent / "again")
    again.write("budget", make_rows().sample(frac=1, random_state=1), {})
    assert set(again.frame()["run_id"]) == set(store.frame("budget")["run_id"])


def test_provenance_is_beside_and_inside_the_rows(store, tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    note = provenance({"gamma": 20.0}, [weights], seed=3, started=time.perf_counter() - 2)
    store.write("budget", make_rows(), note)
    back = store.provenance("budget")
    assert back["parameters"] == {"gamma": 20.0}
    assert back["files"] == {"model.safetensors": sha256(weights)}
    assert back["seed"] == 3
    assert back["seconds"] >= 2
    assert back["packages"]["torch"]
    assert back["rows"] == 24
    assert back == json.loads((store.root / "_provenance/budget.json").read_text())


def test_provenance_names_the_commit_it_was_made_from():
    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=PROJECT)

    head = git("rev-parse", "HEAD")
    if head.returncode:
        pytest.skip("not in a git checkout")
    note = provenance({})
    assert note["commit"] == head.stdout.strip()
    assert isinstance(note["dirty"], bool)


def test_only_what_is_published_may_change_in_a_clean_checkout(tmp_path, monkeypatch):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    published = ["README.md", "docs/timing.json", "docs/figures/gamma.png", "docs/tables/gamma.md"]
    for name in (*published, "idsel_core/code.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr("idsel_core.study.store.provenance.__file__", str(tmp_path / "idsel_core/code.py"))
    for name in (*published, "docs/figures/new.png"):
        (tmp_path / name).write_text("new")
    assert provenance({})["dirty"] is False
    (tmp_path / "idsel_core/code.py").write_text("new")
    assert provenance({})["dirty"] is True


def test_filters_choose_rows_and_refuse_what_is_unknown(store):
    store.write("budget", make_rows(), {})
    store.write("random", make_rows(method="random"), {})
    assert store.frame(method="random", budget=[16])["budget"].unique().tolist() == [16.0]
    assert len(store.frame(budget=[16, 64])) == 48
    with pytest.raises(ValueError, match=r"no rows with method = 'topk'; there are \['idselection', 'random'\]"):
        store.frame(method="topk")
    with pytest.raises(KeyError, match=r"unknown columns \['metod'\]"):
        store.frame(metod="topk")
    with pytest.raises(KeyError, match=r"no rows of job 'gamma'.*\['budget', 'random'\]"):
        store.frame("gamma")


def test_an_empty_store_says_what_to_run(store):
    assert store.jobs() == []
    with pytest.raises(ValueError, match="make figures"):
        store.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.rename(columns={"answer": "note"}), r"missing columns \['answer'\], unknown columns \['note'\]"),
        (lambda r: r.assign(gamma="high"), "column 'gamma'.*is not double"),
        (lambda r: r.assign(tokens_kept=16.5), "column 'tokens_kept'.*is not int32"),
        (lambda r: r.assign(prediction=2), "column 'prediction' .*holds int64, which is not string"),
        (lambda r: r.assign(split=None), "column 'split'.*lacks a value in 24 rows"),
        (lambda r: r.assign(correct=np.nan), "column 'correct'.*lacks a value in 24 rows"),
        (lambda r: r.assign(correct=100.0), "column 'correct'.*holds 100.0; allowed is 0 to 1"),
        (lambda r: r.assign(on_objects=-0.5), "column 'on_objects'.*holds -0.5; allowed is 0 to 1"),
        (lambda r: r.assign(tokens_kept=600), "tokens_kept is 600; allowed is 0 to tokens_before = 576"),
        (lambda r: pd.concat([r, r.head(1)]), "question 'q0000' twice in run"),
        (lambda r: r.head(0), "has no rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_lost(store, change, message):
    store.write("budget", make_rows(), {})
    before = {file: (store.root / file).read_bytes() for file in files(store)}
    with pytest.raises(ValueError, match=message):
        store.write("budget", change(make_rows()), {})
    assert {file: (store.root / file).read_bytes() for file in files(store)} == before


def test_a_provenance_that_is_not_json_writes_nothing(store):
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.write("budget", make_rows(), {"device": object()})
    assert not store.root.exists()


@pytest.mark.parametrize("job", ["", "../budget", "a/b", ".hidden", "a b"])
def test_a_job_name_that_could_leave_the_folder_is_refused(store, job):
    with pytest.raises(ValueError, match="no name for a job"):
        store.write(job, make_rows(), {})


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_a_corrupt_file_is_named_with_the_remedy(store, damage):
    path = store.write("budget", make_rows(2000), {})
    content = path.read_bytes()
    middle = len(content) // 4
    path.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "text": b"run_id,question_id\n",
            "flipped": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        }[damage]
    )
    with pytest.raises(CorruptResult, match=r"budget\.parquet cannot be read .*delete .*make figures"):
        store.frame()


def test_a_file_with_other_columns_is_refused_and_they_are_named(store):
    path = store.write("budget", make_rows(), {})
    table = pq.read_table(path)
    other = table.drop_columns(["gamma"]).append_column("colour", table["method"])
    pq.write_table(other.set_column(0, "run_id", [list(range(24))]), path)
    said = r"missing columns: gamma; unknown columns: colour; columns of another type: run_id \(int64, not string\)"
    with pytest.raises(CorruptResult, match=rf"budget\.parquet has other columns than this code reads \({said}\); del"):
        store.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "holds 23 rows that are not the 24 that the store wrote"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "holds 25 rows that are not the 24 that the store wrote"),
        (
            lambda t: t.set_column(t.schema.get_field_index("correct"), "correct", [[1.0] * 24]),
            "holds 24 rows that are not the 24",
        ),
        (
            lambda t: t.set_column(
                t.schema.get_field_index("positions"), t.field("positions"), [["keep"] + ["compact"] * 23]
            ),
            "holds 24 rows that are not",
        ),
        (lambda t: t.replace_schema_metadata(None), "holds 24 rows that are not the 0 that the store wrote"),
    ],
)
def test_rows_that_were_altered_are_refused(store, change, message):
    path = store.write("budget", make_rows(), {})
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(CorruptResult, match=rf"budget\.parquet {message}.*; delete .* and run `make figures`"):
        store.frame()
    with pytest.raises(CorruptResult):
        store.check("budget")


def test_rows_in_another_order_are_the_same_rows(store):
    path = store.write("budget", make_rows(), {})
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(23, -1, -1))).select(table.column_names[::-1]), path)
    assert store.frame()["question_id"].tolist() == [f"q{i:04d}" for i in range(11, -1, -1)] * 2


def test_pandas_reads_the_folder(store):
    for method in ("topk", "random"):
        store.write(method, make_rows(method=method), {"seed": 0})
    store.resume_folder("other").mkdir(parents=True)
    (store.resume_folder("other") / "0-1.parquet").write_bytes(b"")
    (store.root / ".topk.parquet.1-a.tmp").write_bytes(b"")
    rows = pd.read_parquet(store.root)
    wanted = store.frame()
    pd.testing.assert_frame_equal(rows, wanted.drop(columns="job"))
    assert rows["run_id"].str.rpartition("-")[0].tolist() == wanted["job"].tolist()
    assert pd.read_parquet(store.root, filters=[("method", "==", "topk")], columns=["correct"]).shape == (24, 1)


def test_rows_stored_in_two_files_are_refused_and_both_named(store):
    path = store.write("budget", make_rows(), {})
    (store.root / "copy.parquet").write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"stored twice, in .*budget\.parquet and .*copy\.parquet"):
        store.frame()


def test_a_full_disk_leaves_what_was_stored(store, monkeypatch):
    store.write("budget", make_rows(), {})
    before = {file: (store.root / file).read_bytes() for file in files(store)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; what was stored before is untouched.*budget"):
            store.write("budget", make_rows(2000), {})
    assert {file: (store.root / file).read_bytes() for file in files(store)} == before
    store.write("budget", make_rows(2000), {})
    assert len(store.frame()) == 4000


def test_a_file_system_that_refuses_bytes_leaves_what_was_stored(store):
    store.write("budget", make_rows(), {})
    before = store.frame()
    script = (
        PREAMBLE
        + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
store.write("budget", make_rows(4000), {})
"""
    )
    done = subprocess.run([sys.executable, "-c", script, str(store.root)], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "what was stored before is untouched" in done.stderr
    assert files(store) == FILES
    pd.testing.assert_frame_equal(store.frame(), before)


def test_a_full_disk_and_a_read_only_one(store):
    with disk(store.root, "size=200k") as remount:
        store.write("budget", make_rows(), {})
        before = store.frame()
        with pytest.raises(OSError, match=r"No space left on device; what was stored before is untouched.*budget"):
            store.write("budget", make_rows(40000), {})
        remount("size=20m,ro")
        with pytest.raises(OSError, match=r"Read-only file system; what was stored before is untouched.*budget"):
            store.write("budget", make_rows(40000), {})
        with pytest.raises(PermissionError, match=r"rows could not be stored: the folder cannot be written to"):
            store.check()
        pd.testing.assert_frame_equal(store.frame(), before)
        remount("rw")
        store.write("budget", make_rows(40000), {})
        assert len(store.frame()) == 80000
        assert files(store) == FILES


def test_check_names_all_damaged_files(store):
    for job in ("one", "two", "three"):
        store.write(job, make_rows(), {})
    store.check("one", "two", "not stored")
    for job in ("one", "two"):
        (store.root / f"{job}.parquet").write_bytes(b"PAR1")
    store.check("three")
    with pytest.raises(
        CorruptResult, match=r"one\.parquet cannot be read .* all damaged files: \S+one\.parquet \S+two\.pa"
    ):
        store.check("one", "two", "three")


PREAMBLE = """
import os, sys
from idsel_core.study.store.results import Results
from tests.support.rows import make_rows

store = Results(sys.argv[1])
"""

# Stops where the temporary file is on disk, but not yet renamed.
STALLED = (
    PREAMBLE
    + """
def stall(descriptor):
    print("written", flush=True)
    sys.stdin.read()

os.fsync = stall
store.write("budget", make_rows(4000), {"count": 4000})
"""
)

REPLACING = (
    PREAMBLE
    + """
tables = {count: make_rows(count) for count in (2000, 4000)}
print("ready", flush=True)
while True:
    for count, rows in tables.items():
        store.write("budget", rows, {"count": count})
"""
)


def start(script: str, store: Results) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )
    assert child.stdout.readline()
    return child


@pytest.mark.parametrize("old", [False, True])
def test_a_killed_writer_leaves_no_partial_file_and_the_next_one_completes(store, tmp_path, old):
    if old:
        store.write("budget", make_rows(), {})
        before = store.frame()
    child = start(STALLED, store)
    child.kill()
    child.communicate()
    assert [file.name[: file.name.index("-")] for file in store.root.iterdir() if file.suffix == ".tmp"] == [
        f".budget.parquet.{child.pid}"
    ]
    assert store.jobs() == (["budget"] if old else [])
    if old:
        pd.testing.assert_frame_equal(store.frame(), before)

    undisturbed = Results(tmp_path / "undisturbed")
    for results in (store, undisturbed):
        results.write("budget", make_rows(4000), {"count": 4000})
    assert files(store) == FILES
    for name in FILES:
        assert (store.root / name).read_bytes() == (undisturbed.root / name).read_bytes()


def test_two_writers_of_one_job_both_succeed(store):
    child = start(STALLED, store)
    store.write("budget", make_rows(), {})
    assert len(store.frame()) == 24
    child.communicate()
    assert child.returncode == 0
    assert len(store.frame()) == 8000
    assert files(store) == FILES


@pytest.mark.parametrize("seconds", [0.0, 0.013, 0.037, 0.071, 0.113])
def test_killed_at_any_moment_a_reader_sees_old_or_new_rows(store, seconds):
    store.write("budget", make_rows(2000), {"count": 2000})
    child = start(REPLACING, store)
    time.sleep(seconds)
    child.kill()
    child.communicate()
    assert store.jobs() == ["budget"]
    assert len(store.frame("budget")) == 2 * store.provenance("budget")["count"]
