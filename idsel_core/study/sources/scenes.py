"""The form of the embedded scenes: a parquet file of questions and one of images a split, images with boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from idsel_core.study.paths import DATA
from idsel_core.study.sources.split import Split, check_limit, first_of_each_type

_QUESTION_COLUMNS = ("question_id", "image_id", "question_type", "question", "choices", "answer")
_IMAGE_COLUMNS = ("image_id", "image", "objects")


def has_scenes(folder: Path) -> bool:
    """Tell whether a folder holds splits in this form."""
    return folder.is_dir() and any(folder.glob("*-questions.parquet"))


def read_split(name: str, folder: Path = DATA, limit: int = 0) -> Split:
    """Read a split of a data set in the form of the embedded scenes.

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
    check_limit(limit)
    paths = (folder / f"{name}-questions.parquet", folder / f"{name}-images.parquet")
    if not all(path.is_file() for path in paths):
        known = sorted(path.name.removesuffix("-questions.parquet") for path in folder.glob("*-questions.parquet"))
        raise FileNotFoundError(f"no split {name!r} in {folder}; there are: {', '.join(known) or 'none'}")
    questions = _read_parquet(paths[0], _QUESTION_COLUMNS)
    images = _read_parquet(paths[1], _IMAGE_COLUMNS).set_index("image_id")
    lost = sorted(set(questions["image_id"]) - set(images.index))
    if lost:
        raise ValueError(f"{paths[0]} asks about images that {paths[1]} does not hold, the first is {lost[0]!r}")
    questions = first_of_each_type(questions, limit)
    if limit:
        images = images.loc[questions["image_id"].unique()]
    lists = {
        "image_ids": pd.Series([[one] for one in questions["image_id"]], index=questions.index),
        "choices": pd.Series([list(choices) for choices in questions["choices"]], index=questions.index),
        "answers": pd.Series([[one] for one in questions["answer"]], index=questions.index),
    }
    questions = questions.assign(**lists, metric="equal")
    return Split(name, questions, images, paths, folder.name)


def _read_parquet(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it with `git checkout -- {path}`") from error
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame))}")
    return frame
