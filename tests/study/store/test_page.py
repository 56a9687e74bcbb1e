"""The page on the store says what is so."""

import re

import pandas as pd
import pytest

from idsel_core.study.store.results import Results
from idsel_core.study.store.schema import MEANING, SCHEMAS, columns_markdown
from idsel_core.study.store.times import Times
from tests.support.project import PROJECT
from tests.support.rows import make_rows, make_times

PAGE = (PROJECT / "docs/store.md").read_text()


@pytest.mark.parametrize("kind", ["rows", "times"])
def test_every_column_has_a_meaning(kind):
    assert list(MEANING[kind]) == SCHEMAS[kind].names
    assert all(len(meaning) > 3 and "|" not in meaning for meaning in MEANING[kind].values())


def test_the_page_shows_all_columns():
    (shown,) = re.findall(r"<!-- generated: columns -->\n(.*)\n<!-- end -->", PAGE, re.DOTALL)
    assert shown.strip() == columns_markdown().strip(), "write docs/store.md anew with `make publish`"


def test_the_lines_for_pandas_run(tmp_path, monkeypatch, capsys):
    Results(tmp_path / "results/rows").write("02_ablation_gamma", make_rows(), {})
    Times(tmp_path / "results/times").write("08_efficiency", make_times(), {})
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert "02_ablation_gamma validation idselection 16.0" in " ".join(capsys.readouterr().out.split())
    assert len(pd.read_parquet("results/times")) == 1
