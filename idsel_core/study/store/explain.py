"""Tell what a figure was drawn from, and whether the store still holds the same rows."""

from pathlib import Path

import pyarrow.parquet as pq
import yaml

from idsel_core.study.store.files import digest
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results


def explain(figure: str | Path, store: Results) -> str:
    """Say what a figure was drawn from, and whether a store still holds the same rows.

    Parameters
    ----------
    figure, store
        As for `read_origin`; the store to compare with.
    """
    note = read_origin(figure)
    lines = [f"{figure} was drawn from", yaml.safe_dump(note, sort_keys=False, width=120).rstrip()]
    for job, source in note.get("results", {}).items():
        now = store.root / f"{job}.parquet"
        if not now.is_file():
            lines.append(f"{now} is not there")
        else:
            # Times lie in a folder of the store and are of one version.
            table = pq.read_table(now, partitioning=None) if "/" in job else store._read(job)
            same = digest(table) == source["sha256"]
            lines.append(f"{now} holds {'the same' if same else 'other'} rows")
    return "\n".join(lines)
