"""Tell what a figure was drawn from, and whether the store still holds the same rows."""

import argparse
import sys
from collections.abc import Sequence
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.study.store.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    explaining = commands.add_parser("explain", help="tell what figures were drawn from")
    explaining.add_argument("figures", nargs="+", type=Path, metavar="FIGURE", help="a PNG or PDF file")
    explaining.add_argument("--results", type=Path, default=Path("results"), help="the store (default: %(default)s)")
    migrating = commands.add_parser("migrate", help="write files of an older schema version anew, in the present one")
    migrating.add_argument("results", nargs="?", type=Path, default=Path("results"), help="the store (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        if given.command == "migrate":
            migrated = Results(given.results).migrate()
            print("\n".join(map(str, migrated)) or "nothing to migrate")
            return 0
        for figure in given.figures:
            print(explain(figure, Results(given.results)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
