"""Commands of ``idsel``, called in this process."""

from collections.abc import Callable, Sequence

from idsel_core.study import cli


def command(name: str) -> Callable[[Sequence[str]], int]:
    """Return a function that runs a command with arguments and returns its exit status."""

    def run(arguments: Sequence[str]) -> int:
        try:
            return cli.main([name, *arguments])
        except SystemExit as left:
            return int(left.code or 0)

    return run
