"""The store of times."""

from __future__ import annotations

import pandas as pd
import pytest

from idsel_core import IDSelection, adapter_for
from idsel_core.study.store.files import CorruptResult
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.schema import SCHEMAS
from idsel_core.study.store.times import Times
from idsel_core.study.timing.phases import time_methods
from idsel_core.study.timing.records import Timing
from tests.support import tiny


@pytest.fixture(scope="module")
def rows():
    backbone = adapter_for(tiny.build("clip"))
    timings = time_methods(backbone, tiny.prompts((1,)), [None, IDSelection(7)], runs=2, warmup=0, new_tokens=1)
    return pd.DataFrame(timings).assign(backbone="tiny")


def test_the_store_has_a_column_for_each_field_of_a_timing():
    assert {"backbone", *Timing.__dataclass_fields__} == set(SCHEMAS["times"].names)


def test_times_come_back_as_they_were_written(rows, tmp_path):
    store = Times(tmp_path)
    path = store.write("trial", rows, provenance({"runs": 2}))
    assert path == tmp_path / "trial.parquet"
    assert store.jobs() == ["trial"]
    back = store.frame("trial")
    assert list(back) == SCHEMAS["times"].names
    for name in rows:
        assert back[name].isna().equals(rows[name].isna())
        assert back[name].dropna().tolist() == rows[name].dropna().tolist()
    assert store.provenance("trial")["parameters"] == {"runs": 2}
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path), back)


@pytest.mark.parametrize(
    ("job", "change", "message"),
    [
        ("a/b", lambda r: r, "'a/b' is no name for a job"),
        ("trial", lambda r: r.iloc[:0], "job 'trial' has no times"),
        ("trial", lambda r: r.drop(columns="device"), r"missing columns \['device'\], unknown columns \[\]"),
        ("trial", lambda r: r.assign(colour="red"), r"unknown columns \['colour'\]"),
        ("trial", lambda r: r.assign(device=None), "column 'device' of job 'trial' lacks a value in 7 rows"),
        ("trial", lambda r: r.assign(runs="many"), "column 'runs' of job 'trial' holds str, which is not int64"),
        ("trial", lambda r: r.assign(low_ms=9e9), "full encode: quartiles must rise from 0 or more"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(rows, tmp_path, job, change, message):
    with pytest.raises(ValueError, match=message):
        Times(tmp_path).write(job, change(rows), provenance({}))
    assert list(tmp_path.iterdir()) == []


def test_times_that_cannot_be_read_are_refused(rows, tmp_path):
    store = Times(tmp_path)
    with pytest.raises(KeyError, match="no times of job 'trial'"):
        store.frame("trial")
    path = store.write("trial", rows, provenance({}))
    path.write_bytes(b"")
    with pytest.raises(CorruptResult, match=r"trial.parquet cannot be read .*; delete .*trial.parquet and run"):
        store.frame("trial")
    rows.drop(columns="device").to_parquet(path)
    with pytest.raises(CorruptResult, match=r"has other columns than this code reads \(missing columns: device"):
        store.frame("trial")
