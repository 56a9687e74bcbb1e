"""What the generated blocks of README.md, of docs/ and of the cards say.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; `BLOCKS` has one function a name. Each reads
tracked files alone: docs/tables, docs/gpu, docs/families.json, docs/timing.json, docs/test_times.json, the data set,
the configurations and the code. `publish.py` writes the blocks of all pages.
"""

from __future__ import annotations

import csv
import html
import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import yaml
from gpu_tables import tables as gpu_tables

from idsel_core.backbones import BACKBONES
from idsel_core.loading.random_models import CONFIGS, read_architecture
from idsel_core.methods import METHODS, InLLM, Method
from idsel_core.study.dataset import read_split
from idsel_core.study.report.alt_text import read_alt
from idsel_core.visual_tokens import VisualTokens

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
BLOCK: Final = re.compile(r"(<!-- generated: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE: Final = re.compile(r"!\[(?:\\.|[^\]\\])*\]\((?P<path>[\w./-]*figures/(?P<name>\w+)\.png)\)")
TAG: Final = re.compile(r'(<img src="[\w./-]*figures/(?P<name>\w+)\.png"[^>]*? alt=")[^"]*(">)')

PEERS_SHOWN: Final = 3
SETTINGS_SHOWN: Final = 2
CONTROLS_SHOWN: Final = ("diversity", "topk", "uniform", "random")
BUDGETS_SHOWN: Final = (192, 64, 32, 16)
OF_METHODS: Final = {"all tokens", *(method.label for method in METHODS.values())}
"""What tables call methods with their defaults; a method with other knobs or a final budget has more in its name."""
BY_HAND: Final = {
    "across-backbones": "make smollm2",
    "comparison-all": "make comparison",
    "adaptive": "idsel run notebooks/17_more_measures.ipynb logs/17_more_measures.ipynb",
    "bars": "idsel run notebooks/17_more_measures.ipynb logs/17_more_measures.ipynb",
    "positions": "idsel run notebooks/17_more_measures.ipynb logs/17_more_measures.ipynb",
    "ranks": "idsel run notebooks/17_more_measures.ipynb logs/17_more_measures.ipynb",
}
"""Beginnings of the names of tables that are made by hand, each with the command that makes them."""


def pages() -> list[Path]:
    """Return the pages that have generated blocks or show figures."""
    cards = [*sorted(ROOT.glob("data/*/README.md")), ROOT / "idsel_core/loading/configs/README.md"]
    candidates = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *cards]
    forms = (BLOCK, PICTURE, TAG)
    return [page for page in candidates if page.exists() and any(form.search(page.read_text()) for form in forms)]


def block(name: str) -> str:
    """Return the generated block of this name: one of `BLOCKS`, or else the published table of this name.

    Raises
    ------
    ValueError
        If nothing has this name.
    """
    if name in BLOCKS:
        return BLOCKS[name]()
    known = sorted(path.stem.replace("_", "-") for path in (DOCS / "tables").glob("*.md"))
    if name not in known and (commands := [command for start, command in BY_HAND.items() if name.startswith(start)]):
        return not_yet(name, commands[0])
    if name not in known:
        raise ValueError(f"nothing generates {name!r}; known are {', '.join([*BLOCKS, *known])}")
    return stored_table(name.replace("-", "_"))


def not_yet(name: str, command: str) -> str:
    """Say which command makes a table that is not published, and show what fewer questions say where that is known."""
    fewer = name.replace("comparison-all-", "comparison-").replace("-", "_")
    if not (DOCS / f"tables/{fewer}.md").exists():
        return f"Not measured yet: `{command}`."
    return f"Until `{command}` has asked all, what {asked('06_comparison')} say:\n\n{stored_table(fewer)}"


def comparison_all_shares() -> str:
    """Show the shares of full performance class by class, with a link to the whole table where that is published."""
    if not (DOCS / "tables/comparison_all_shares.md").exists():
        return not_yet("comparison-all-shares", BY_HAND["comparison-all"])
    link = "[Accuracies by question type, and loyalty](tables/comparison_all.md)."
    return f"{stored_table('comparison_all_shares')}\n\n{link}"


