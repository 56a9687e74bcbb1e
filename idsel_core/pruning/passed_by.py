"""Notice images that reach the language model without having been pruned, and say so when the block ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

REMEDY = "call model.generate(...) or model(...) with input_ids and the pixels"


class Watch:
    """A forward pre-hook that tells when a part of a model runs. A copy of the model gets one that tells nobody."""

    def __init__(self, tell: Callable[[], None] | None = None) -> None:
        self.tell = tell

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Tell, unless a graph is being traced, which cannot."""
        if self.tell is not None and not torch.compiler.is_compiling():
            self.tell()

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()


def watch_parts(
    core: nn.Module, decoder: nn.Module, encoded: Callable[[], None], read: Callable[[], None]
) -> ExitStack:
    """Tell when what encodes images runs, and when the language model does.

    Parameters
    ----------
    core : Module
        The model without its language-model head.
    decoder : Module
        The language model, one of its parts.
    encoded, read : Callable
        Told of each other part, and of the language model.

    Returns
    -------
    ExitStack
        Closing it ends the watch.
    """
    stack = ExitStack()
    for part in core.children():
        watch = Watch(read if part is decoder else encoded)
        stack.callback(part.register_forward_pre_hook(watch).remove)
    return stack


def warn_of_unpruned(passed_by: int, calls: int) -> None:
    """Warn at the end of a block, in the name of its caller's caller.

    Parameters
    ----------
    passed_by : int
        Passes of the language model that followed images which were encoded outside of a call that could be pruned.
    calls : int
        Calls of the model during the block.
    """
    if passed_by:
        why = (
            f"prune() was passed by: the language model ran {passed_by} times after images that were encoded by hand, "
            f"with all their tokens. Calls of a model's parts, such as model.get_image_features(...) and "
            f"model.model.language_model(...), are not pruned; {REMEDY}"
        )
    elif not calls:
        why = (
            f"prune() ends without a call of its model: was a copy of it called, or another model? Give that one to "
            f"prune(), and {REMEDY}"
        )
    else:
        return
    warnings.warn(why, stacklevel=3)
