"""Where rows and figures come from: commit, parameters, packages, and hashes of weights and data."""

import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image, PdfParser, UnidentifiedImageError

_PACKAGES = ("idsel_core", "torch", "transformers", "tokenizers", "numpy", "scipy", "pandas", "pyarrow", "papermill")
_ALLOCATION = ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")
_OUTPUTS = ("docs/figures", "docs/tables", "docs/timing.json", "README.md")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def installed() -> dict[str, str | None]:
    """Return the versions of the packages that rows depend on."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def provenance(
    parameters: Mapping[str, Any],
    files: Iterable[str | Path] = (),
    *,
    device: str = "cpu",
    seed: int = 0,
    started: float | None = None,
) -> dict[str, Any]:
    """Describe how a job makes its rows, for `Store.write`.

    Parameters
    ----------
    parameters : Mapping
        The parameters of the notebook or command.
    files : iterable of str or Path
        Weights and data that the rows depend on, for their SHA-256.
    device : str
        What the model ran on, e.g. "cpu" or the name of the GPU.
    seed : int
        Seed of the job.
    started : float, optional
        `time.perf_counter()` at the job's start, for the wall time.

    Returns
    -------
    dict
        Ready for JSON. `allocation` names the GPUs and the Slurm job that Slurm or a lease gave. `dirty` says whether
        the checkout had uncommitted changes, not counting what `make publish` writes; it and `commit` are None outside
        a git checkout.

    Raises
    ------
    FileNotFoundError
        If one of the files is not there.
    """
    changed = _git("status", "--porcelain", "--", ":(top)", *(f":(top,exclude){name}" for name in _OUTPUTS))
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "parameters": dict(parameters),
        "packages": installed(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "allocation": {name: os.environ[name] for name in _ALLOCATION if name in os.environ},
        "seed": seed,
        "files": _hashes(files),
        "seconds": None if started is None else round(time.perf_counter() - started, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _hashes(files: Iterable[str | Path]) -> dict[str, str]:
    """Return the SHA-256 of files by their names, with the names of their folders where two have one name."""
    paths = [Path(path) for path in files]
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": sha256(path) for path in paths
    }


def origin(files: Iterable[str | Path], **parameters: Any) -> dict[str, Any]:
    """Describe what a figure is drawn from that is not in a store, for its metadata.

    Parameters
    ----------
    files : iterable of str or Path
        Weights and data, for their SHA-256.
    **parameters
        The parameters of the drawing.

    Returns
    -------
    dict
        Free of times, as `Store.origin`.

    Raises
    ------
    FileNotFoundError
        If one of the files is not there.
    """
    note = provenance(parameters, files)
    return {name: note[name] for name in ("commit", "dirty", "parameters", "files")}


def origin_comment(origin: Mapping[str, Any]) -> str:
    """Return a Markdown comment that says what a table was made from, for `read_origin`."""
    # Two hyphens would end the comment.
    return f"<!-- origin: {json.dumps(origin).replace('--', '-' + chr(92) + 'u002d')} -->"


def _origin_of_page(page: Path) -> dict[str, Any] | None:
    """Return what the tables of a Markdown page were made from; None if none of them tells."""
    notes = [json.loads(found) for found in re.findall(r"<!-- origin: (.*) -->", page.read_text())]
    if len(notes) < 2:
        return notes[0] if notes else None
    results = {job: source for note in notes for job, source in note.get("results", {}).items()}
    return {"tables": len(notes), "results": results}


def read_origin(figure: str | Path) -> dict[str, Any]:
    """Return what a figure, or a table, was made from.

    Parameters
    ----------
    figure : str or Path
        A PNG or PDF file, or a page of Markdown with tables.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it carries no origin.
    """
    figure = Path(figure)
    if not figure.is_file():
        there = sorted(path.name for path in figure.parent.glob(f"*{figure.suffix or '.png'}"))
        raise FileNotFoundError(f"no file {figure}; in its folder are: {', '.join(there) or 'none of the kind'}")
    try:
        if figure.suffix == ".md":
            page = _origin_of_page(figure)
            if page is None:
                raise ValueError(f"no table of {figure} tells what it was made from; tables of `make figures` do")
            return page
        if figure.suffix == ".pdf":
            with PdfParser.PdfParser(str(figure)) as document:
                note = getattr(document.info, "Subject", None)
        else:
            with Image.open(figure) as image:
                note = image.info.get("Description")
    except (UnidentifiedImageError, PdfParser.PdfFormatError) as error:
        raise ValueError(
            f"{figure} is no PNG or PDF file that can be read: {error}; rows and times have their origin in "
            f"_provenance/ beside them"
        ) from error
    if note is None:
        raise ValueError(f"{figure} does not tell what it was drawn from; figures of `make figures` do")
    return json.loads(note)
