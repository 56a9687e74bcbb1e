"""Run tasks of the harness for several methods and budgets: the model is loaded once, and a killed run resumes."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from idsel_core.loading.hub import read_family_config
from idsel_core.study.devices import check_device
from idsel_core.study.harness.journal import digest
from idsel_core.study.harness.registry import GENERIC, PREFIX, WRAPPED, check_version, manifests
from idsel_core.study.harness.rows import NoScore, rows_of
from idsel_core.study.harness.setting import Setting
from idsel_core.study.paths import MODEL
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

TASKS = Path(__file__).parent / "tasks"
"""Tasks of our own, where the harness has none that runs without a judge."""

NO_NETWORK = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "RetryError")
NO_LOGIN = ("LocalTokenNotFoundError", "GatedRepoError", "RepositoryNotFoundError", "DatasetNotFoundError")


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
        raise ValueError(f"unknown model {model!r}{_near(name, WRAPPED)}; known: {', '.join(WRAPPED)}")
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


def called(backbone: str) -> str:
    """Return what rows call a model: its hub id, the name of its folder, or ``embedded``."""
    if not Path(backbone).is_dir():
        return backbone
    return "embedded" if Path(backbone).resolve() == MODEL.resolve() else Path(backbone).resolve().name


def check_tasks(names: Sequence[str], include: Sequence[str] = (), model: str = "") -> Any:
    """Return the harness's index of tasks, ours among them, when it holds all of these names.

    Parameters
    ----------
    names : sequence of str
        Tasks or groups of tasks.
    include : sequence of str
        Folders of further tasks.
    model : str
        The harness's own name of the model, by which tasks choose prompts.

    Raises
    ------
    FileNotFoundError
        If a folder is not there.
    ValueError
        If a name is unknown; names the nearest ones.
    """
    from lmms_eval.tasks import TaskManager

    for folder in include:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder of tasks {folder}")
    manager = TaskManager("ERROR", include_path=[str(TASKS), *include], model_name=model or None)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)
            hint = f"; near it are: {', '.join(near)}" if near else ""
            raise ValueError(f"unknown task {name!r} among {len(manager.all_tasks)}{hint} (docs/benchmarks.md)")
    return manager


def load_tasks(names: Sequence[str], manager: Any, chat: bool) -> dict[str, Any]:
    """Load tasks with their data sets; of a group, all its members.

    Parameters
    ----------
    names : sequence of str
        Tasks or groups of tasks.
    manager : TaskManager
        What `check_tasks` returned.
    chat : bool
        Whether the model reads messages.

    Raises
    ------
    ConnectionError, PermissionError
        If a data set cannot be had: there is no network, or it wants a login.
    """
    from lmms_eval.evaluator import _enable_reentrant_filelocks
    from lmms_eval.tasks import get_task_dict

    _enable_reentrant_filelocks()
    found: dict[str, Any] = {}
    for name in names:
        try:
            loaded = get_task_dict([name], manager, "chat" if chat else "simple")
        except Exception as error:
            raise _unavailable(name, error) from error
        found |= _leaves(loaded)
    return found


def _leaves(tasks: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        found |= _leaves(task) if isinstance(task, Mapping) else {str(name): task}
    return found


def _unavailable(name: str, error: BaseException) -> Exception:
    """Return an error that says in a sentence why the data set of a task cannot be had, or the error itself."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        attempt = getattr(link, "last_attempt", None)  # of tenacity's RetryError
        link = (attempt.exception() if attempt is not None else None) or link.__cause__ or link.__context__
    kinds = [type(cause).__name__ for cause in causes]
    said = re.sub(r"\s+", " ", str(causes[-1]))[:200]
    if any(kind in NO_LOGIN for kind in kinds) and not any(kind in NO_NETWORK[:2] for kind in kinds):
        return PermissionError(
            f"the data set of task {name} wants a login, or is not there: run `hf auth login`, and accept its terms on "
            f"its page if it has any ({said})"
        )
    if any(kind in NO_NETWORK for kind in kinds):
        return ConnectionError(
            f"the data set of task {name} is not in the local cache, and there is no network to fetch it ({said})"
        )
    return ValueError(f"task {name} cannot be loaded: {said}")


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
        What `check_tasks` returned.
    limit : int
        Ask the first so many questions of each task; 0 asks all.
    options : str
        Arguments of ``generate`` in place of the task's, such as ``max_new_tokens=32``.

    Returns
    -------
    tuple
        The metrics, one row a setting, task and metric; and what could not be asked, and why.
    """
    found: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for setting in settings:
        for name, task in tasks.items():
            job = job_name(backbone, name, setting, model=model.native_name, limit=limit, options=options)
            try:
                found += _evaluate(model, backbone, name, task, setting, store, job, manager, limit, options)
            except (NoScore, ValueError) as error:
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
    key = digest(model.key())
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


def _near(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
