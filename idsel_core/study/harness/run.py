"""Run tasks of the harness for several methods and budgets: the model is loaded once, and a killed run resumes."""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from idsel_core.hints import did_you_mean
from idsel_core.loading.hub import read_family_config
from idsel_core.study.devices import check_device
from idsel_core.study.harness.find_tasks import version_of
from idsel_core.study.harness.journal import digest
from idsel_core.study.harness.registry import GENERIC, PREFIX, WRAPPED, check_version, manifests
from idsel_core.study.harness.rows import NoScore, rows_of
from idsel_core.study.harness.setting import Setting, Unpruned
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results


def usual_model(backbone: str) -> str:
    """Return the harness's model for a checkpoint, by its model type.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `load`.
    """
    family = read_family_config(backbone).model_type
    return next((name for name, families in WRAPPED.items() if family in families), GENERIC)


def find_model(backbone: str, model: str = "") -> Any:
    """Return the class of the harness, with its calls pruned, for a checkpoint.

    Parameters
    ----------
    backbone : str
        Hub id or folder.
    model : str
        The harness's name of the class, one of `WRAPPED`; by default the one for the checkpoint's family.

    Raises
    ------
    FileNotFoundError, ImportError, ValueError
        If the checkpoint or the class is not there.
    """
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model

    check_version()
    name = (model or usual_model(backbone)).removeprefix(PREFIX)
    if name not in WRAPPED:
        raise ValueError(f"unknown model {model!r}{did_you_mean(name, WRAPPED)}; known: {', '.join(WRAPPED)}")
    # The entry point is not seen where a checkout's older metadata comes first on the path.
    for manifest in manifests():
        MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    try:
        return get_model(PREFIX + name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the harness's {name} needs {error.name}, which is not installed; --model {GENERIC} does without it"
        ) from error


def arguments_of(backbone: str, device: str = "cpu", **arguments: Any) -> dict[str, Any]:
    """Return the arguments of a class of the harness that put a checkpoint on a device.

    Parameters
    ----------
    backbone : str
        Hub id or folder.
    device : str
        As torch names it; "auto" spreads the model over all GPUs.
    **arguments
        Further arguments, see `pruned`.

    Raises
    ------
    ValueError
        If there is no such device.
    """
    where = {"device": "cuda", "device_map": "auto"} if device == "auto" else {"device": device, "device_map": device}
    check_device(where["device"])
    return {"pretrained": backbone, **where, **arguments}


def job_name(backbone: str, task: str, setting: Setting, **given: Any) -> str:
    """Return the name under which the store keeps a task's rows of one setting."""
    last = Path(backbone).name
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{last}-{task}-{setting.name}").strip("-")
    return f"{words}-{digest([backbone, task, repr(setting), given])[:10]}"


def evaluate(
    model: Any,
    backbone: str,
    tasks: Mapping[str, Any],
    settings: Iterable[Setting],
    store: Results,
    *,
    manager: Any,
    limit: int = 0,
    options: str = "",
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Ask the questions of tasks with each setting, and store a row a question and setting.

    What the store already holds of the same model, task and code is not asked again; a setting that was killed resumes
    at the next question.

    Parameters
    ----------
    model : Pruned
        An instance of what `find_model` returned.
    backbone : str
        What rows call the model.
    tasks : Mapping
        What `load_tasks` returned.
    settings : iterable of Setting
        Methods and budgets.
    store : Results
        Where rows go.
    manager : TaskManager
        What `index_of_tasks` returned.
    limit : int
        Ask the first so many questions of each task; 0 asks all.
    options : str
        Arguments of ``generate`` in place of the task's, such as ``max_new_tokens=32``.

    Returns
    -------
    tuple
        The metrics, one row a setting, task and metric; and what could not be asked, and why: a setting that `prune`
        refuses, or a task that gives no score to a single question.

    Raises
    ------
    RuntimeError
        If the model fails on a question; of other kinds, whatever else goes wrong.
    """
    found: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for setting in settings:
        for name, task in tasks.items():
            job = job_name(backbone, name, setting, model=model.native_name, limit=limit, options=options)
            try:
                found += _evaluate(model, backbone, name, task, setting, store, job, manager, limit, options)
            except (NoScore, Unpruned) as error:
                print(f"{setting.title}, {name}: {error}", file=sys.stderr, flush=True)
                refused[f"{setting.title}, {name}"] = str(error)
    columns = ["setting", "task", "questions", "tokens", "metric", "value", "stored"]
    return pd.DataFrame(found, columns=columns), refused


def _evaluate(
    model: Any, backbone: str, name: str, task: Any, setting: Setting, store: Results, job: str, manager: Any,
    limit: int, options: str,
) -> list[dict[str, Any]]:  # fmt: skip
    from lmms_eval.evaluator import simple_evaluate

    store.check(job)
    started, files = time.perf_counter(), store.root / "files" / job
    model.use(setting, store.resume_folder(job) / "requests.jsonl")
    key = digest([model.key(), version_of(task)])
    stored = store.provenance(job)["parameters"] if job in store.jobs() else {}
    if stored.get("key") == key:
        return [{**one, "stored": True} for one in stored["metrics"]]
    done = len(model.journal)
    if done:
        print(f"{setting.title}, {name}: {done} questions were answered before", file=sys.stderr, flush=True)
    results = simple_evaluate(
        model=model,
        tasks=[task],
        limit=limit or None,
        batch_size=1,
        gen_kwargs=options or None,
        task_manager=manager,
        bootstrap_iters=0,
        process_docs_parallel=1,
        cli_args=argparse.Namespace(output_path=str(files), process_with_media=True),
    )
    if list(task.aggregation()) == ["submission"]:
        print(
            f"{setting.title}, {name}: answers for the benchmark's server are in {files}", file=sys.stderr, flush=True
        )
        same = {"setting": setting.title, "task": name, "questions": len(model.notes), "tokens": math.nan}
        return [{**same, "metric": "submission", "value": math.nan, "stored": False}]
    samples = results["samples"][name]
    positions = model.adapter.positions_of(setting.positions)
    split = task.config.test_split or task.config.validation_split
    rows = rows_of(
        samples, model.notes, setting, task=name, metrics=list(task.aggregation()), split=split, backbone=backbone,
        config=model.model.config, positions=positions,
    )  # fmt: skip
    same = {"setting": setting.title, "task": name, "questions": len(rows), "tokens": rows["tokens_kept"].mean()}
    metrics = [
        {**same, "metric": metric.partition(",")[0], "value": float(value)}
        for metric, value in results["results"][name].items()
        if "," in metric and "_stderr" not in metric and isinstance(value, int | float)
    ]
    given = {"key": key, "backbone": backbone, "task": name, "setting": repr(setting), "limit": limit}
    given |= {"options": options, "model": model.native_name, "arguments": model.key()["arguments"]}
    note = provenance({**given, "metrics": metrics}, device=str(model.device), started=started)
    note["files"] = {"weights": model.key()["weights"][0]}
    note["packages"] = {**note["packages"], **{one: version(one) for one in ("lmms-eval", "datasets")}}
    store.write(job, rows, note)
    return [{**one, "stored": False} for one in metrics]
