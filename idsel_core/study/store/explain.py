"""Tell what a figure was drawn from, and whether the stores still hold the same rows."""

from pathlib import Path

import yaml

from idsel_core.study.paths import ROWS, TIMES
from idsel_core.study.store.base import Store
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times


def explain(figure: str | Path, *stores: Store) -> str:
    """Say what a figure was drawn from, and whether the stores still hold the same rows.

    Parameters
    ----------
    figure : str or Path
        A PNG or PDF file.
    *stores : Store
        Stores of rows or times to compare with, in place of those of `make figures`.

    Raises
    ------
    OSError, ValueError
        As of `read_origin`, or if a file of a store is damaged.
    """
    note = read_origin(figure)
    lines = [f"{figure} was drawn from", yaml.safe_dump(note, sort_keys=False, width=120).rstrip()]
    by_kind = {store.kind: store for store in (Results(ROWS), Times(TIMES), *stores)}
    for name, source in note.get("results", {}).items():
        kind, _, job = name.partition("/")
        store = by_kind[kind]
        if job not in store.jobs():
            lines.append(f"{store.path(job)} is not there")
        else:
            same = store.provenance(job)["sha256"] == source["sha256"]
            lines.append(f"{store.path(job)} holds {'the same' if same else 'other'} rows")
    return "\n".join(lines)
