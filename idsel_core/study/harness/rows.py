"""Rows of our store from the harness's samples: one row a question."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from idsel_core.methods import drops_inside
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.study.cost import flops_prefill
from idsel_core.study.harness.setting import Setting

_TYPE_COLUMNS = ("question_type", "category", "data_type", "subset", "task_type", "type")
"""Columns of data sets that tell the kind of a question, the first that there is."""

Score = Callable[[Mapping[str, Any]], float]


class NoScore(ValueError):
    """A task whose metrics give no score to a single question."""


def _equal(first: str, second: str) -> Score:
    return lambda value: float(str(value[first]).strip().lower() == str(value[second]).strip().lower())


def _mmmu(value: Mapping[str, Any]) -> float:
    from lmms_eval.tasks.mmmu.utils import evaluate_mmmu

    return float(evaluate_mmmu([dict(value)])[1]["acc"])


def _mmbench(value: Mapping[str, Any]) -> float:
    """Score one rotation of a question; the metric counts a question when all of its rotations are right."""
    from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator

    frame = pd.DataFrame([dict(value) | {"prediction": str(value["prediction"])}])
    return float(mmbench_evaluator.eval_sub_data(frame, {value["index"]: value["answer"]}, static_only=True))


_OF_METRIC: Mapping[str, Score] = {
    "mmmu_acc": _mmmu,
    "seed_image": _equal("pred", "answer"),
    "seed_video": _equal("pred", "answer"),
    "seed_all": _equal("pred", "answer"),
    "gpt_eval_score": _mmbench,
}
"""Scores of metrics whose values for a question hold none."""


def score_of(sample: Mapping[str, Any], metrics: Iterable[str]) -> tuple[str, float]:
    """Return the first metric that gives a question a score, and the score, 0 to 1.

    Parameters
    ----------
    sample : Mapping
        What the harness keeps of a question, its metrics among it.
    metrics : iterable of str
        The metrics of the task, the most important first.

    Raises
    ------
    NoScore
        If no metric does.
    """
    for name in metrics:
        value = sample.get(name)
        if isinstance(value, Mapping):
            value = value["score"] if "score" in value else _OF_METRIC[name](value) if name in _OF_METRIC else None
        if isinstance(value, bool | int | float | np.number) and 0 <= float(value) <= 1:
            return name, float(value)
    raise NoScore(f"none of the metrics {', '.join(metrics)} gives a single question a score from 0 to 1")


def chance_of(doc: Mapping[str, Any], answer: str) -> float:
    """Return how often a guess is right: of yes and no, or of lettered options; 0 where the answer is free."""
    if answer.strip().lower() in ("yes", "no"):
        return 0.5
    letters = [one for one in "ABCDEFGH" if str(doc.get(one) or "nan").lower() not in ("nan", "none")]
    options = next((doc[name] for name in ("options", "choices", "candidates") if doc.get(name)), None)
    if isinstance(options, list) and len(options) > 1:
        return 1 / len(options)
    named = [one for one in "abcd" if doc.get(f"choice_{one}")]
    count = len(letters) if len(letters) > 1 else len(named)
    return 1 / count if count > 1 else 0.0


def rows_of(
    samples: Iterable[Mapping[str, Any]],
    notes: Mapping[tuple[str, int], Mapping[str, Any]],
    setting: Setting,
    *,
    task: str,
    metrics: Iterable[str],
    split: str,
    backbone: str,
    config: Any,
    positions: str,
) -> pd.DataFrame:
    """Return rows for `Results.write`, one a question.

    Parameters
    ----------
    samples : iterable of Mapping
        The harness's samples of one task.
    notes : Mapping
        By task and doc_id, what the model under `prune` noted of each question.
    setting : Setting
        How calls were pruned.
    task, split : str
        Name of the task, and of the split of its data set.
    metrics : iterable of str
        As for `score_of`.
    backbone : str
        What the rows call the model.
    config : PreTrainedConfig
        Of the model, for its FLOPs.
    positions : str
        Position ids of kept tokens.

    Raises
    ------
    NoScore
        As of `score_of`.
    """
    metrics, method = list(metrics), setting.method
    inside = method is not None and drops_inside(method)

    @functools.cache
    def gflops(layers: tuple[int, ...], text: int) -> float:
        try:
            return flops_prefill(config, layers, text).language_model / 1e9
        except (TypeError, ValueError):
            return float("nan")

    rows = []
    for sample in samples:
        note, doc = notes[task, sample["doc_id"]], sample["doc"]
        layers, target = note["layers"], sample["target"]
        answer = target if isinstance(target, str) else json.dumps(target, default=str, ensure_ascii=False)
        rows.append(
            {
                "question_id": str(sample["doc_id"]),
                "image_id": note["image_id"],
                "question_type": next((str(doc[name]) for name in _TYPE_COLUMNS if doc.get(name)), task),
                "budget": float(note["before"] if method is None else method.budget),
                "tokens_before": note["before"],
                "tokens_kept": layers[-1],
                "tokens_average": sum(layers) / len(layers),
                "prefill_gflops": gflops(tuple(layers), note["text_tokens"]),
                "prediction": note["text"].strip(),
                "answer": answer,
                "correct": score_of(sample, metrics)[1],
                "chance": chance_of(doc, answer),
            }
        )
    return pd.DataFrame(rows).assign(
        backbone=backbone,
        dataset=task,
        split=split,
        method=setting.name,
        **{knob: getattr(method, knob, None) for knob in ("importance", "normalise", "features", "update")},
        instruction=f"{method.instruction_tokens}@{method.instruction_layer}" if isinstance(method, Scored) else None,
        gamma=getattr(method, "gamma", np.nan),
        positions=positions,
        convention=getattr(method, "budget_convention", None) if inside else None,
        seed=getattr(method, "seed", 0),
    )
