"""Read the questions and images of one split of a data set."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pandas as pd
import pyarrow as pa
from PIL import Image

from idsel_core.study.paths import DATA

FULL, BLIND = "full", "no-image"
"""Names, beside those of methods, of the two ends of the scale: all visual tokens, and no image at all."""

_QUESTION_COLUMNS = ("question_id", "image_id", "question_type", "question", "choices", "answer")
_IMAGE_COLUMNS = ("image_id", "image", "objects")


@dataclass(frozen=True)
class Split:
    """Questions and images of one split of a data set.

    Attributes
    ----------
    name : str
        Name of the split.
    questions : DataFrame
        One row a question: question_id, image_id, question_type, question, choices, answer.
    images : DataFrame
        One row an image, indexed by image_id: image (JPEG or PNG bytes), objects (boxes in pixels).
    files : tuple[Path, Path]
        Where they were read from.
    """

    name: str
    questions: pd.DataFrame
    images: pd.DataFrame
    files: tuple[Path, Path]

    def picture(self, image_id: str) -> Image.Image:
        """Return one image."""
        return Image.open(io.BytesIO(cast(bytes, self.images.at[image_id, "image"]))).convert("RGB")


def read_split(name: str, folder: Path = DATA, limit: int = 0) -> Split:
    """Read a split of a data set.

    Parameters
    ----------
    name : str
        The split: ``<name>-questions.parquet`` and ``<name>-images.parquet`` lie in `folder`.
    folder : Path
        Folder of the data set.
    limit : int
        Take about this many questions, the first ones of each question type; 0 takes all.

    Raises
    ------
    FileNotFoundError
        If there is no such split; names those that there are.
    ValueError
        If a file is damaged, or its content is not what it should be, or `limit` is negative.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit must be a number of questions, or 0 for all, not {limit!r}")
    paths = (folder / f"{name}-questions.parquet", folder / f"{name}-images.parquet")
    if not all(path.is_file() for path in paths):
        known = sorted(path.name.removesuffix("-questions.parquet") for path in folder.glob("*-questions.parquet"))
        raise FileNotFoundError(f"no split {name!r} in {folder}; there are: {', '.join(known) or 'none'}")
    questions = _read_parquet(paths[0], _QUESTION_COLUMNS)
    images = _read_parquet(paths[1], _IMAGE_COLUMNS).set_index("image_id")
    lost = sorted(set(questions["image_id"]) - set(images.index))
    if lost:
        raise ValueError(f"{paths[0]} asks about images that {paths[1]} does not hold, the first is {lost[0]!r}")
    if limit:
        first = questions.groupby("question_type", sort=False).head(-(-limit // questions["question_type"].nunique()))
        questions = first.reset_index(drop=True)
        images = images.loc[questions["image_id"].unique()]
    return Split(name, questions, images, paths)


def _read_parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it with `git checkout -- {path}`") from error
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame))}")
    return frame
