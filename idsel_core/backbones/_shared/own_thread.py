"""Hooks that act in one thread alone, because several threads may run one model at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing in other threads than the one that made it.

    Parameters
    ----------
    hook : Callable
        A forward hook or pre-hook of a module.
    """
    owner = threading.get_ident()

    @functools.wraps(hook)
    def acting(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if threading.get_ident() == owner else None

    return acting
