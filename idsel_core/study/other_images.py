"""Ask questions about the image of another scene: what of the answers only the words of a question give away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from idsel_core.study.dataset import FULL, OTHER, Split
from idsel_core.study.evaluate import Study


def with_other_images(split: Split) -> Split:
    """Return the same questions, each about the images of the next question that shows others.

    The images are turned by one in the order in which the questions name them, so each is shown as often as another
    was.

    Parameters
    ----------
    split : Split
        Questions and images.

    Raises
    ------
    ValueError
        If all questions show the same images.
    """
    questions = split.questions
    shown = questions.drop_duplicates("image_id").set_index("image_id")["image_ids"]
    if len(shown) < 2:
        raise ValueError(f"all questions of {split.name} are about {shown.index[0]!r}: there is no other image to show")
    following = dict(zip(shown.index, [*shown.index[1:], shown.index[0]], strict=True))
    others = questions["image_id"].map(following)
    lists = pd.Series([list(shown[name]) for name in others], index=questions.index)
    return replace(split, questions=questions.assign(image_id=others, image_ids=lists))


def ask_other_images(study: Study, batch: int = 50, resume: Path | None = None) -> pd.DataFrame:
    """Ask all questions of a study about other images, with all their tokens.

    Parameters
    ----------
    study : Study
        A model and a split.
    batch, resume
        As for `Study.run`.

    Returns
    -------
    DataFrame
        One row a question, of method `OTHER`; ``image_id`` is the image that was shown.

    Raises
    ------
    ValueError
        As of `with_other_images`.
    """
    rows = replace(study, split=with_other_images(study.split)).run([FULL], batch=batch, resume=resume)
    return rows.assign(method=OTHER)
