"""The store of times."""

from __future__ import annotations

import pandas as pd
import pytest

from idsel_core import IDSelection, adapter_for
from idsel_core.study.report import theme as figures
from idsel_core.study.store.explain import explain
from idsel_core.study.store.files import CorruptResult
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import SCHEMA, Times
from idsel_core.study.timing.phases import time_methods
from idsel_core.study.timing.records import Timing
from tests.support import tiny


@pytest.fixture(scope="module")
def rows():
    backbone = adapter_for(tiny.build("clip"))
    timings = time_methods(backbone, tiny.prompts((1,)), [None, IDSelection(7)], runs=2, warmup=0, new_tokens=1)
    return pd.DataFrame(timings).assign(backbone="tiny")


def test_the_store_has_a_column_for_all_that_a_timing_tells():
    assert {"backbone", *Timing.__dataclass_fields__} == set(SCHEMA.names)


def test_rows_come_back_as_they_were_written(rows, tmp_path):
    store = Times(tmp_path)
    path = store.write("trial", rows, provenance({"runs": 2}))
    assert path == tmp_path / "times/trial.parquet"
    assert store.jobs() == ["trial"]
    back = store.frame("trial")
    assert list(back) == SCHEMA.names
    for name in rows:
        assert back[name].isna().equals(rows[name].isna())
        assert back[name].dropna().tolist() == rows[name].dropna().tolist()
    assert store.provenance("trial")["parameters"] == {"runs": 2}
    assert Results(tmp_path).jobs() == []


def test_a_figure_tells_whether_the_times_are_still_those(rows, tmp_path):
    import matplotlib.pyplot as plt

    store = Times(tmp_path)
    store.write("trial", rows, provenance({}))
    figures.save(plt.figure(), tmp_path, "picture", store.origin("trial", size=3))
    said = explain(tmp_path / "picture.png", Results(tmp_path))
    assert "times/trial" in said and "trial.parquet holds the same rows" in said
    store.write("trial", rows.assign(low_ms=0.0), provenance({}))
    assert "holds other rows" in explain(tmp_path / "picture.png", Results(tmp_path))


@pytest.mark.parametrize(
    ("job", "change", "message"),
    [
        ("a/b", lambda r: r, "'a/b' is no name for a job"),
        ("trial", lambda r: r.iloc[:0], "job 'trial' has no times"),
        ("trial", lambda r: r.drop(columns="device"), r"missing columns \['device'\], unknown columns \[\]"),
        ("trial", lambda r: r.assign(colour="red"), r"unknown columns \['colour'\]"),
        ("trial", lambda r: r.assign(device=None), "column 'device' of job 'trial' lacks a value in 7 rows"),
        ("trial", lambda r: r.assign(runs="many"), "column 'runs' of job 'trial' is not int64"),
        ("trial", lambda r: r.assign(low_ms=9e9), "full encode: quartiles must rise from 0 or more"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(rows, tmp_path, job, change, message):
    with pytest.raises(ValueError, match=message):
        Times(tmp_path).write(job, change(rows), provenance({}))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_told(rows, tmp_path):
    store = Times(tmp_path)
    with pytest.raises(KeyError, match="no times of job 'trial'"):
        store.frame("trial")
    path = store.write("trial", rows, provenance({}))
    path.write_bytes(b"")
    with pytest.raises(CorruptResult, match=r"trial.parquet cannot be read .*; delete it and measure again"):
        store.frame("trial")
    rows.drop(columns="device").to_parquet(path)
    with pytest.raises(CorruptResult, match="has other columns than this code reads"):
        store.frame("trial")
