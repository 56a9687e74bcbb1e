"""Write the generated parts of README.md and of the cards: tables, timings and accuracies, from the stored files.

python scripts/readme.py            write them
python scripts/readme.py --check    fail where one is out of date
"""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path

from idsel_core.methods import METHODS, InLLM

PAGES = (Path("README.md"), Path("data/backbone/README.md"))
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


WRITERS = {
    "accuracy": lambda: table("accuracy"),
    "budget": lambda: table("budget"),
    "comparison": lambda: table("comparison_shares"),
    "comparison-missing": lambda: table("comparison_missing"),
    "claims": lambda: table("claims"),
    "efficiency": lambda: table("efficiency"),
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
