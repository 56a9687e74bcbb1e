"""The gallery opened from its folder in a headless Chromium: what a person sees, light and dark, and what sorts."""

import base64
import importlib.util
import os
from pathlib import Path

import matplotlib as mpl
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from idsel_core.study.report import ablation_figures, tables, theme
from idsel_core.study.report.gallery.site import write_gallery
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.lab import CHROMIUM, browser
from tests.support.rows import make_rows

mpl.use("Agg")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
SHOTS = os.environ.get("IDSEL_SHOTS")
"""Folder for screenshots, to look at."""
SCRIPT = "<script>document.title='taken'</script>"
HOSTILE = f"{SCRIPT}<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A gallery of a notebook, a figure and a table, with text that would run if it were not text."""
    folder = tmp_path_factory.mktemp("gallery")
    store = Results(folder / "rows")
    store.write("budget", make_rows(), provenance({"question": HOSTILE}))
    theme.use_theme()
    figure = ablation_figures.objects_figure(store.frame(), 9)
    theme.save(figure, folder / "figures", "objects", store.origin("budget", note=HOSTILE), alt=f"Objects {HOSTILE}")
    table = pd.DataFrame({"method": ["A", HOSTILE, "C", "D"], "share of full": [9.5, 100, 70.25, None]})
    tables.save_table(table, folder / "tables", "shares", best=tables.best_methods(table))
    png = base64.b64encode((folder / "figures/objects.png").read_bytes()).decode()
    outputs = [
        new_output("display_data", {"image/png": png}, metadata={"image/png": {"alt": HOSTILE, "width": 300}}),
        new_output("display_data", {"text/markdown": f"| question | right |\n| --- | --- |\n| {HOSTILE} | 2 |"}),
        new_output("display_data", {"text/html": pd.DataFrame({"asked": [HOSTILE]}).to_html() + SCRIPT}),
        new_output("stream", name="stdout", text=HOSTILE),
    ]
    cells = [
        new_markdown_cell(f"# Things: {HOSTILE}\n\nWhat they are."),
        new_code_cell("1 < 2", outputs=outputs, execution_count=1),
    ]
    (folder / "logs").mkdir()
    nbformat.write(new_notebook(cells=cells), folder / "logs/01_things.ipynb")
    out = folder / "site"
    write_gallery(out, [folder / "logs"], folder / "figures", folder / "tables", folder / "rows", folder / "times")
    return out


def open_page(page, site: Path, name: str) -> list[str]:
    """Open a page from its file; returns the addresses that it asks for beside itself."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / f"{name}.html").as_uri())
    page.wait_for_load_state("load")
    return [address for address in asked if not address.startswith("data:")][1:]


@pytest.fixture(scope="module")
def pages(site):
    """Every page, opened light and dark: its background, its title, what it asked for, and how wide it is."""
    seen = {}
    with browser(viewport={"width": 1200, "height": 900}) as page:
        for name in sorted(path.stem for path in site.glob("*.html")):
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                asked = open_page(page, site, name)
                colour = page.evaluate(
                    "getComputedStyle(document.documentElement).backgroundColor + '|' + "
                    "getComputedStyle(document.body).color"
                )
                wide = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                seen[name, scheme] = (colour, page.title(), asked, wide, page.locator("img:not([alt])").count())
                if SHOTS:
                    page.screenshot(path=f"{SHOTS}/gallery-{name}-{scheme}.png", full_page=True)
    return seen


def test_every_page_opens_offline_and_runs_nothing_of_the_data(pages):
    assert {name for name, _ in pages} == {"index", "01_things", "figures", "tables", "runs"}
    for (name, _), (_, title, asked, wide, without_alt) in pages.items():
        assert title.startswith("idsel: ") and asked == [] and wide and without_alt == 0, name


def test_dark_is_dark_and_light_is_light(pages):
    def text(scheme: str, name: str) -> float:
        numbers = pages[name, scheme][0].split("|")[1].removeprefix("rgb(").rstrip(")").split(",")
        return sum(map(float, numbers)) / 3

    assert all(text("dark", name) > 200 and text("light", name) < 60 for name, _ in pages)


def test_a_click_on_a_header_sorts(site):
    with browser() as page:
        open_page(page, site, "tables")

        def column() -> list[str]:
            return page.locator("tbody tr td:nth-child(2)").all_inner_texts()

        before = column()
        header = page.locator("th").nth(1)
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == "ascending"
        assert column() == ["9.50", "70.25", "100.00", ""]
        page.keyboard.press("Enter")
        assert header.get_attribute("aria-sort") == "descending"
        assert column() == ["100.00", "70.25", "9.50", ""]
        assert before == ["9.50", "100.00", "70.25", ""]
        page.locator("th button").first.click()
        assert header.get_attribute("aria-sort") is None
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/gallery-sorted.png")


def test_a_card_leads_to_its_notebook(site):
    with browser() as page:
        open_page(page, site, "index")
        assert page.locator(".cards img").evaluate("image => image.naturalWidth > 100")
        open_page(page, site, "tables")
        assert page.locator("td").nth(2).inner_text() == HOSTILE
        open_page(page, site, "index")
        page.locator(".cards a").click()
        assert page.url.endswith("01_things.html") and "<script>" in page.locator("h1").inner_text()
