"""Where the project lies, and in it the embedded backbone, its data set and the results.

The project is the nearest folder, from the working folder upwards, that has a pyproject.toml or a data set; so a
notebook finds the same files from JupyterLab, papermill and Snakemake.
"""

from pathlib import Path


def _nearest() -> Path | None:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() or (folder / "data/scenes").is_dir():
            return Path() if folder == here else folder
    return None


def _checkout() -> Path:
    """Return the checkout that this package is run from, or the working folder where it is installed elsewhere."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "data/scenes").is_dir() else Path()


_FOUND = _nearest()
PROJECT = _checkout() if _FOUND is None else _FOUND
"""The project's folder; as a path from the working folder where that is the project itself."""

DATA = PROJECT / "data/scenes"
MODEL = PROJECT / "data/backbone/assembled"
CACHE = PROJECT / ".cache/encodings"

ROWS = Path("results/rows")
TIMES = Path("results/times")
SWEEPS = Path("results/sweeps")
FIGURES = Path("results/figures")
TABLES = Path("results/tables")
TIMING = Path("results/timing.json")
TEST_TIMES = Path("results/test_times.json")
"""Folders and files of results, from the project's folder."""

PACKAGE = Path(__file__).parents[1]
ENCODINGS_DEPEND_ON = (
    "backbones",
    "loading",
    "scores",
    "visual_tokens.py",
    "study/dataset.py",
    "study/sources",
    "study/encodings.py",
    "study/open_backbone.py",
)
"""Folders and files of the package whose code an image's encoding depends on."""


def code_of(names: tuple[str, ...], package: Path = PACKAGE) -> list[Path]:
    """Return the files of code in folders and files of the package, sorted."""
    found = {path for name in names for path in [package / name, *(package / name).rglob("*.py")]}
    return sorted(path for path in found if path.suffix == ".py")


def project_path(path: str | Path) -> Path:
    """Return a path from the project's folder; outside any project, from the working folder."""
    return (Path() if _FOUND is None else PROJECT) / path
