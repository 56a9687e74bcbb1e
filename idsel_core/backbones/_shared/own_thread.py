"""Hooks that act in one thread alone, because several threads may run one model at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch


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
        # A compiled graph cannot ask which thread runs it.
        mine = torch.compiler.is_compiling() or threading.get_ident() == owner
        return hook(*args, **kwargs) if mine else None

    return acting