def render(text: str) -> str:
    """Return a page with its generated blocks, and the alt text of its figures, written anew."""
    text = BLOCK.sub(lambda found: f"{found[1]}\n{block(found['name'])}\n\n{found[3]}", text)
    text = PICTURE.sub(lambda found: _picture(found, f"![{_bracketed(alt(found['name']))}]({found['path']})"), text)
    return TAG.sub(lambda found: _picture(found, f"{found[1]}{html.escape(alt(found['name']))}{found[3]}"), text)


def alt(figure: str) -> str:
    """Return the alt text that a published figure holds."""
    return read_alt(DOCS / f"figures/{figure}.png")


def _picture(found: re.Match[str], described: str) -> str:
    """Return how a page shows a figure; as it stands where the file holds no alt text."""
    return described if alt(found["name"]) else found[0]


def _bracketed(text: str) -> str:
    return re.sub(r"([\[\]\\])", r"\\\1", text)


# --- tables of results ------------------------------------------------------------------------------------------------


def stored_table(name: str) -> str:
    """Return a published table as it stands."""
    return (DOCS / f"tables/{name}.md").read_text().strip()


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a published table, each cell by the name of its column."""
    lines = [line for line in stored_table(name).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def known_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a published table, or none where it was not published."""
    return read_table(name) if (DOCS / f"tables/{name}.md").exists() else []


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Return rows, the first of which is the header, as a Markdown table."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def shown_name(method: str) -> str:
    """Return the label of a method that a table calls by name or label, with what follows it, as in "vscan (final)"."""
    name, space, more = method.partition(" (")
    return METHODS[name].label + space + more if name in METHODS else method


def with_labels(name: str) -> str:
    """Return a published table whose methods are called by their labels."""
    known = "|".join(METHODS)
    return re.sub(
        rf"(?<=\| )({known})\b(?=( \(final\))? *\|)", lambda found: METHODS[found[1]].label, stored_table(name)
    )


def asked(job: str, split: str | None = None) -> str:
    """Say how many questions a job of `make figures` asks, of its own split or of another."""
    given = yaml.safe_load((ROOT / f"config/{job}.yaml").read_text())
    split = split or str(given["split"])
    questions = read_split(split, ROOT / "data/scenes", given.get("questions", 0)).questions
    types = questions["question_type"].nunique()
    each = f"{'about ' if len(questions) % types else ''}{len(questions) // types}"
    return f"{len(questions):,} questions of the {split} split, {each} of each of {types} question types"


def headline() -> str:
    """Compare ID-Selection with the leading peers, settings and the controls at equal numbers of visual tokens.

    Settings are rows of a method under other than its defaults. Peers and settings lead by the mean of their shares
    over the budgets shown; only rows that read the budget in the mean over the layers count. The table falls by the
    same mean, so what is better than ID-Selection stands above it.
    """
    table, job = "comparison", "06_comparison"
    if not {row["method"] for row in read_table(table)} - {row["method"] for row in known_rows("comparison_all")}:
        table, job = "comparison_all", "16_comparison_all"
    shares: dict[str, dict[int, str]] = defaultdict(dict)
    for row in read_table(table):
        shares[shown_name(row["method"])][int(row["budget"])] = row["share of full"]

    def share(label: str, budget: int) -> float:
        return float(shares[label][budget].strip("*").split()[0])

    def mean(label: str) -> float:
        return sum(share(label, budget) for budget in BUDGETS_SHOWN) / len(BUDGETS_SHOWN)

    ours, controls = METHODS["idselection"].label, [METHODS[name].label for name in CONTROLS_SHOWN]
    whole = sorted((label for label, found in shares.items() if set(BUDGETS_SHOWN) <= set(found)), key=mean)[::-1]
    complete = [label for label in whole if label.removesuffix(" ‡") in OF_METHODS]
    others = [label for label in whole if label not in complete][:SETTINGS_SHOWN]
    no_peers = {ours, *(METHODS[name].label for name in ("diversity", "topk", "random", "uniform", "downsample"))}
    peers = [label for label in complete if label not in no_peers][:PEERS_SHOWN]
    shown = sorted([*others, *peers, *controls, ours], key=mean, reverse=True)
    places = [1 + sum(share(label, budget) > share(ours, budget) for label in complete) for budget in BUDGETS_SHOWN]
    verdict = "wins" if max(places) == 1 else "does not win" if shown[0] != ours else "does not win at every budget"
    lines = [
        f"**{ours} {verdict} here.** Of {len(complete)} methods that run at all of these budgets it is number "
        f"{', '.join(map(str, places))} from left to right.",
        "",
        markdown(
            [
                ["method", *(f"{budget} tokens" for budget in BUDGETS_SHOWN)],
                *(
                    [f"**{label}**" if label == ours else label, *(shares[label][budget] for budget in BUDGETS_SHOWN)]
                    for label in shown
                ),
            ]
        ),
        "",
        f"Share of full performance in percent (all {read_table(table)[0]['budget']} tokens are 100) with its "
        f"paired 95 % bootstrap interval; {asked(job)}. Best in bold, second best in italics, of all "
        "rows that read the budget in the mean.",
    ]
    if others:
        lines += ["", f"Not the defaults of a method: {'; '.join(others)}. [What they cost](docs/results.md)."]
    return "\n".join(lines)


