"""Copy what README and docs show from results/ into docs/, and write the generated parts of the pages anew.

    python workflow/scripts/publish.py            copy and write; refuses where rows are missing or of uncommitted code
    python workflow/scripts/publish.py --pages    write the pages alone, from what docs/ holds
    python workflow/scripts/publish.py --check    write nothing, fail where a page is out of date

A generated part of a page stands between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is one of WRITERS below,
or names a table: `comparison-shares` is docs/tables/comparison_shares.md. The pages are README.md, CONTRIBUTING.md,
docs/*.md and the cards. environment.yml is generated as well, from pyproject.toml and constraints.txt.
"""

import argparse
import csv
import inspect
import json
import re
import shutil
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from idsel_core.backbones import BACKBONES
from idsel_core.loading.random_models import CONFIGS, read_architecture
from idsel_core.methods import METHODS, InLLM
from idsel_core.study.paths import FIGURES, ROWS, TABLES, TIMES, TIMING
from idsel_core.study.run.workflow import read_workflow
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

PROJECT = Path(__file__).parents[2]
DOCS = Path("docs")
RECORD = DOCS / "families.json"
CARDS = ("data/backbone/README.md", "data/scenes/README.md", "idsel_core/loading/configs/README.md")
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """Return a published table."""
    return (DOCS / f"tables/{name}.md").read_text().strip()


def time_taken() -> str:
    """Say how long `make figures` took when it last ran whole."""
    stored = DOCS / TIMING.name
    if not stored.exists():
        return "How long `make figures` takes has not been measured as a whole yet."
    timing = json.loads(stored.read_text())
    minutes = timing["seconds"] / 60
    return f"`make figures` took {minutes:.1f} minutes on {timing['cores']} cores ({timing['machine']})."


def training() -> str:
    """Say how the embedded backbone was trained, from its log."""
    lines = [json.loads(line) for line in Path("data/backbone/train.log.jsonl").read_text().splitlines()]
    last = lines[-1]
    return (
        f"{last['step']} steps, {last['seconds'] / 60:.0f} minutes; at the end "
        f"{100 * last['held_out']['all']:.1f} % of the questions about 40 held-out scenes were answered right."
    )


def methods() -> str:
    """List the registry: what each method does, in its own words, and where it comes from."""
    rows = ["| method | what it does | source |", "|---|---|---|"]
    for name, method in METHODS.items():
        words = inspect.getdoc(method)
        source = re.search(r"Source: .*?arXiv (\d+\.\d+)", words)
        where = f"[{source[1]}](https://arxiv.org/abs/{source[1]})" if source else ""
        inside = " *(inside the language model)*" if issubclass(method, InLLM) else ""
        rows.append(f"| `{name}` | {words.split(chr(10))[0]}{inside} | {where} |")
    return "\n".join(rows)


def families() -> str:
    """Say what of each model family was seen to work in the tests, and which methods it refuses, and why."""
    from tests.support.families import FAMILIES, LLAVA

    recorded = json.loads(RECORD.read_text())
    works = recorded.pop("methods")
    rows = [["family", "axes of positions", "[CLS]", "video", *recorded, "methods"]]
    reasons = defaultdict(lambda: defaultdict(list))
    for name in sorted(BACKBONES):
        family = LLAVA if name == "llava" else FAMILIES[name]
        for why in dict.fromkeys(family.refused.values()):
            reasons[why][tuple(method for method, given in family.refused.items() if given == why)].append(name)
        facts = [family.has_cls, any(size < 0 for size in family.counts)]
        seen = [recorded[feature].get(name) == "passed" for feature in recorded]
        run = f"{len(METHODS) - len(family.refused)} of {len(METHODS)}" if works.get(name) == "passed" else "-"
        marks = ["yes" if fact else "-" for fact in (*facts, *seen)]
        rows.append([f"`{name}`", str(BACKBONES[name].position_axes), *marks, run])
    rows.insert(1, ["---"] * len(rows[0]))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    refused = [
        f"- {quoted(methods)} on {quoted(names)}: {why}"
        for why, alike in reasons.items()
        for methods, names in alike.items()
    ]
    return "\n".join([*lines, "", "Refused on images, with the reason that is given:", "", *refused])


def quoted(names: Iterable[str]) -> str:
    """Return names in backticks, with commas between."""
    return ", ".join(f"`{name}`" for name in names)


def architectures() -> str:
    """List the configurations of published models: their sizes, from the files, and their published parameters."""
    rows = ["| name | checkpoint | language model | tower | parameters |", "|---|---|---|---|---|"]
    for row in csv.DictReader((CONFIGS / "published.csv").open()):
        config = read_architecture(row["name"])
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
        paper = row["paper"]
        cells[1] += f", [arXiv {paper}](https://arxiv.org/abs/{paper})" if paper else ""
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


