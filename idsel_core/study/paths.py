"""Where things lie, from the project's folder."""

from pathlib import Path

DATA = Path("data/scenes")
MODEL = Path("data/backbone/assembled")
CACHE = Path(".cache/encodings")
ROWS = Path("results/rows")
TIMES = Path("results/times")

PACKAGE = Path(__file__).parents[1]
ENCODINGS_DEPEND_ON = (
    "backbones",
    "loading",
    "scores",
    "visual_tokens.py",
    "study/dataset.py",
    "study/encodings.py",
    "study/open_backbone.py",
)
"""Folders and files of the package whose code an image's encoding depends on."""


def code_of(names: tuple[str, ...], package: Path = PACKAGE) -> list[Path]:
    """Return the files of code in folders and files of the package, sorted."""
    found = {path for name in names for path in [package / name, *(package / name).rglob("*.py")]}
    return sorted(path for path in found if path.suffix == ".py")


SWEEPS = Path("results/sweeps")
FIGURES = Path("results/figures")
TABLES = Path("results/tables")
TIMING = Path("results/timing.json")