def accuracy() -> str:
    """Show the accuracy of the embedded backbone on the test and the hard split, with the questions asked."""
    job = "04_ablation_budget"
    return f"{asked(job)}; {asked(job, 'hard')}.\n\n{with_labels('accuracy')}"


def columns() -> str:
    """Describe the columns of the store."""
    from idsel_core.study.store.schema import columns_markdown

    return columns_markdown()


def comparison_missing() -> str:
    """List what could not run in the comparison, and why."""
    return with_labels("comparison_missing")


def notebooks() -> str:
    """List the notebooks, for a page in docs, by their titles without what stands before a colon."""
    lines = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        title = next(line[2:] for cell in cells for line in cell.splitlines() if line.startswith("# "))
        lines.append(f"- [{path.stem}](../notebooks/{path.name}): {title.partition(': ')[2] or title}")
    return "\n".join(lines)


# --- times ------------------------------------------------------------------------------------------------------------


def times(*commands: str) -> str:
    """Say how long make targets took when they last ran whole.

    docs/timing.json is what `make figures` recorded; docs/test_times.json what `make test` and
    `make test-all` did.
    """
    figures, tests = DOCS / "timing.json", DOCS / "test_times.json"
    timing = {"figures": json.loads(figures.read_text())} if figures.exists() else {}
    timing |= json.loads(tests.read_text()) if tests.exists() else {}
    known = [f"`make {name}` took {_minutes(timing[name])}." for name in commands if name in timing]
    unknown = [f"`make {name}`" for name in commands if name not in timing]
    return " ".join([*known, *([f"Not recorded yet: {', '.join(unknown)}."] if unknown else [])])


def _minutes(timing: Mapping[str, Any]) -> str:
    return f"{timing['seconds'] / 60:.1f} minutes on {timing['cores']} cores ({timing['machine']})"


def training() -> str:
    """Say how the embedded backbone was trained, from its log."""
    lines = [json.loads(line) for line in (ROOT / "data/backbone/train.log.jsonl").read_text().splitlines()]
    last = lines[-1]
    return (
        f"{last['step']} steps, {last['seconds'] / 60:.0f} minutes; at the end "
        f"{100 * last['held_out']['all']:.1f} % of the questions about 40 held-out scenes were answered right."
    )


def smollm2_log(*parts: str) -> list[dict[str, Any]]:
    """Return the lines of these parts of the training on SmolLM2, with "minutes" of CPU time of all processes."""
    lines = [json.loads(line) for line in (ROOT / "data/smollm2/train.log.jsonl").read_text().splitlines()]
    for line in lines:
        line["minutes"] = line["processes"] * line["seconds"] / 60
    return [line for line in lines if line["part"] in parts]


def pilot() -> str:
    """Show what the pilot on SmolLM2 answered right while it was trained, from its log."""
    names = {"existence": "existence", "attribute": "attribute", "all": "both", "blind": "both, another image"}
    rows = [
        [f"{line['minutes']:.0f}", str(line["step"]), *(f"{100 * line['held_out'][name]:.1f}" for name in names)]
        for line in smollm2_log("pilot")
    ]
    return markdown([["CPU minutes", "steps", *(f"{shown}, %" for shown in names.values())], *rows])


