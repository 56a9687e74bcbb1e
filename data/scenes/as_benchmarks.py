"""Write scenes as tasks of lmms-eval in the form of POPE, MMBench and TextVQA, which run without a network.

    python -m data.scenes.as_benchmarks .cache/scenes_tasks --split test --limit 60

Prompts are those of the study, so that both can be compared question by question; scoring is the benchmarks' own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from idsel_core.study.dataset import Split, read_split

LETTERS = "ABCD"
FORMS = {"scenes_pope": "existence", "scenes_mmbench": "choice", "scenes_textvqa": "reading"}
"""Tasks, and the question type that each asks."""

UTILS = '''"""Functions of the tasks beside this file."""

from lmms_eval.tasks.mmbench.en_utils import mmbench_aggregate_dev_results_static as mmbench_static
from lmms_eval.tasks.mmbench.en_utils import mmbench_process_results
from lmms_eval.tasks.pope.utils import pope_aggregate_accuracy, pope_aggregate_f1_score, pope_process_results
from lmms_eval.tasks.textvqa.utils import textvqa_process_results


def image(doc):
    return [doc["image"].convert("RGB")]


def no_image(doc):
    return []
'''

METRICS = {
    "scenes_pope": ("pope_process_results", {"pope_accuracy": "accuracy", "pope_f1_score": "f1_score"}),
    "scenes_mmbench": ("mmbench_process_results", {"gpt_eval_score": "mmbench_static"}),
    "scenes_textvqa": ("textvqa_process_results", {"exact_match": "mean"}),
}


class Function(str):
    """The name of a function in utils.py."""


yaml.SafeDumper.add_representer(Function, lambda dumper, name: dumper.represent_scalar("!function", str(name)))


def task_of(name: str, data: Path) -> dict[str, Any]:
    """Return the configuration of a task."""
    process, metrics = METRICS[name]
    names = {"accuracy": "pope_aggregate_accuracy", "f1_score": "pope_aggregate_f1_score"}
    return {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_visual": Function("utils.image"),
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        # The embedded backbone answers in one token and never ends by itself.
        "generation_kwargs": {"max_new_tokens": 1, "temperature": 0, "do_sample": False},
        "process_results": Function(f"utils.{process}"),
        "metric_list": [
            {
                "metric": metric,
                "aggregation": how if how == "mean" else Function(f"utils.{names.get(how, how)}"),
                "higher_is_better": True,
            }
            for metric, how in metrics.items()
        ],
    }


def columns_of(name: str, question: Any, place: int) -> dict[str, Any]:
    """Return the columns of a question in a benchmark's form."""
    if name == "scenes_pope":
        return {"id": str(place), "image_source": question.image_id, "category": "adversarial"}
    if name == "scenes_textvqa":
        return {"answers": [question.answer] * 10}
    words = question.question.replace("(", ") ").split(") ")
    options = dict(zip(words[1::2], (text.strip() for text in words[2::2]), strict=True))
    rest = {"index": place, "hint": "nan", "source": "scenes", "split": "test", "category": "choice"}
    return {**options, **rest, "L2-category": question.template, "answer": question.answer.strip("()")}


def write(folder: Path, split: Split, limit: int = 0) -> dict[str, list[str]]:
    """Write the tasks and their data into a folder.

    Parameters
    ----------
    folder : Path
        Where to; made if it is not there.
    split : Split
        Questions and images.
    limit : int
        Take the first so many questions of a type; 0 takes all.

    Returns
    -------
    dict[str, list[str]]
        The question ids of each task, in the order of its rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(UTILS)
    asked: dict[str, list[str]] = {}
    for name, kind in FORMS.items():
        questions = split.questions[split.questions["question_type"] == kind]
        questions = questions.head(limit) if limit else questions
        rows = [
            {"question_id": q.question_id, "question": q.question, "answer": q.answer}
            | columns_of(name, q, place)
            | {"image": {"bytes": split.images.at[q.image_id, "image"], "path": f"{q.image_id}.jpg"}}
            for place, q in enumerate(questions.itertuples(index=False))
        ]
        # By this, `datasets` knows which column holds images.
        features = {"info": {"features": {"image": {"_type": "Image"}}}}
        table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(features)})
        data = folder / f"{name}.parquet"
        pq.write_table(table, data)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task_of(name, data), sort_keys=False))
        asked[name] = pd.DataFrame(rows)["question_id"].tolist()
    return asked


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=0)
    given = parser.parse_args()
    for name, ids in write(given.folder, read_split(given.split), given.limit).items():
        print(f"{name}: {len(ids)} questions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
