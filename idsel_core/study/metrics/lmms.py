"""Scores of a task of lmms-eval, by the task's own functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from idsel_core.study.lmms_tasks import open_task


def score_task(name: str, predictions: Sequence[str], questions: pd.DataFrame) -> NDArray[np.float64]:
    """Score answers to a task's questions; see `idsel_core.study.metrics.score` and `Task.score`."""
    task = open_task(name)
    asked = zip(questions["question_id"], predictions, strict=True)
    return np.array([task.score(int(question), prediction) for question, prediction in asked], dtype=np.float64)
