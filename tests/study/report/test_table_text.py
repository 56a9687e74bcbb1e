"""Tables are the same as Markdown and as LaTeX; the best cells are marked, and text of data stays text."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from idsel_core.study.report import tables
from idsel_core.study.report.table_text import BEST, SECOND, as_text, marks, to_latex, to_markdown

HOSTILE = r"\input{x} $50_%#&~^{} <script>alert(1)</script> | ![x](y)"


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "budget": [64, 64, 64, 64, 64, 16, 16],
            "method": ["all tokens", "A", "B", "C", "D (final) †", "A", "B"],
            "reading": [100.0, 95, 95.5, 90, 99, 1.25, 3],
            "share of full": [
                "100.0 [9, 9]",
                "95.0 [94, 96]",
                "9.9 [3, 4]",
                "",
                "99.9 [9, 9]",
                "7.1 [6, 7]",
                "7.1 [5, 9]",
            ],
        }
    )


def test_the_best_and_the_second_best_are_marked_at_each_budget(table):
    found = tables.best_methods(table)
    assert found["reading"].tolist() == ["", SECOND, BEST, "", "", SECOND, BEST]
    assert found["share of full"].tolist() == ["", BEST, SECOND, "", "", "", ""]
    assert (found[["budget", "method"]] == "").all(axis=None)


def test_marks_are_the_same_in_both_forms(table):
    found = tables.best_methods(table)
    page, latex = to_markdown(table, found), to_latex(table, found, "budget")
    assert re.findall(r"\*\*([^*]+)\*\*", page) == re.findall(r"\\textbf{([^}]+)}", latex)
    assert re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page) == re.findall(r"\\underline{([^}]+)}", latex)
    assert "**95.50**" in page and "*95.00*" in page and "**95.0 [94, 96]**" in page
    assert "**" not in to_markdown(table) and "textbf" not in to_latex(table)


def test_numbers_of_a_column_have_the_same_decimals():
    text = as_text(
        pd.DataFrame({"a": [100.0, 97.5, float("nan")], "b": [1.0, 2.0, 3.0], "c": [0.12345, 1, 2], "d": [1, 2, 3]})
    )
    assert text["a"].tolist() == ["100.0", "97.5", ""] and text["b"].tolist() == ["1", "2", "3"]
    assert text["c"].tolist() == ["0.123", "1.000", "2.000"] and text["d"].tolist() == ["1", "2", "3"]


def test_latex_uses_the_rules_of_booktabs(table):
    latex = to_latex(table, None, "budget", {"note": "two\nlines"})
    assert [latex.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 2, 1]
    body = latex.split("\\midrule")
    assert body[1].count(r"\\") == 5 and body[2].count(r"\\") == 2
    assert "% note: two lines\n" in latex and "\\begin{tabular}{rlrr}" in latex


def test_text_of_data_stays_text(table):
    hostile = table.assign(method=HOSTILE).rename(columns={"reading": HOSTILE})
    page, latex = to_markdown(hostile), to_latex(hostile)
    assert not re.search(r"(?<!\\)<script", page) and r"\\input" in page
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 5 for line in page.splitlines())
    assert r"\input" not in latex and "<" not in latex
    for escaped in (r"\textbackslash", r"\$50\_\%\#\&", r"\textless{}script\textgreater{}", r"\textbar{}"):
        assert escaped in latex
    lines = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 3 for line in lines)


@pytest.mark.parametrize(
    ("numbers", "marked"),
    [
        ([1, 1], ["", ""]),
        ([5, 5, 5, 4], ["", "", "", ""]),
        ([5, 5, 4, 4], [BEST, BEST, SECOND, SECOND]),
        ([9, 4, 4, 4], [BEST, "", "", ""]),
    ],
)
def test_more_than_half_of_the_cells_share_no_mark(numbers, marked):
    table = pd.DataFrame({"x": numbers})
    assert marks(table, ["x"], [True] * len(numbers))["x"].tolist() == marked


def test_both_forms_are_written_with_what_they_were_made_from(table, tmp_path):
    text = tables.save_table(table, tmp_path, "t", "A note.", origin={"rows": 1}, best=tables.best_methods(table))
    assert "Best in bold" in text and text.endswith("A note.")
    latex = (tmp_path / "t.tex").read_text()
    assert latex.startswith("% \\usepackage{booktabs}\n% note: Best in bold") and '% origin: {"rows": 1}' in latex


def has_booktabs() -> bool:
    finder = shutil.which("kpsewhich")
    return bool(finder) and subprocess.run([finder, "booktabs.sty"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_booktabs(), reason="there is no LaTeX with booktabs here")
def test_latex_typesets_the_table(table, tmp_path):
    hostile = table.assign(method=["all tokens", HOSTILE, "é ± †", "C", "D", "E", "F"])
    (tmp_path / "t.tex").write_text(to_latex(hostile, tables.best_methods(hostile), "budget"))
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{t}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