WRITERS = {
    "architectures": architectures,
    "comparison": lambda: table("comparison_shares"),
    "families": families,
    "methods": methods,
    "time": time_taken,
    "training": training,
}


def block(name: str) -> str:
    """Return the generated part of this name.

    Raises
    ------
    ValueError
        If nothing has this name.
    """
    if name in WRITERS:
        return WRITERS[name]()
    known = sorted(path.stem.replace("_", "-") for path in (DOCS / "tables").glob("*.md"))
    if name not in known:
        raise ValueError(f"nothing generates {name!r}; known are {', '.join([*WRITERS, *known])}")
    return table(name.replace("-", "_"))


def render(text: str) -> str:
    """Return a page with its generated parts written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{block(found['name'])}\n\n{found[3]}", text)


def conda_environment() -> str:
    """Return environment.yml: what pyproject.toml asks for directly, in the versions of constraints.txt."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (PROJECT / "constraints.txt").read_text().split())
    versions = {normal(name): version for name, version in pinned.items()}
    wanted = {}
    for line in [
        *project["dependencies"],
        *(one for group in project["optional-dependencies"].values() for one in group),
    ]:
        name = re.match(r"[\w.-]+", line)[0]
        if normal(name) != normal(project["name"]):
            wanted[name] = line.partition(";")[2].strip().replace('"', "'")
    pins = [
        f"      - {name}=={versions[normal(name)]}{f' ; {marker}' if marker else ''}"
        for name, marker in sorted(wanted.items())
    ]
    python = project["requires-python"].replace(">=", "=")
    return "\n".join(
        [
            "# The environment for conda users: conda brings Python, pip the same versions as `make env`.",
            "#   conda env create -f environment.yml && conda activate idsel",
            "# Generated by `make publish` from pyproject.toml and constraints.txt.",
            "name: idsel",
            "channels:",
            "  - conda-forge",
            "dependencies:",
            f"  - python{python}",
            f"  - pip={versions['pip']}",
            "  - pip:",
            "      - -c constraints.txt",
            *pins,
            "      - -e .[dev]",
            "",
        ]
    )


def normal(name: str) -> str:
    """Return the name of a package as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def stale_files() -> dict[Path, str]:
    """Return the files that are out of date, with what they should hold."""
    pages = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(DOCS.glob("*.md")), *map(Path, CARDS)]
    wanted = {page: render(page.read_text()) for page in pages if page.exists()}
    wanted[Path("environment.yml")] = conda_environment()
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def check_sources(workflow: dict) -> None:
    """Refuse to publish what was made of uncommitted code, or not made at all.

    Raises
    ------
    ValueError
        If rows or times are missing or dirty; names them.
    """
    stores = [(Results(ROWS), workflow["jobs"]), (Times(TIMES), workflow.get("timed", {}))]
    missing = [f"{store.root}/{job}" for store, jobs in stores for job in jobs if job not in store.jobs()]
    missing += [path for path in published(workflow) if not path.exists()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"missing, run `make figures` first: {', '.join(map(str, missing[:3]))}{more}")
    dirty = [
        f"{store.root}/{job}"
        for store, jobs in stores
        for job in jobs
        if store.provenance(job).get("dirty") is not False
    ]
    if dirty:
        raise ValueError(
            "these were made outside a git checkout or of code that was not committed; commit, delete them and run "
            f"`make figures` again: {', '.join(dirty)}"
        )


def published(workflow: dict) -> dict[Path, Path]:
    """Return the files that are copied, and where to."""
    sources = [Path(path) for path in [*workflow["drawing"]["outputs"], *workflow.get("published", [])]]
    folders = {FIGURES: DOCS / "figures", TABLES: DOCS / "tables"}
    copies = {source: folders[source.parent] / source.name for source in sources}
    # How long a whole run took is known only where one was whole.
    return copies | ({TIMING: DOCS / TIMING.name} if TIMING.exists() else {})


def main() -> int:
    """Run from the command line; returns 0, 1 if a page is out of date, or 2 if there is nothing to publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is out of date")
    parser.add_argument("--pages", action="store_true", help="copy nothing, write the pages from what docs/ holds")
    given = parser.parse_args()
    try:
        if not (given.check or given.pages):
            workflow = read_workflow()
            check_sources(workflow)
            for source, copy in published(workflow).items():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
        stale = stale_files()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in stale.items():
        if given.check:
            print(f"{path} is out of date: run make publish ARGS=--pages", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"wrote {path}")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