def training_smollm2() -> str:
    """Show what SmolLM2 answered right while it was trained on all question types, from its log."""
    lines = smollm2_log("small scenes", "full scenes")
    names = {"all": "all", **{name: name for name in lines[0]["held_out"] if name not in ("all", "blind")}}
    names["blind"] = "another image"
    rows = [
        [
            line["part"],
            f"{line['minutes']:.0f}",
            str(line["step"]),
            *(f"{100 * line['held_out'][n]:.1f}" for n in names),
        ]
        for line in lines
    ]
    first, *_, last = smollm2_log("patches")
    said = (
        f"Between the two, the first layers alone learned of patches, for {last['minutes']:.0f} CPU minutes; "
        f"their loss on held-out scenes fell from {first['held_out']['patch_loss']:.2f}, at step {first['step']}, to "
        f"{last['held_out']['patch_loss']:.2f}."
    )
    return markdown([["scenes", "CPU minutes", "steps", *names.values()], *rows]) + f"\n\n{said}"


def training_smollm2_tried() -> str:
    """Say what came of the training from the committed weights that was not kept, from its log."""
    projector, asked = smollm2_log("projector, not kept"), smollm2_log("full scenes, not kept")[-1]
    alone, moved = projector[-1], max(line["strayed"] for line in projector)
    before, told, after = smollm2_log("full scenes")[-1]["held_out"], alone["held_out"], asked["held_out"]
    answered = ", ".join(
        f"{100 * after[name]:.1f} % ({name}; before {100 * before[name]:.1f})"
        for name in ("all", "reading", "counting")
    )
    return (
        f"The projector learned alone for {alone['minutes']:.0f} CPU minutes, while its outputs moved by at "
        f"most {100 * moved:.0f} % of their variance in each of two runs. Of patches with a letter or digit it then "
        f"told {100 * told['projector_glyphs']:.0f} % right, and the first layers, not trained meanwhile, "
        f"{100 * told['patch_glyphs']:.0f} %. Then all learned from questions, in {asked['step']} steps and "
        f"{asked['minutes']:.0f} CPU minutes. Of the held-out questions it answered {answered}."
    )


# --- methods ----------------------------------------------------------------------------------------------------------


def summary(method: type[Method]) -> str:
    """Return the first line of a method's docstring."""
    return (inspect.getdoc(method) or "").split("\n")[0]


def paper(method: type[Method]) -> str:
    """Return a link to a method's paper, or nothing for a control."""
    found = re.search(r"arXiv (\d{4}\.\d{4,5})", inspect.getdoc(method) or "")
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def method_names() -> str:
    """Say what our methods do in one line each, and list the peers with their papers."""
    links = {name: paper(method) for name, method in METHODS.items()}
    ours = [name for name, link in links.items() if not link or name == "idselection"]
    lines = [f"- {METHODS[name].label}: {summary(METHODS[name])}" for name in ours]
    peers = [f"[{METHODS[name].label}]{link[link.index('(') :]}" for name, link in links.items() if name not in ours]
    return "\n".join([*lines, f"- Peers: {', '.join(peers)}."])


