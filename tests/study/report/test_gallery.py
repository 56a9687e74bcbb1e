"""The gallery is pages that open offline, hold all that was made, and run nothing that data hold."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from idsel_core.study.report import ablation_figures, tables, theme
from idsel_core.study.report.gallery.notebook_page import notebook_page
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT
from tests.support.rows import make_rows

mpl.use("Agg")
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def gallery(folder: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "idsel_core.study.cli", "gallery", *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
    )


@pytest.fixture
def made(tmp_path):
    """A folder with a store, a figure, a table and an executed notebook."""
    store = Results(tmp_path / "results/rows")
    store.write("budget", make_rows(), provenance({"gammas": [5.0, 20.0], "note": "<b>"}))
    rows = store.frame()
    figure = ablation_figures.objects_figure(rows)
    theme.save(figure, tmp_path / "results/figures", "objects", store.origin("budget", resamples=9))
    tables.save_table(rows.groupby("budget", as_index=False)["chance"].mean(), tmp_path / "results/tables", "chance")
    png = base64.b64encode((tmp_path / "results/figures/objects.png").read_bytes()).decode()
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "a progress bar"}
    outputs = [
        new_output("display_data", {"image/png": png}),
        new_output("display_data", {"text/markdown": f"| question | right |\n| --- | --- |\n| {HOSTILE} | 2 |"}),
        new_output("display_data", widget),
        new_output("stream", name="stderr", text="77%"),
        new_output("stream", name="stdout", text=HOSTILE),
    ]
    cells = [
        new_markdown_cell("# A study of things: which?\n\nIt asks *much*. And more."),
        new_markdown_cell("## Share <of> objects"),
        new_code_cell("1 < 2", outputs=outputs, execution_count=1),
    ]
    (tmp_path / "logs").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "logs/01_things.ipynb")
    return tmp_path


def test_the_gallery_holds_notebooks_figures_tables_and_runs(made):
    done = gallery(made)
    assert done.returncode == 0, done.stderr
    assert "1 notebooks, 5 pages" in done.stdout
    pages = {path.stem: path.read_text() for path in (made / "results/gallery").iterdir()}
    assert set(pages) == {"index", "01_things", "figures", "tables", "runs"}
    assert 'href="01_things.html"' in pages["index"] and "A study of things: which?" in pages["index"]
    assert "It asks much." in pages["index"] and "data:image/jpeg;base64," in pages["index"]
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', pages["figures"])[1]
    assert base64.b64decode(picture) == (made / "results/figures/objects.png").read_bytes()
    assert "resamples: 9" in pages["figures"] and "0.25</td>" in pages["tables"]
    for said in ("gammas:", "torch:", "note: &lt;b&gt;", "python:"):
        assert said in pages["runs"]
    notebook = pages["01_things"]
    assert "a progress bar" not in notebook and "77%" not in notebook


def test_all_figures_are_described_and_nothing_comes_from_outside(made):
    assert gallery(made).returncode == 0
    for path in (made / "results/gallery").iterdir():
        page = path.read_text()
        assert [image for image in re.findall(r"<img[^>]*>", page) if "alt=" not in image] == []
        assert [
            address for address in re.findall(r'(?:src|href)="([^"]*)"', page) if re.match(r"\w+:(?!image/)", address)
        ] == []
    notebook = (made / "results/gallery/01_things.html").read_text()
    assert 'alt="Figure: Share &lt;of&gt; objects"' in notebook


def test_a_run_that_did_not_finish_says_so(made):
    path = made / "logs/01_things.ipynb"
    notebook = nbformat.read(path, 4)
    assert notebook_page(path).summary == "It asks much."
    nbformat.write(new_notebook(cells=[*notebook.cells, new_code_cell("3")]), path)
    page = notebook_page(path)
    assert page.summary == "This run did not finish: 1 of 2 code cells ran. It asks much."
    assert "<strong>This run did not finish" in page.body


def test_text_of_data_stays_text(made):
    assert gallery(made).returncode == 0
    page = (made / "results/gallery/01_things.html").read_text()
    assert page.count("<script") == 1 and "<img src=x" not in page
    assert "&lt;script&gt;" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "script-src &#x27;sha256-" in policy and "default-src &#x27;none&#x27;" in policy


def test_an_output_cannot_lead_to_another_place(made):
    away = (
        '<meta http-equiv="refresh" content="0;url=away.html"><BASE href="https://evil.example/"><form action="away">'
    )
    nbformat.write(
        new_notebook(
            cells=[new_code_cell("1", outputs=[new_output("display_data", {"text/html": f"<p>seen</p>{away}"})])]
        ),
        made / "logs/what? #1 50%25.ipynb",
    )
    assert gallery(made).returncode == 0
    page = (made / "results/gallery/what? #1 50%25.html").read_text()
    assert "<p>seen</p>&lt;meta " in page and page.lower().count("<meta") == 3
    assert "<base" not in page.lower() and "<form" not in page.lower()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "base-uri &#x27;none&#x27;; form-action &#x27;none&#x27;" in policy
    index = (made / "results/gallery/index.html").read_text()
    assert 'href="what%3F%20%231%2050%2525.html"' in index


def test_a_damaged_picture_or_table_is_no_reason_to_show_nothing(made):
    path = made / "logs/01_things.ipynb"
    notebook = nbformat.read(path, 4)
    damaged = new_output("display_data", {"image/png": base64.b64encode(b"no picture").decode()})
    nbformat.write(
        new_notebook(cells=[*notebook.cells, new_code_cell("2", outputs=[damaged], execution_count=2)]), path
    )
    (made / "results/tables/bytes.md").write_bytes(b"| a |\n| --- |\n| \xff |\n")
    done = gallery(made)
    assert done.returncode == 0, done.stderr
    assert "\N{REPLACEMENT CHARACTER}</td>" in (made / "results/gallery/tables.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no executed notebooks in nowhere/: `make figures` writes them to logs/"),
        (["logs", "logs/01_things.ipynb"], "notebooks of one name cannot be shown beside each other: 01_things"),
        (["damaged.ipynb"], "damaged.ipynb is no notebook that can be read"),
        (["list.ipynb"], "list.ipynb is no notebook that can be read"),
        (["empty.ipynb"], "empty.ipynb is no notebook that can be read"),
        (["--rows", "damaged"], "budget.parquet cannot be read"),
    ],
)
def test_what_is_missing_or_damaged_is_said_and_nothing_is_written(made, words, said):
    for name, text in (("damaged", "{"), ("list", "[]"), ("empty", "{}")):
        (made / f"{name}.ipynb").write_text(text)
    (made / "damaged").mkdir()
    Results(made / "damaged").write("budget", make_rows(), provenance({}))
    (made / "damaged/budget.parquet").write_bytes(b"")
    done = gallery(made, *words)
    assert done.returncode == 2 and said in done.stderr
    assert not (made / "results/gallery").exists()
