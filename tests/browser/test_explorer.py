"""The explorer in JupyterLab, in a headless Chromium: what a person sees, and how soon."""

import importlib.util
import io
import os
import statistics
from pathlib import Path

import pytest
from PIL import Image

from tests.support.lab import CHROMIUM, browser, checkout, lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: try `apt-get install chromium`"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
]
NOTEBOOK = "explore_selection"
SHOTS = os.environ.get("IDSEL_SHOTS")
"""Folder for screenshots, to look at."""

KERNEL = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"

WATCH = """() => {
    window.times = [];
    const output = [...document.querySelectorAll('[data-drawn]')].find(el => el.querySelector('.look'));
    let start = null;
    document.addEventListener('keydown', () => { start = performance.now(); }, true);
    new MutationObserver(() => requestAnimationFrame(() => {
        if (start !== null) { window.times.push(performance.now() - start); start = null; }
    })).observe(output, {attributes: true, attributeFilter: ['data-drawn']});
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The notebook, run in JupyterLab."""
    folder = checkout(tmp_path_factory.mktemp("lab"), NOTEBOOK)
    with lab(folder) as address, browser(viewport={"width": 1500, "height": 1300}) as page:
        page.set_default_timeout(120_000)
        page.goto(address.format(f"notebooks/{NOTEBOOK}.ipynb"))
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function(KERNEL)
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".idsel .side figure")
        page.wait_for_selector(".idsel table")
        page.evaluate("void window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.set_default_timeout(60_000)
        yield page


def settle(page) -> None:
    """Wait until nothing on the page is of the state before."""
    page.wait_for_function("!document.querySelector('.idsel-old')")


def shot(page, name: str) -> None:
    settle(page)
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.evaluate("document.querySelector('.jp-OutputArea .widget-vbox').scrollIntoView()")
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def titles(page) -> list[str]:
    return page.locator(".idsel figcaption").all_inner_texts()


def slider(page, name: str, number: int = 0):
    """The handle of a slider by the name that stands beside it."""
    return page.locator(".widget-slider", has_text=name).nth(number).locator(".noUi-handle")


def menu(page, name: str, number: int = 0):
    """A menu by the name that stands beside it."""
    return page.locator(".widget-dropdown", has_text=name).nth(number).locator("select")


def fill(page, name: str, text: str) -> None:
    """Type into a field by the name that stands beside it."""
    page.locator(".widget-text", has_text=name).locator("input").fill(text)
    page.keyboard.press("Enter")


def wait_for(page, text: str) -> None:
    page.wait_for_function("text => document.querySelector('.jp-Notebook').innerText.includes(text)", arg=text)


def test_all_is_shown_at_once(page):
    shot(page, "first")
    assert titles(page)[:3] == ["64 of 576 tokens kept", "score before the first pick", "score left after pick 8"]
    assert page.locator(".idsel .side").count() == 2
    assert page.locator(".idsel .side svg rect").count() > 128
    cells = page.locator(".idsel table tbody tr").all_inner_texts()
    assert [row.split("\t")[2] for row in cells] == ["576 of 576", "64 of 576", "64 of 576"]
    seen = page.inner_text(".jp-Notebook")
    assert "Traceback" not in seen and "Loading weights" not in seen


def test_a_slider_walks_pick_by_pick_within_a_fifth_of_a_second(page):
    page.evaluate(WATCH)
    handle = slider(page, "picks made")
    handle.focus()
    for step in range(9, 19):
        page.keyboard.press("ArrowRight")
        wait_for(page, f"score left after pick {step}")
        page.wait_for_function("count => window.times.length >= count", arg=step - 8)
    times = page.evaluate("window.times")
    print(f"from slider to picture: median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f} ms")
    shot(page, "step")
    busy = os.getloadavg()[0] / os.cpu_count()  # processes that wait for each core
    assert statistics.median(times) < 200 * max(1, busy)


def test_the_budget_changes_pictures_and_answers(page):
    slider(page, "budget").focus()
    for kept in (63, 62):
        page.keyboard.press("ArrowLeft")
        wait_for(page, f"{kept} of 576 tokens kept")
        page.wait_for_selector(f".idsel table tbody tr:nth-child(2):has-text('{kept} of 576')")
    assert titles(page).count("64 of 576 tokens kept") == 1, "the other method keeps its own budget"


def test_a_click_shows_what_looks_like_a_token(page):
    look = page.locator(".idsel .look").first
    box = look.bounding_box()
    look.click(position={"x": box["width"] * 2.5 / 24, "y": box["height"] * 1.5 / 24})
    wait_for(page, "similarity to the token that was clicked")
    said = page.locator(".idsel [aria-label^='cosine']").first.get_attribute("aria-label")
    assert said.endswith("at row 2, column 3")
    shot(page, "click")


def test_another_method_and_knobs(page):
    kept = page.locator(".idsel .side figure").first
    before = kept.inner_html()
    slider(page, "gamma").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("before => document.querySelector('.idsel .side figure').innerHTML != before", arg=before)
    assert page.locator(".widget-slider", has_text="gamma").count() == 2
    menu(page, "method", 1).select_option(label="DivPrune")
    wait_for(page, "DivPrune, 64 tokens")
    menu(page, "method", 1).select_option(label="FastV")
    wait_for(page, "the least budget for this model is")
    shot(page, "refusal")
    menu(page, "method", 1).select_option(label="uniform grid")
    wait_for(page, "uniform grid, 64 tokens")


def upload(page, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as choosing:
        page.locator(".widget-upload").click()
    choosing.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


def photo(page) -> str:
    """The style that holds the picture."""
    return page.locator(".idsel style").last.inner_html()


def wait_for_another_photo(page, before: str) -> None:
    page.wait_for_function(
        "before => [...document.querySelectorAll('.idsel style')].every(e => e.innerHTML != before)", arg=before
    )


def test_an_uploaded_picture_is_shown(page):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 200), (200, 30, 30)).save(buffer, "PNG")
    sample = photo(page)
    upload(page, "red.png", buffer.getvalue())
    wait_for_another_photo(page, sample)
    wait_for(page, "62 of 576 tokens kept")
    shot(page, "upload")
    own = photo(page)
    menu(page, "picture").select_option(label="temple")
    wait_for_another_photo(page, own)
    assert photo(page) == sample
    upload(page, "red.png", buffer.getvalue())
    wait_for_another_photo(page, sample)
    assert photo(page) == own, "the same file once more"


def test_wrong_input_gets_a_sentence(page):
    upload(page, "notes.png", b"no picture")
    wait_for(page, "the upload: the image is no image that can be read")
    fill(page, "or a file", "nowhere.jpg")
    wait_for(page, "there is no picture 'nowhere.jpg'")
    menu(page, "picture").select_option(label="coffee")
    fill(
        page, "question", "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> what?"
    )
    wait_for(page, "document.title='taken'")
    page.wait_for_selector(".idsel table")
    assert page.title() != "taken"
    fill(page, "model", "no/such/model")
    wait_for(page, "there is no folder")
    shot(page, "wrong")
    fill(page, "model", "data/backbone/assembled")
    page.wait_for_selector(".idsel table")
    fill(page, "question", "Where is the object?")
    wait_for(page, "Where is the object?")
    settle(page)
    seen = page.inner_text(".jp-Notebook")
    assert "Traceback" not in seen and "Loading weights" not in seen


def test_the_page_reads_in_the_dark(page):
    page.evaluate("void window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")
    colour = "getComputedStyle(document.querySelector('.idsel')).color.match(/\\d+/g).map(Number)"
    page.wait_for_function(f"Math.min(...{colour}.slice(0, 3)) > 180")
    shot(page, "dark")
