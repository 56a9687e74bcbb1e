"""Write the generated parts of README.md and of the cards: tables, timings and accuracies, from the stored files.

python scripts/readme.py            write them
python scripts/readme.py --check    fail where one is out of date
"""

import argparse
import csv
import inspect
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from idsel_core.backbones import BACKBONES
from idsel_core.loading.random_models import read_architecture
from idsel_core.methods import METHODS, InLLM
from idsel_core.study.paths import CONFIGS
from tests.families import FAMILIES, LLAVA

PAGES = (Path("README.md"), Path("data/backbone/README.md"), Path("data/configs/README.md"))
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(name: str) -> str:
    """Return a stored table."""
    return Path(f"tables/{name}.md").read_text().strip()


def time_taken() -> str:
    """Say how long `make figures` took when it last ran whole."""
    stored = Path("results/timing.json")
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
    recorded = json.loads(Path("tables/families.json").read_text())
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


def quoted(names) -> str:
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
    "accuracy": lambda: table("accuracy"),
    "architectures": architectures,
    "budget": lambda: table("budget"),
    "comparison": lambda: table("comparison_shares"),
    "comparison-missing": lambda: table("comparison_missing"),
    "claims": lambda: table("claims"),
    "efficiency": lambda: table("efficiency"),
    "families": families,
    "ideal": lambda: table("ideal"),
    "methods": methods,
    "time": time_taken,
    "training": training,
}


def render(text: str) -> str:
    """Return a page with its generated parts written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{WRITERS[found['name']]()}\n\n{found[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is out of date")
    given = parser.parse_args()
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    if given.check:
        print(*(f"{page} is out of date: run python scripts/readme.py" for page in stale), sep="\n", file=sys.stderr)
        return bool(stale)
    for page in stale:
        page.write_text(render(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
