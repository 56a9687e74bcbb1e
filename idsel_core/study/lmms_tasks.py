"""Tasks of lmms-eval, without its models: questions, images, right answers and scores by the task's own functions.

lmms-eval is an extra of its own, as its pins fight some of this project's; nothing of it is imported before a task is
asked for.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image

from idsel_core.study.harness.find_tasks import check_names, index_of_tasks, load_tasks, version_of
from idsel_core.study.harness.rows import NoScore, chance_of, score_of, type_of

_NEW_TOKENS: Final = 32
"""Most tokens of an answer, for tasks that say nothing; lmms-eval's models then take 1024 or more."""


@dataclass(frozen=True)
class Task:
    """One task of lmms-eval.

    Attributes
    ----------
    name : str
        As lmms-eval calls it.
    inner : Any
        Its task object.
    """

    name: str
    inner: Any

    @functools.cached_property
    def docs(self) -> Sequence[Mapping[str, Any]]:
        """The task's entries, with images."""
        return self.inner.eval_docs

    def prompt(self, number: int) -> str:
        """Return what the model is asked about an entry."""
        return str(self.inner.doc_to_text(self.docs[number]))

    def answers(self, number: int) -> list[str]:
        """Return the right answers of an entry, none where the task hides them."""
        doc = self.docs[number]
        target = self.inner.doc_to_target(doc)
        if self.inner.config.doc_to_choice is not None and isinstance(target, int):
            target = self.inner.doc_to_choice(doc)[target]
        found = target if isinstance(target, list | tuple) else [target]
        return [str(one) for one in found if one is not None]

    def pictures(self, number: int) -> list[Image.Image]:
        """Return the images of an entry.

        Raises
        ------
        ValueError
            If it shows something else, such as a video.
        """
        found = self.inner.doc_to_visual(self.docs[number]) or []
        for one in found:
            if not isinstance(one, Image.Image):
                raise ValueError(
                    f"task {self.name!r} shows {type(one).__name__}, and only images can be read here; run it through "
                    "lmms-eval itself (docs/benchmarks.md)"
                )
        return list(found)

    @property
    def split(self) -> str:
        """Name of the split that the task asks about; the task's own where it names none."""
        config = self.inner.config
        named = getattr(config, "test_split", None) or getattr(config, "validation_split", None)
        return str(named or self.name.rpartition("/")[-1])

    @property
    def new_tokens(self) -> int:
        """Most tokens of an answer."""
        return int((self.inner.config.generation_kwargs or {}).get("max_new_tokens") or _NEW_TOKENS)

    @property
    def version(self) -> str:
        """What tells prompts, scoring and data from another version of them."""
        return version_of(self.inner)

    def score(self, number: int, prediction: str) -> float:
        """Return how right an answer is, from 0 to 1, by the task's own filters and functions.

        Raises
        ------
        ValueError
            If they give no number for one question alone.
        """
        doc = self._docs_to_score[number]
        answer = _Answer([prediction])
        for pipeline in self.inner._filters[:1]:
            pipeline.apply([answer], [doc])
        # Some functions change the entry that they are given.
        results = self.inner.process_results(copy.deepcopy(doc), list(answer.filtered_resps.values()) or [prediction])
        try:
            return score_of(results, list(self.inner.aggregation()))[1]
        except NoScore as error:
            raise ValueError(
                f"task {self.name!r} does not score single answers: {error}; run it through lmms-eval itself "
                "(docs/benchmarks.md)"
            ) from error

    def kind(self, number: int) -> str:
        """Return the kind of a question, the task's name where there are no kinds."""
        return type_of(self.docs[number], self.name.rpartition("/")[-1])

    def chance(self, number: int) -> float:
        """Return how often a guess is right, 0 where the answer is free."""
        return chance_of(self.docs[number], self.answers(number)[0])

    @functools.cached_property
    def _docs_to_score(self) -> Sequence[Mapping[str, Any]]:
        return getattr(self.inner, "eval_docs_no_media", None) or self.docs


@dataclass
class _Answer:
    """What the filters of lmms-eval read and write."""

    resps: list[str]
    filtered_resps: dict[str, Any] = field(default_factory=dict)


@functools.lru_cache(maxsize=4)
def open_task(spec: str) -> Task:
    """Return a task, its data fetched.

    Parameters
    ----------
    spec : str
        As lmms-eval calls it; ``FOLDER/TASK`` for a task whose YAML file lies in a folder of your own.

    Raises
    ------
    ImportError
        If lmms-eval is not installed.
    ConnectionError, PermissionError
        If its data cannot be fetched; see `load_tasks`.
    ValueError
        If there is no such task, it does not ask for one text, or a judge scores it.
    """
    check_installed(spec)
    folder, _, name = spec.rpartition("/")
    if folder and not Path(folder).is_dir():
        raise ValueError(f"there is no folder {folder} of tasks, as asked for by lmms:{spec}")
    manager = _task_manager(folder)
    check_names([name], manager)
    if name not in manager.all_subtasks:
        raise ValueError(f"{name!r} of lmms-eval stands for several tasks; name one of them")
    inner = load_tasks([name], manager, chat=False)[name]
    if inner.OUTPUT_TYPE != "generate_until":
        raise ValueError(
            f"task {name!r} asks for {inner.OUTPUT_TYPE}; only tasks that ask for one text can be read here"
        )
    if _asks_a_judge(inner.config.process_results):
        raise ValueError(
            f"task {name!r} is scored by a judge, a model behind a network; run it through lmms-eval itself "
            "(docs/benchmarks.md)"
        )
    return Task(spec, inner)


@functools.cache
def _task_manager(folder: str) -> Any:
    """Return lmms-eval's index of tasks, which takes ten seconds to make, with those of one more folder, if any."""
    from loguru import logger

    for part in ("api", "tasks"):
        logger.disable(f"lmms_eval.{part}")
    return index_of_tasks([folder] if folder else [])


def _asks_a_judge(function: Any) -> bool:
    """Tell whether a function of a task sends answers to another model, as far as its source tells."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return False
    return re.search("judge|openai|chat_response", source, re.IGNORECASE) is not None


def check_installed(name: str) -> None:
    """Refuse tasks where lmms-eval is not installed.

    Raises
    ------
    ImportError
        Says how to install it.
    """
    if importlib.util.find_spec("lmms_eval") is None:
        raise ImportError(
            f"data lmms:{name} needs lmms-eval, which is not installed: pip install 'idsel_core[eval]', in an "
            "environment of its own (docs/benchmarks.md)"
        )