class _Recorded(VisualTokens):
    """Visual tokens that know which of their fields were read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("features", "grid"):
            object.__getattribute__(self, "__dict__").setdefault("fields_read", set()).add(name)
        return super().__getattribute__(name)

    def with_instruction(self, *_: Any, **__: Any) -> VisualTokens:
        """Return these tokens: a copy would read every field."""
        return self


def _read_and_merged(method: type[Method]) -> tuple[list[str], bool]:
    """Run a method on random tokens; return the views that it reads, and whether it gives tokens that it merged."""
    from tests.support.images import batch, image

    knobs = {"budget_convention": "final"} if "select" in vars(method) and issubclass(method, InLLM) else {}
    plain = batch(image(0), image(1))
    tokens = _Recorded(plain.features, plain.mask, plain.grid, plain.sources)
    vars(tokens)["fields_read"] = set()
    selection = method(budget=9, **knobs).select(tokens)
    own = sorted(
        tokens.computed | vars(tokens)["fields_read"] | ({"crops"} if "tokens.crops" in _source(method) else set())
    )
    return own, selection.features is not None


def _source(method: type[Method]) -> str:
    return inspect.getsource(sys.modules[method.__module__])


def _reads(method: type[Method]) -> str:
    if method.target_grid is not Method.target_grid:
        return "nothing: the image is made smaller"
    views = []
    if not issubclass(method, InLLM) or "select" in vars(method):
        read, _ = _read_and_merged(method)
        views += [f"`{name}`" for name in read if name != "image_key"] or ["nothing"]
    if issubclass(method, InLLM):
        source = inspect.getsource(method.choose)
        if "attended" in source or "attention" in source:
            views.append(f"attention of the layer {method.attention_from} the drop")
        if "read()" in source:
            views.append("keys of the layer before the drop")
        if "states" in source:
            views.append("hidden states")
    return ", ".join(views)


def _place(method: type[Method]) -> str:
    if method.target_grid is not Method.target_grid:
        return "a smaller image, before the vision tower"
    inside = issubclass(method, InLLM)
    before = not inside or "select" in vars(method)
    merges = before and _read_and_merged(method)[1]
    places = ["before the language model"] * before + ["inside it" if before else "inside the language model"] * inside
    return " and ".join(places) + (", merges" if merges or {"recycle", "own"} & set(_knobs(method)) else "")


def _knobs(method: type[Method]) -> dict[str, str]:
    defaults = {field.name: field.default for field in fields(method)}
    return {name: _printed(default) for name, default in defaults.items() if default is not MISSING}


def _printed(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}" if len(f"{value:g}") <= 5 else str(Fraction(value).limit_denominator(99))
    if isinstance(value, tuple):
        return f"({', '.join(map(_printed, value))})"
    return json.dumps(value) if isinstance(value, str) else str(value)


def methods() -> str:
    """Describe every method: label, paper, where it selects, what it reads, its knobs with their defaults."""
    rows = [["method", "`name`", "paper", "selects", "reads", "knobs beside `budget`"]]
    for name, method in METHODS.items():
        knobs = ", ".join(f"`{knob}={default}`" for knob, default in _knobs(method).items())
        rows.append([method.label, f"`{name}`", paper(method), _place(method), _reads(method), knobs])
    return markdown(rows)


def method_sections() -> str:
    """Print what the docstring of each method says, knob by knob."""
    sections = []
    for name, method in METHODS.items():
        text = (inspect.getdoc(method) or "").split("\nParameters\n")[0].strip()
        lines = [f"### {method.label} (`{name}`)", "", _plain(text)]
        knobs = [f"- `{knob}`: {_plain(words)}" for knob, words in _documented(method).items()]
        sections.append("\n".join([*lines, *([""] if knobs else []), *knobs]))
    return "\n\n".join(sections)


def _plain(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r"(?<!\n)\n(?!\n)", " ", text))


def _documented(method: type[Method]) -> dict[str, str]:
    """Return what the docstrings of a method and its bases say about each knob but the budget."""
    found: dict[str, str] = {}
    for base in method.__mro__:
        if base is Method or not issubclass(base, Method):
            continue
        section = (inspect.getdoc(base) if "__doc__" in vars(base) else "") or ""
        section = section.partition("\nParameters\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=\S)", section)[1:]:
            head, _, words = entry.partition("\n")
            if " : " in head:
                found.setdefault(head.split(" : ")[0], inspect.cleandoc(words))
    return found


# --- model families ---------------------------------------------------------------------------------------------------


def family_names() -> str:
    """List the model families by the names of their configurations."""
    return ", ".join(f"`{name}`" for name in sorted(BACKBONES))


FEATURES: Final = {
    "axes of positions": "position axes",
    "parts on disk": "offloaded to disk",
    "attention by name": "other attention functions",
    "chat": "conversations",
}
"""What the columns of the matrix are called, where the recorded name says too little."""


def families() -> str:
    """Say what of each model family was seen to work in the tests, and which methods it refuses, and why."""
    from tests.support.families import FAMILIES, LLAVA, WHISPER

    recorded = json.loads((DOCS / "families.json").read_text())
    works = recorded.pop("methods")
    titles = [FEATURES.get(name, name) for name in recorded]
    rows = [["family", "position axes", "[CLS]", "video", *titles, "methods"]]
    reasons: dict[str, dict[tuple[str, ...], list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(BACKBONES):
        family = {"llava": LLAVA, "whisper": WHISPER}.get(name) or FAMILIES[name]
        for why in dict.fromkeys(family.refused.values()):
            reasons[why][tuple(method for method, given in family.refused.items() if given == why)].append(name)
        facts = [family.has_cls, any(size < 0 for size in family.counts)]
        seen = [recorded[feature].get(name) == "passed" for feature in recorded]
        run = f"{len(METHODS) - len(family.refused)} of {len(METHODS)}" if works.get(name) == "passed" else "-"
        marks = ["yes" if fact else "-" for fact in (*facts, *seen)]
        rows.append([f"`{name}`", str(BACKBONES[name].position_axes), *marks, run])
    refused = [
        f"- {_quoted(methods)} on {_quoted(names)}: {why}"
        for why, alike in reasons.items()
        for methods, names in alike.items()
    ]
    return "\n".join([markdown(rows), "", "Refused on images, with the reason that the error gives:", "", *refused])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def architectures() -> str:
    """List the configurations of published models: their sizes, from the files, and their published parameters."""
    rows = [["name", "checkpoint", "language model", "tower", "parameters"]]
    for row in csv.DictReader((CONFIGS / "published.csv").open()):
        config: Any = read_architecture(row["name"])
        text = config.get_text_config()
        tower = config.audio_config if hasattr(config, "audio_config") else config.vision_config
        width = getattr(tower, "embed_dim", None) or tower.hidden_size
        exact, count = int(row["digits"]) > 4, int(row["parameters"])
        cells = [
            f"`{row['name']}`",
            f"`{row['checkpoint']}`",
            f"{text.model_type}: {text.num_hidden_layers} layers of width {text.hidden_size}, "
            f"{text.num_attention_heads} heads, {text.num_key_value_heads} of keys",
            f"{tower.model_type}: {tower.num_hidden_layers} layers of width {width}",
            f"{count:,}" if exact else f"{count / 1e9:.{int(row['digits']) - len(str(count // 10**9))}f} billion",
        ]
        source = row["paper"]
        cells[1] += f", [arXiv {source}](https://arxiv.org/abs/{source})" if source else ""
        rows.append(cells)
    return markdown(rows)


def across_figures() -> str:
    """Show the figures across backbones, where they are published."""
    names = [name for name in ("19_accuracy", "19_ranks") if (DOCS / f"figures/{name}.png").exists()]
    shown = [f"![{_bracketed(alt(name))}](figures/{name}.png)" for name in names]
    return "\n\n".join(shown) or not_yet("across-figures", BY_HAND["across-backbones"])


BLOCKS: Final[Mapping[str, Callable[[], str]]] = {
    "accuracy": accuracy,
    "across-figures": across_figures,
    "architectures": architectures,
    "asked-gamma": lambda: f"Gamma and the update rule: {asked('02_ablation_gamma')}.",
    "asked-importance": lambda: f"Importance: {asked('03_ablation_importance')}.",
    "budget": lambda: f"{asked('04_ablation_budget')}.\n\n{with_labels('budget')}",
    "columns": columns,
    "comparison": lambda: f"{asked('06_comparison')}.\n\n{with_labels('comparison_shares')}",
    "comparison-all-shares": comparison_all_shares,
    "comparison-full": lambda: f"{asked('06_comparison')}.\n\n{with_labels('comparison')}",
    "comparison-missing": comparison_missing,
    "families": families,
    "family-names": family_names,
    "gpu": lambda: gpu_tables(markdown),
    "headline": headline,
    "method-names": method_names,
    "method-sections": method_sections,
    "methods": methods,
    "notebooks": notebooks,
    "test-times": lambda: times("test", "test-all"),
    "time": lambda: times("figures", "test"),
    "training": training,
    "pilot": pilot,
    "training-smollm2": training_smollm2,
    "training-smollm2-tried": training_smollm2_tried,
}
