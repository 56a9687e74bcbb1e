"""The command line ``idsel COMMAND``: reads the arguments, calls the command, and turns errors into one sentence."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from idsel_core.study.error_text import error_text

COMMANDS = {
    "evaluate": "evaluate",
    "encode": "encode",
    "cost": "cost",
    "time": "time_phases",
    "sweep": "sweep",
    "paper": "paper",
    "figures": "figures",
    "figure": "figure",
    "explain": "explain",
    "run": "run_notebook",
    "gallery": "gallery",
    "lease": "lease",
    "harness": "harness",
}
"""Name of each command, and of its module in `idsel_core.study.commands`."""


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="idsel",
        description="Measure how vision-language models answer with fewer visual tokens.",
        epilog="`idsel COMMAND --help` explains a command and shows an example.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = importlib.import_module(f"idsel_core.study.commands.{module}")
        text = (command.__doc__ or "").strip()
        summary = text.split("\n")[0].rstrip(".")
        one = commands.add_parser(name, help=summary[0].lower() + summary[1:], description=text, formatter_class=shape)
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, 1 if what ran failed, or 2 if the call or the files were wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # What stands behind -- goes to Snakemake.
    end = words.index("--") if "--" in words and words[0] in ("sweep", "paper", "figures") else len(words)
    given = _parser().parse_args(words[:end], argparse.Namespace(more=words[end + 1 :]))
    try:
        status: int = given.run(given)
    except ModuleNotFoundError as error:
        remedy = "pip install 'idsel_core[notebooks]'"
        print(f"error: idsel {given.command} needs {error.name}, which is not installed: {remedy}", file=sys.stderr)
        return 2
    except (OSError, ValueError, TypeError, ImportError) as error:
        print(f"error: {error_text(error)}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
