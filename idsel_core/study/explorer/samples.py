"""Pictures to look at: samples that packages ship, files, and the content of files."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from idsel_core.study.dataset import read_split
from idsel_core.study.paths import DATA, project_path
from idsel_core.study.sources.pictures import check_picture

_SPLIT = "validation"


_PHOTOGRAPHS: Final = {
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "coffee": ("skimage", "data/coffee.png"),
}
"""Package and file of each photograph; the packages, which take seconds to import, are not imported."""


def _photograph(name: str) -> Path:
    package, file = _PHOTOGRAPHS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"sample {name!r} comes with {package}, which is not installed")
    return Path(spec.submodule_search_locations[0]) / file


@functools.cache
def _scenes() -> dict[str, Callable[[], Image.Image]]:
    if not (DATA / f"{_SPLIT}-images.parquet").is_file():
        return {}
    split = read_split(_SPLIT)
    return {f"scene {row}": functools.partial(split.picture, name) for row, name in enumerate(split.images.index[:8])}


def samples() -> tuple[str, ...]:
    """Return the names of the samples: photographs, then drawn scenes where the project's data set is at hand."""
    return (*_PHOTOGRAPHS, *_scenes())


def open_picture(picture: str | bytes) -> Image.Image:
    """Return a picture, upright and in RGB.

    Parameters
    ----------
    picture : str or bytes
        Name of a sample, path of a file (from the working folder, or else the project's), or the content of one.

    Raises
    ------
    FileNotFoundError
        If there is neither such a sample nor such a file.
    ValueError
        If it cannot be used as a picture.
    """
    if isinstance(picture, bytes):
        check_picture(picture, "the upload")
        return _rgb(Image.open(io.BytesIO(picture)), "the upload")
    if picture in _PHOTOGRAPHS:
        return _rgb(Image.open(_photograph(picture)), picture)
    if picture in _scenes():
        return _scenes()[picture]().convert("RGB")
    path = Path(picture).expanduser()
    path = path if path.is_file() else project_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no picture {picture!r}: give a file, or one of {', '.join(samples())}")
    check_picture(path, "the picture")
    return _rgb(Image.open(path), str(picture))


def _rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
