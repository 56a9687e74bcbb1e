"""Scoring and prompts of the tasks beside this file, where the harness has none that fits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from idsel_core.study.metrics.yes_no import said


def hallusion_target(doc: Mapping[str, Any]) -> str:
    """Return the right answer to a question of HallusionBench, yes or no."""
    return "yes" if str(doc["gt_answer"]) == "1" else "no"


def hallusion_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Score an answer to a question of HallusionBench without a judge, read by `said`: neither yes nor no is wrong."""
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    value: dict[str, Any] = {name: str(doc[name]) for name in names} | {"prediction": said(results[0]) or ""}
    value["score"] = float(value["prediction"] == hallusion_target(doc))
    return {metric: value for metric in ("aAcc", "qAcc", "fAcc")}


def _all_right(results: Iterable[Mapping[str, Any]], *names: str) -> float:
    """Return the percentage of groups with equal values in columns in which every answer is right."""
    groups: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for one in results:
        groups[tuple(one[name] for name in names)].append(one["score"] == 1)
    return 100 * sum(map(all, groups.values())) / len(groups) if groups else 0.0


def hallusion_by_answer(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the percentage of right answers."""
    return 100 * sum(one["score"] for one in results) / len(results)


def hallusion_by_question(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the percentage of questions that are answered right about all of their figures."""
    return _all_right(results, "category", "subcategory", "set_id", "question_id")


def hallusion_by_figure(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the percentage of figures about which all questions are answered right; "no figure" is none."""
    shown = [one for one in results if (one["category"], one["figure_id"]) != ("VS", "0")]
    return _all_right(shown, "category", "subcategory", "set_id", "figure_id")


def mmbench_cn_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
    """Return the prompt of MMBench-CN; the harness's own begins with "nan" where a question has no hint."""
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_doc_to_text

    hint = doc["hint"]
    told = None if hint is None or str(hint).lower() == "nan" else hint
    return str(mmbench_doc_to_text({**doc, "hint": told}, lmms_eval_specific_kwargs))


def mmbench_cn_static(results: Sequence[Mapping[str, Any]], args: Any) -> float:
    """Return the percentage of questions of which all rotations are right, without a judge."""
    from lmms_eval.tasks._task_utils.file_utils import generate_submission_file
    from lmms_eval.tasks.mmbench.cn_utils import mmbench_evaluator

    overall, category, ability = mmbench_evaluator.eval_result(results, eval_method="static")
    with open(generate_submission_file("mmbench_cn_dev_static_results.json", args), "w") as file:
        json.dump({"overall_acc": overall, "category_acc": category, "l2_category_acc": ability}, file)
    return float(overall) * 100


def images_of_seed(dataset: Any) -> Any:
    """Return the questions of SEED-Bench about images, without those about videos."""
    return dataset.filter(lambda kind: kind == "image", input_columns=["data_type"])
