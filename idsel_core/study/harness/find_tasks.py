"""Find tasks of lmms-eval, ours and those of a user's own folders among them, and load them with their data sets."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

from idsel_core.study.harness.journal import digest
from idsel_core.study.store.provenance import sha256

TASKS: Final = Path(__file__).parent / "tasks"
"""Tasks of our own, where the harness has none that runs without a judge."""

_VERSIONS: Final[WeakKeyDictionary[Any, str]] = WeakKeyDictionary()
"""Of tasks as they were first seen; a task that nobody holds is not kept, as its data set may be large."""

_NO_NETWORK: Final = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectionError",
    "ConnectError",
    "RetryError",
)
_NO_LOGIN: Final = ("LocalTokenNotFoundError", "GatedRepoError", "RepositoryNotFoundError", "DatasetNotFoundError")


def index_of_tasks(include: Sequence[str] = (), model: str = "") -> Any:
    """Return the harness's index of tasks, with ours and those in further folders.

    Parameters
    ----------
    include : sequence of str
        Folders of further tasks.
    model : str
        The harness's own name of the model, by which tasks choose prompts.

    Raises
    ------
    FileNotFoundError
        If a folder is not there.
    """
    from lmms_eval.tasks import TaskManager

    for folder in include:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder of tasks {folder}")
    return TaskManager("ERROR", include_path=[str(TASKS), *include], model_name=model or None)


def check_names(names: Sequence[str], manager: Any) -> None:
    """Refuse tasks and groups of tasks that an index does not hold.

    Parameters
    ----------
    names : sequence of str
        Tasks or groups of tasks.
    manager : TaskManager
        What `index_of_tasks` returned.

    Raises
    ------
    ValueError
        If a name is unknown; names the nearest ones.
    """
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)
            hint = f"; near it are: {', '.join(near)}" if near else ""
            raise ValueError(f"unknown task {name!r} among {len(manager.all_tasks)}{hint} (docs/benchmarks.md)")


def load_tasks(names: Sequence[str], manager: Any, chat: bool) -> dict[str, Any]:
    """Load tasks with their data sets; of a group, all its members.

    Parameters
    ----------
    names, manager
        As for `check_names`.
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


def version_of(task: Any) -> str:
    """Return what tells a task, loaded, from another version of it: its prompts, scoring and data set.

    That is a hash of its settings, of the files of code in the folders of its functions, and of the fingerprints of its
    data set, which change with the files or the commit that it was read from. It is that of the first call, as the
    harness writes options into the settings of a task that it runs.

    Parameters
    ----------
    task : Task
        One of those that `load_tasks` returned.
    """
    if task not in _VERSIONS:
        _VERSIONS[task] = _version_now(task)
    return _VERSIONS[task]


def _version_now(task: Any) -> str:
    data = getattr(task, "dataset", None)
    splits = data if isinstance(data, Mapping) else {"": getattr(task, "eval_docs", None)}
    prints = {str(name): str(getattr(split, "_fingerprint", "")) for name, split in splits.items()}
    return digest([_settled(vars(task.config)), prints])[:16]


def _settled(value: Any) -> Any:
    """Return what JSON can hold in place of a setting of a task: a function is its name and the code around it."""
    if isinstance(value, Mapping):
        return {str(name): _settled(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(one) for one in value]
    if isinstance(value, partial):
        return [_settled(value.func), _settled(value.args), _settled(value.keywords)]
    if callable(value):
        return [getattr(value, "__qualname__", type(value).__qualname__), *_code_around(value)]
    return value if value is None or isinstance(value, bool | int | float | str) else type(value).__qualname__


def _code_around(function: Callable[..., Any]) -> list[list[str]]:
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        return []
    return [] if file is None else [[path.name, sha256(path)] for path in sorted(Path(file).parent.glob("*.py"))]


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
    if any(kind in _NO_LOGIN for kind in kinds) and not any(kind in _NO_NETWORK[:2] for kind in kinds):
        return PermissionError(
            f"the data set of task {name} wants a login, or is not there: run `hf auth login`, and accept its terms on "
            f"its page if it has any ({said})"
        )
    if any(kind in _NO_NETWORK for kind in kinds):
        return ConnectionError(
            f"the data set of task {name} is not in the local cache, and there is no network to fetch it ({said})"
        )
    return ValueError(f"task {name} cannot be loaded: {said}")
