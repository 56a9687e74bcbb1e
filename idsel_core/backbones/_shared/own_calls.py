"""Calls of a model that come from inside a pruned call, or from reading its images, and that nothing prunes again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_CALLING: ContextVar[frozenset[int]] = ContextVar("idsel_calling", default=frozenset())
"""The models, by their ids, that this thread, or task, is inside of."""


@contextmanager
def calling(model: Any) -> Iterator[None]:
    """Let calls of a model and of its parts pass through untouched in this block."""
    token = _CALLING.set(_CALLING.get() | {id(model)})
    try:
        yield
    finally:
        _CALLING.reset(token)


def is_calling(model: Any) -> bool:
    """Tell whether this thread, or task, is inside of a model."""
    return id(model) in _CALLING.get()
