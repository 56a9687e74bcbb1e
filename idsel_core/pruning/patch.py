"""The entrances of a model, ``generate`` and ``forward``, while blocks prune it."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.caches import cache_in
from idsel_core.pruning.arguments import bound_arguments, moved_limits
from idsel_core.pruning.callbacks import GivenPrompts

if TYPE_CHECKING:
    from idsel_core.pruning.api import Pruning

_LOCK = threading.RLock()
_PATCHES: dict[nn.Module, Patch] = {}
_BLOCKS: ContextVar[tuple[Pruning, ...]] = ContextVar("idsel_blocks", default=())
"""The blocks that this thread, or task, is in."""
_RUNNING: ContextVar[frozenset[int]] = ContextVar("idsel_running", default=frozenset())
"""The models, by their ids, that a call in this thread, or task, is already inside of."""


def open_block(block: Pruning) -> None:
    """Let a block prune its model."""
    with _LOCK:
        if block.model not in _PATCHES:
            _PATCHES[block.model] = Patch(block.model)
        _PATCHES[block.model].blocks.append(block)
    _BLOCKS.set((*_BLOCKS.get(), block))


def close_block(block: Pruning) -> None:
    """Let a block prune its model no longer; the last one leaves the model as it was."""
    with _LOCK:
        patch = _PATCHES[block.model]
        patch.blocks.remove(block)
        if not patch.blocks:
            _PATCHES.pop(block.model).undo()
    own = list(_BLOCKS.get())
    if block in own:
        own.reverse()
        own.remove(block)
        own.reverse()
        _BLOCKS.set(tuple(own))


class Entrance:
    """A method of a model that shortens its calls first.

    A copy of the model, by ``copy.deepcopy`` or pickle, gets the plain method instead: no block prunes the copy.
    """

    def __init__(self, patch: Patch, name: str) -> None:
        self.patch, self.name = patch, name
        self.own = vars(patch.model).get(name)
        self.plain: Callable[..., Any] = getattr(patch.model, name)
        functools.update_wrapper(self, self.plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method on shorter prompts, or as it is where nothing prunes the call."""
        if id(self.patch.model) in _RUNNING.get() or not self.patch.blocks:
            return self.plain(*args, **kwargs)
        return self.patch.shortened(self.name, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        model = memo.get(id(self.patch.model))
        if model is None:
            return self
        return getattr(model, self.name) if self.own is None else copy.deepcopy(self.own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.patch.model, self.name)


class Patch:
    """What blocks change in a model.

    A call is pruned by the innermost block of its own thread or task, or else by the block that was entered last.

    Attributes
    ----------
    model : PreTrainedModel
        The model.
    blocks : list[Pruning]
        The blocks that are open, in the order in which they were entered.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks: list[Pruning] = []
        self.entrances = [Entrance(self, name) for name in ("generate", "forward")]
        # Qwen models remember between calls how far positions are behind columns.
        self.remembered = getattr(model.base_model, "rope_deltas", None)
        # Such models cannot answer several threads at a time.
        self.turn: AbstractContextManager[Any] = (
            threading.RLock() if hasattr(model.base_model, "rope_deltas") else nullcontext()
        )
        for entrance in self.entrances:
            setattr(model, entrance.name, entrance)

    def undo(self) -> None:
        """Leave the model as it was."""
        for entrance in self.entrances:
            delattr(self.model, entrance.name)
            if entrance.own is not None:
                setattr(self.model, entrance.name, entrance.own)
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = self.remembered

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # selection looks at values, which no graph holds
    def shortened(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``generate`` or ``forward`` on shorter prompts."""
        plain = {entrance.name: entrance.plain for entrance in self.entrances}[name]
        block = self._block()
        if block is None:
            return plain(*args, **kwargs)
        marks = {name: kwargs.pop(name) for name in ("question_mask",) if name in kwargs}
        inputs = bound_arguments(plain, args, kwargs) | marks
        with self.turn:
            return (self._generate if name == "generate" else self._forward)(plain, block, inputs)

    def _block(self) -> Pruning | None:
        """Return the block that prunes a call now; None where another thread has just left the last one."""
        with _LOCK:
            own = [block for block in reversed(_BLOCKS.get()) if block in self.blocks]
            return next(iter([*own, *self.blocks[::-1]]), None)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Let calls that come from a call of the model pass through untouched."""
        token = _RUNNING.set(_RUNNING.get() | {id(self.model)})
        try:
            yield
        finally:
            _RUNNING.reset(token)

    def _forward(self, plain: Callable[..., Any], block: Pruning, inputs: dict[str, Any]) -> Any:
        call = block.shorten(inputs, generating=False)
        with self._inside(), block.running(call, cache_in(inputs)):
            return plain(**(_without_marks(inputs) if call is None else call.short.inputs))

    def _generate(self, plain: Callable[..., Any], block: Pruning, inputs: dict[str, Any]) -> Any:
        """Return sequences that begin with the prompts as they were given: callers cut them off by their length."""
        if inputs.get("input_ids") is None and inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs.pop("inputs")
        if inputs.get("cache_implementation") == "paged":
            raise ValueError('prune() does not support continuous batching, cache_implementation="paged"')
        call = block.shorten(inputs, generating=True)
        with self._inside(), block.running(call, cache_in(inputs)):
            if call is None:
                return plain(**_without_marks(inputs))
            given = GivenPrompts(inputs["input_ids"], call.short.inputs["input_ids"].shape[1])
            cut = given.prompts.shape[1] - given.width
            output = plain(
                **(call.short.inputs | moved_limits(self.model, inputs, cut) | given.callbacks(call.short.inputs))
            )
        if isinstance(output, Tensor):
            return given.restore(output)
        output.sequences = given.restore(output.sequences)
        return output


def _without_marks(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call without those that prune alone reads."""
    return {name: value for name, value in inputs.items() if name != "question_mask"}
