"""Guards around the harness's model classes, several of which swallow errors and go on with empty answers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loguru import logger
from torch import Tensor

from idsel_core.study.harness.journal import digest

_MEDIA = ("images", "videos", "audio", "audios")


@dataclass
class Watched:
    """What happened in calls of ``generate``.

    Attributes
    ----------
    prompts : list[tuple[Tensor, Tensor or None]]
        input_ids and attention_mask of each call, (B, L).
    errors : list[Exception]
        What was raised, also where the caller swallowed it.
    """

    prompts: list[tuple[Tensor, Tensor | None]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


@contextmanager
def watched(model: Any) -> Iterator[Watched]:
    """Note the prompts and the exceptions of ``model.generate``."""
    inner, own, seen = model.generate, vars(model).get("generate"), Watched()

    def generate(*args: Any, **kwargs: Any) -> Any:
        seen.prompts.append((kwargs["input_ids"], kwargs.get("attention_mask")))
        try:
            return inner(*args, **kwargs)
        except Exception as error:
            seen.errors.append(error)
            raise

    model.generate = generate
    try:
        yield seen
    finally:
        del model.generate
        if own is not None:
            model.generate = own


@contextmanager
def logged_errors() -> Iterator[list[str]]:
    """Collect what the harness's model classes log as an error, which is how they drop an image or a video."""
    found: list[str] = []
    sink = logger.add(
        lambda message: found.append(message.record["message"]), level="ERROR", filter="lmms_eval.models", format=""
    )
    try:
        yield found
    finally:
        logger.remove(sink)


class WithoutEmptyMedia:
    """A processor that takes empty lists of images, videos or clips as none, for questions of text alone."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the processor."""
        empty = [name for name in _MEDIA if isinstance(kwargs.get(name), list) and not kwargs[name]]
        return self.processor(*args, **{name: value for name, value in kwargs.items() if name not in empty})


def content_of(value: Any) -> Any:
    """Return what JSON can hold in place of a prompt's content: tuples for images, arrays and files, and no others."""
    if isinstance(value, dict):
        return {str(name): content_of(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [content_of(one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        path = Path(value) if len(value) < 1000 and "/" in value and "\n" not in value else None
        if path is None or not path.is_file():
            return value
        return ("file", value, path.stat().st_size, path.stat().st_mtime)
    if hasattr(value, "tobytes"):
        shape = list(getattr(value, "shape", ())) or [value.mode, *value.size]
        return ("bytes", *map(str, shape), hashlib.sha256(value.tobytes()).hexdigest())
    return repr(value)


def image_id(content: Any) -> str:
    """Return a name of the images, videos and clips in what `content_of` gave, the same for the same ones."""
    found: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for one in value.values():
                collect(one)
        elif isinstance(value, list):
            for one in value:
                collect(one)
        elif isinstance(value, tuple):
            found.append(value[-1] if value[0] == "bytes" else value[1:])

    collect(content)
    return digest(found)[:16] if found else "none"
