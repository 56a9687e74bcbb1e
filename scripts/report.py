"""Write one HTML file with all figures and tables, where they came from and what they ran on; it opens offline."""

import argparse
import base64
import sys
from pathlib import Path

import jinja2
import mistune
import yaml

from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>idsel: report</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
  img { max-width: 100%; }
  table { border-collapse: collapse; font-size: 13px; }
  td, th { padding: 0.15em 0.6em; border-bottom: 1px solid #ddd; }
  pre { background: #f6f6f6; padding: 0.8em; overflow-x: auto; font-size: 12px; }
</style>
<h1>idsel: report</h1>
<h2>Figures</h2>
{% for name, picture, origin in figures %}
<h3 id="{{ name }}">{{ name }}</h3>
<img alt="{{ name }}" src="data:image/png;base64,{{ picture }}">
<details><summary>what it was drawn from</summary><pre>{{ origin }}</pre></details>
{% endfor %}
<h2>Tables</h2>
{% for name, table in tables %}
<h3 id="table-{{ name }}">{{ name }}</h3>
{{ table | safe }}
{% endfor %}
<h2>Parameters and environment</h2>
{% for job, note in jobs %}
<h3 id="job-{{ job }}">{{ job }}</h3>
<pre>{{ note }}</pre>
{% endfor %}
</html>
"""


def origin(figure: Path) -> str:
    """Return what a figure was drawn from, as text."""
    try:
        return yaml.safe_dump(read_origin(figure), sort_keys=False)
    except ValueError as error:
        return str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--figures", type=Path, default=Path("figures"), help="default: %(default)s")
    parser.add_argument("--tables", type=Path, default=Path("tables"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("results"), help="default: %(default)s")
    given = parser.parse_args()
    figures = sorted(given.figures.glob("*.png"))
    if not figures:
        print(f"error: no figures in {given.figures}/; run `make figures` first", file=sys.stderr)
        return 2
    stores = {"": Results(given.results), "times/": Times(given.results)}
    markdown = mistune.create_markdown(plugins=["table"])
    try:
        jobs = [
            (f"{folder}{job}", yaml.safe_dump(store.provenance(job), sort_keys=False))
            for folder, store in stores.items()
            for job in store.jobs()
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    html = page.render(
        figures=[(path.stem, base64.b64encode(path.read_bytes()).decode(), origin(path)) for path in figures],
        tables=[(path.stem, markdown(path.read_text())) for path in sorted(given.tables.glob("*.md"))],
        jobs=jobs,
    )
    given.out.write_text(html)
    print(f"{given.out}: {len(html) / 2**20:.1f} MiB, {len(figures)} figures, {len(jobs)} jobs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
