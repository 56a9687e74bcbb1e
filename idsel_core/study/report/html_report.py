"""Write one HTML file with all figures and tables, where they came from and what they ran on; it opens offline."""

import base64
import re
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


def _origin(figure: Path) -> str:
    """Return what a figure was drawn from, as text."""
    try:
        return yaml.safe_dump(read_origin(figure), sort_keys=False)
    except ValueError as error:
        return str(error)


def write_report(out: Path, figures: Path, tables: Path, rows: Path, times: Path) -> str:
    """Write the report and return a line about it.

    Parameters
    ----------
    out : Path
        The HTML file.
    figures, tables : Path
        Folders of what is shown.
    rows, times : Path
        Folders of the stores, whose parameters and environments are shown.

    Raises
    ------
    FileNotFoundError
        If there are no figures.
    ValueError
        If a store is damaged.
    """
    pictures = sorted(figures.glob("*.png"))
    if not pictures:
        raise FileNotFoundError(f"no figures in {figures}/; run `make figures` first")
    markdown = mistune.create_markdown(plugins=["table"])
    jobs = [
        (f"{kind}{job}", yaml.safe_dump(store.provenance(job), sort_keys=False))
        for kind, store in (("", Results(rows)), ("times: ", Times(times)))
        for job in store.jobs()
    ]
    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    html = page.render(
        figures=[(path.stem, base64.b64encode(path.read_bytes()).decode(), _origin(path)) for path in pictures],
        tables=[
            (path.stem, markdown(re.sub(r"<!-- origin: .* -->", "", path.read_text())))
            for path in sorted(tables.glob("*.md"))
        ],
        jobs=jobs,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html)
    return f"{out}: {len(html) / 2**20:.1f} MiB, {len(pictures)} figures, {len(jobs)} jobs"
