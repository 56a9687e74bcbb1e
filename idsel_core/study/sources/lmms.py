"""The questions of a task of lmms-eval, with its prompts, images and right answers."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from typing import Any

import pandas as pd
from PIL import Image
from tqdm import tqdm

from idsel_core.study.lmms_tasks import Task, open_task
from idsel_core.study.sources.split import ImageSource, Split, check_limit, joined


def read_task(name: str, limit: int = 0) -> Split:
    """Read the questions of a task.

    Each is called by its place in the task, and each image by a hash of its pixels, so that the same image is encoded
    once whatever the task calls it. Answers are scored by the task itself; see `idsel_core.study.lmms_tasks`.

    Parameters
    ----------
    name : str
        As for `open_task`.
    limit : int
        Take so many questions, the first ones; 0 takes all.

    Raises
    ------
    ImportError, ValueError
        As for `open_task`; also if a question shows no image, or has no right answer.
    """
    check_limit(limit)
    task = open_task(name)
    count = min(limit or len(task.docs), len(task.docs))
    records: list[dict[str, Any]] = []
    images: dict[str, ImageSource] = {}
    for number in tqdm(range(count), desc=f"read {name}", unit="question", mininterval=2):
        names = []
        for place, picture in enumerate(task.pictures(number)):
            names.append(_name(picture))
            images.setdefault(names[-1], functools.partial(_picture, task, number, place))
        answers = task.answers(number)
        if not names or not answers or not any(answers):
            lacking = "no image" if not names else "no right answer, so it can be answered but not scored"
            raise ValueError(f"question {number} of task {name!r} has {lacking}")
        record: dict[str, Any] = {
            "question_id": str(number),
            "image_id": joined(names),
            "image_ids": names,
            "question_type": task.kind(number),
        }
        record |= {"question": task.prompt(number), "answers": answers, "chance": task.chance(number), "choices": []}
        records.append(record | {"answer": Counter(answers).most_common(1)[0][0], "metric": f"lmms:{name}"})
    questions = pd.DataFrame(records)
    frame = pd.DataFrame({"image": pd.Series(images, dtype=object)}).rename_axis("image_id")
    return Split(task.split, questions, frame, (), name.rpartition("/")[-1], task.new_tokens, task.version)


def _name(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.size} {picture.mode}".encode() + picture.tobytes()).hexdigest()[:16]


def _picture(task: Task, number: int, place: int) -> Image.Image:
    return task.pictures(number)[place]
