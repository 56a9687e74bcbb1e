"""A figure tells what it was drawn from, and the stores whether they still hold it."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from idsel_core.study.report import theme
from idsel_core.study.report.tables import save_table
from idsel_core.study.store.explain import explain
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times
from tests.support.rows import make_rows, make_times

mpl.use("Agg")


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_figure_tells_whether_the_stores_still_hold_its_rows(tmp_path, suffix):
    rows, times = Results(tmp_path / "rows"), Times(tmp_path / "times")
    rows.write("job", make_rows(), provenance({"gammas": [5.0, 20.0]}))
    times.write("job", make_times(), provenance({}))
    note = rows.origin("job", resamples=9)
    note["results"] |= times.origin("job")["results"]
    assert list(note["results"]) == ["rows/job", "times/job"]
    theme.save(plt.figure(), tmp_path, "picture", note)

    def said():
        return explain(tmp_path / f"picture.{suffix}", rows, times)

    for words in ("picture", "was drawn from", "gammas:", "resamples: 9", note["results"]["rows/job"]["sha256"]):
        assert words in said()
    assert f"{rows.path('job')} holds the same rows" in said()
    assert f"{times.path('job')} holds the same rows" in said()
    times.write("job", make_times().assign(low_ms=0.0), provenance({}))
    rows.path("job").unlink()
    assert f"{rows.path('job')} is not there" in said()
    assert f"{times.path('job')} holds other rows" in said()


def test_the_stores_of_make_figures_are_asked_by_default(tmp_path, monkeypatch):
    Results(tmp_path / "results/rows").write("job", make_rows(), {})
    theme.save(plt.figure(), tmp_path, "picture", Results(tmp_path / "results/rows").origin("job"))
    monkeypatch.chdir(tmp_path)
    assert "results/rows/job.parquet holds the same rows" in explain("picture.png")


def test_a_table_tells_what_it_was_made_from(tmp_path):
    store = Results(tmp_path / "rows")
    store.write("budget", make_rows(), {"commit": "abc--def"})
    table = pd.DataFrame({"a": [1]})
    text = save_table(table, tmp_path, "t", "note", origin=store.origin("budget", resamples=100))
    assert "origin" not in text and (tmp_path / "t.md").read_text().startswith(text)
    said = explain(tmp_path / "t.md", store)
    assert "resamples: 100" in said and "abc--def" in said and "budget.parquet holds the same rows" in said
    page = tmp_path / "page.md"
    page.write_text(2 * (tmp_path / "t.md").read_text())
    assert "tables: 2" in explain(page, store) and "holds the same rows" in explain(page, store)
    page.write_text("no tables")
    with pytest.raises(ValueError, match=r"no table of .*page.md tells what it was made from"):
        explain(page, store)


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("model", "companion"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_text(folder)
    note = provenance({}, [tmp_path / "model/model.safetensors", tmp_path / "companion/model.safetensors"])
    assert set(note["files"]) == {"model/model.safetensors", "companion/model.safetensors"}
    assert len(set(note["files"].values())) == 2
