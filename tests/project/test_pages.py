"""README and docs: their code runs as it stands, their links resolve, and their generated blocks are up to date."""

import importlib.util
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from sklearn.datasets import load_sample_images
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from data.backbone.language import build_tokenizer
from idsel_core.methods import METHODS
from tests.support.hub_folders import save, tone
from tests.support.project import PROJECT

MODEL = PROJECT / "data/backbone/assembled"
MARK = "<!-- runnable -->\n"
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(PROJECT.glob("docs/*.md")),
    *sorted(PROJECT.glob("data/*/README.md")),
    PROJECT / "idsel_core/loading/configs/README.md",
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def named(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def runnable(page: Path) -> list[str]:
    return re.findall(rf"^{MARK}```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def load_blocks():
    spec = importlib.util.spec_from_file_location("blocks", PROJECT / "workflow/scripts/blocks.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PROJECT / "workflow/scripts"))
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory that looks like the project's to the code of a page, with photographs in it."""
    (tmp_path / "data").symlink_to(PROJECT / "data")
    (tmp_path / "photos").mkdir()
    for name, pixels in zip("ab", load_sample_images().images, strict=True):
        Image.fromarray(pixels).save(tmp_path / f"photos/{name}.jpg")
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    matplotlib.use("agg")
    return tmp_path


def execute(page: str, names: dict[str, str] | None = None) -> dict[str, object]:
    """Run the blocks of a page one after the other, with other names of checkpoints where given."""
    blocks, found = runnable(PROJECT / page), {}
    assert blocks
    for block in blocks:
        for name, other in (names or {}).items():
            block = block.replace(name, other)
        exec(compile(block, page, "exec"), found)
    return found


def test_the_readme_prunes_the_embedded_backbone(folder, capsys):
    found = execute("README.md")
    assert [(record.before, record.after) for record in found["run"].report] == [(576, 64)]
    assert found["picks"].indices.shape == (2, 64)
    assert "ImageRecord" in capsys.readouterr().out


def test_questions_of_ones_own_are_read_and_scored(folder, capsys):
    found = execute("docs/data.md")
    assert found["split"].questions["metric"].tolist() == ["choice_letter", "yes_no"]
    assert found["scores"].tolist() == [1]
    assert capsys.readouterr().out.startswith("What is shown?\nA. a flower\nB. a building\n")
    assert found["tones"].images["samples"].tolist() == [32000, 32000]


def test_a_picture_and_a_clip_of_ones_own_are_pruned(folder):
    wavfile.write(folder / "talk.wav", 8000, (tone(0.9, 440.0, 8000) * 32767).astype(np.int16))
    found = execute("docs/own_data.md", {"Qwen/Qwen2-Audio-7B-Instruct": str(save("qwen2_audio", folder / "audio"))})
    assert (len(found["clip"]), found["run"].report[0].before, len(found["seconds"])) == (14400, 22, 16)
    assert found["seconds"][-1] <= 0.9
    assert (found["side"], (folder / "kept.png").stat().st_size > 10_000) == (24, True)
    assert found["encoded"].grid[0].tolist() == [[row, column] for row in range(24) for column in range(24)]
    assert (folder / "kept.csv").read_text().count("photos/") == 2


def test_the_answer_about_ones_own_picture_is_given_in_ten_lines():
    code = runnable(PROJECT / "docs/own_data.md")[0]
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 12


@pytest.mark.slow
def test_conversations_go_on(folder):
    found = execute("docs/chat.md")
    assert [(record.call, record.source) for record in found["run"].report] == [(0, "tower"), (1, "kept encoding")]
    # 587 tokens of prompt, 64 of 576 visual tokens kept, and twice an answer and the tokens of a turn.
    assert found["third"].past_key_values.get_seq_length() == 587 - 576 + 64 + 12 + found["tokens"].shape[1]
    assert found["third"].sequences.shape[1] == found["tokens"].shape[1] + 1


def test_the_refusals_of_a_conversation_are_quoted_word_for_word():
    quoted = re.findall(r"\| `([^`]+)`(?: \.\.\.)? \|$", (PROJECT / "docs/chat.md").read_text(), re.MULTILINE)
    folders = ("idsel_core/pruning", "idsel_core/backbones/_shared")
    source = "".join(path.read_text() for folder in folders for path in (PROJECT / folder).glob("*.py"))
    assert len(quoted) == 11
    for message in quoted:
        pattern = re.escape(message).replace("576", r"\{\w+\}").replace("pixel_values", r"\{\w+\}")
        assert re.search(pattern, source), message


@pytest.mark.slow
def test_the_page_on_loading_loads(folder):
    """Its code as it stands, but for the names of checkpoints: the embedded backbone, and a CLIP of its width."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=384, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    text = CLIPTextConfig(hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    build_tokenizer().save_pretrained(folder / "clip")
    names = {"llava-hf/llava-1.5-7b-hf": str(MODEL), "openai/clip-vit-large-patch14-336": str(folder / "clip")}
    found = execute("docs/loading.md", names)
    assert found["out"].shape[1] > found["inputs"]["input_ids"].shape[1]
    assert all(weight.is_meta for weight in found["model"].parameters())


def test_the_readme_counts_the_methods_that_there_are():
    controls = {"topk", "diversity", "random", "uniform", "downsample"}
    others = set(METHODS) - controls - {"idselection", "idselection-inside", "adaptive"}
    said = " ".join((PROJECT / "README.md").read_text().split())
    assert f"runs it, {len(others)} other published methods, an adaptive budget and {len(controls)} controls" in said


def test_the_readme_is_short():
    assert len((PROJECT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_of_a_page_resolve(page):
    text = re.sub(r"```.*?```|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL)
    links = [markdown or image for markdown, image in LINK.findall(text)]
    relative = [link.partition("#")[0] for link in links if not link.startswith(("https://", "mailto:", "#"))]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_the_index_names_every_page():
    index = (PROJECT / "docs/README.md").read_text()
    pages = {path.name for path in PROJECT.glob("docs/*.md")} - {"README.md"}
    assert sorted(name for name in pages if f"({name})" not in index) == []


def test_the_tree_of_the_package_names_every_folder():
    tree = (PROJECT / "CONTRIBUTING.md").read_text().partition("```\n")[2].partition("```")[0]
    package = PROJECT / "idsel_core"
    folders = [path.parent for path in (*package.glob("*/__init__.py"), *package.glob("*/*/__init__.py"))]
    assert sorted(folder.name for folder in folders if not re.search(rf"\b{folder.name}/", tree)) == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_page_sets_a_path(page):
    assert "PYTHONPATH" not in page.read_text()


@pytest.mark.parametrize("page", load_blocks().pages(), ids=named)
def test_generated_blocks_are_up_to_date(page):
    assert load_blocks().render(page.read_text()) == page.read_text(), "run make publish ARGS=--pages"


def test_the_headline_counts_equal_tokens_alone_and_says_how_many_questions():
    said = load_blocks().headline()
    assert "(final)" not in said
    assert re.search(r"\b1,050 questions of the test split, 150 of each of 7 question types", said)
    rows = [line for line in said.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 10
    for budget in range(2, 6):  # the best of each column is shown
        assert sum(row.split("|")[budget].strip().startswith("**") for row in rows) == 1
    assert sum("**ID-Selection**" in row for row in rows) == 1


def test_times_are_told_by_command(monkeypatch, tmp_path):
    blocks = load_blocks()
    monkeypatch.setattr(blocks, "DOCS", tmp_path)
    one = {"seconds": 90, "cores": 2, "machine": "x86_64"}
    (tmp_path / "timing.json").write_text(json.dumps(one))
    assert blocks.times("figures") == "`make figures` took 1.5 minutes on 2 cores (x86_64)."
    said = "`make test` took 1.5 minutes on 2 cores (x86_64). Not recorded yet: `make test-all`."
    (tmp_path / "test_times.json").write_text(json.dumps({"test": one}))
    assert blocks.times("test", "test-all") == said


def test_the_alt_text_of_a_figure_is_what_its_file_holds():
    blocks = load_blocks()
    held = blocks.alt("budget")
    assert (
        held.startswith("Share of full performance against the visual tokens kept") and "ID-Selection 42% at 4" in held
    )
    typed = '![old \\] words](figures/budget.png)\n<img src="docs/figures/budget.png" width="9" alt="old">'
    assert blocks.render(typed) == (
        f'![{held}](figures/budget.png)\n<img src="docs/figures/budget.png" width="9" alt="{held}">'
    )
