"""The entrances of a model, its ``generate`` and ``forward`` and the ``forward`` of its core, while blocks prune it."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.own_calls import calling, is_calling
from idsel_core.pruning.arguments import bound_arguments, moved_limits, without_empty
from idsel_core.pruning.callbacks import GivenPrompts
from idsel_core.pruning.full_logits import with_full_logits
from idsel_core.pruning.passed_by import watch_parts
from idsel_core.pruning.turns import NextTurn

if TYPE_CHECKING:
    from idsel_core.pruning.block import Pruning

_LOCK = threading.RLock()
_PATCHES: dict[nn.Module, Patch] = {}
_BLOCKS: ContextVar[tuple[Pruning, ...]] = ContextVar("idsel_blocks", default=())
"""The blocks that this thread, or task, is in."""


def open_block(block: Pruning) -> None:
    """Let a block prune its model."""
    with _LOCK:
        if block.model not in _PATCHES:
            _PATCHES[block.model] = Patch(block.model, block.backbone.language_model)
        _PATCHES[block.model].blocks.append(block)
    _BLOCKS.set((*_BLOCKS.get(), block))


def calls_of(model: Any) -> int:
    """Return how many calls of a model came by while blocks were open; 0 once all are closed."""
    with _LOCK:
        return _PATCHES[model].calls if model in _PATCHES else 0


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
    """A method of a model, or of its core, that shortens its calls first.

    A copy of the model, by ``copy.deepcopy`` or pickle, gets the plain method instead: no block prunes the copy.
    """

    def __init__(self, patch: Patch, owner: nn.Module, name: str) -> None:
        self.patch, self.owner, self.name = patch, owner, name
        self.own = vars(owner).get(name)
        self.plain: Callable[..., Any] = getattr(owner, name)
        functools.update_wrapper(self, self.plain, updated=())
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method on shorter prompts, or as it is where nothing prunes the call."""
        if is_calling(self.patch.model) or not self.patch.blocks:
            return self.plain(*args, **kwargs)
        return self.patch.shortened(self, args, kwargs)

    def undo(self) -> None:
        """Let the method be what it was; what was put round it meanwhile, such as a hook, stays and calls it."""
        if vars(self.owner).get(self.name) is not self:
            return
        delattr(self.owner, self.name)
        if self.own is not None:
            setattr(self.owner, self.name, self.own)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self.owner))
        if owner is None:
            return self
        return getattr(owner, self.name) if self.own is None else copy.deepcopy(self.own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.owner, self.name)


class Patch:
    """What blocks change in a model.

    A call is pruned by the innermost block of its own thread or task, or else by the block that was entered last.

    Attributes
    ----------
    model : PreTrainedModel
        The model.
    blocks : list[Pruning]
        The blocks that are open, in the order in which they were entered.
    calls : int
        Calls that came by.
    """

    def __init__(self, model: Any, decoder: nn.Module) -> None:
        self.model = model
        self.blocks: list[Pruning] = []
        self.calls = 0
        self.entrances = [Entrance(self, model, name) for name in ("generate", "forward")]
        if model.base_model is not model:
            self.entrances.append(Entrance(self, model.base_model, "forward"))
        # Qwen models remember between calls how far positions are behind columns.
        self.remembered = getattr(model.base_model, "rope_deltas", None)
        # Such models cannot answer several threads at a time; of an encoder-decoder, the encoder is replaced in a call.
        alone = hasattr(model.base_model, "rope_deltas") or model.config.is_encoder_decoder
        self.turn: AbstractContextManager[Any] = threading.RLock() if alone else nullcontext()
        self.watch = watch_parts(model.base_model, decoder, self._encoded, self._read)

    def undo(self) -> None:
        """Leave the model as it was."""
        for entrance in self.entrances:
            entrance.undo()
        self.watch.close()
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = self.remembered

    def _encoded(self) -> None:
        """Note that images were encoded, if by none of the entrances."""
        block = None if is_calling(self.model) else self._block()
        if block is not None:
            block.encoded_apart = True

    def _read(self) -> None:
        """Note that the language model read what may hold images, if by none of the entrances."""
        block = None if is_calling(self.model) else self._block()
        if block is not None and block.encoded_apart:
            block.passed_by += 1

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # selection looks at values, which no graph holds
    def shortened(self, entrance: Entrance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call ``generate`` or ``forward`` on shorter prompts."""
        block, plain = self._block(), entrance.plain
        if block is None:
            return plain(*args, **kwargs)
        self.calls += 1
        marks = {name: kwargs.pop(name) for name in ("question_mask",) if name in kwargs}
        inputs = without_empty(bound_arguments(plain, args, kwargs), block.backbone.image_inputs) | marks
        if inputs.get("inputs_embeds") is not None and block.encoded_apart:
            block.passed_by += 1
        with self.turn, calling(self.model):
            if block.backbone.encoder_decoder:
                return block.cross_attend(inputs, entrance.name == "generate", plain)
            return (self._generate if entrance.name == "generate" else self._forward)(entrance, block, inputs)

    def _block(self) -> Pruning | None:
        """Return the block that prunes a call now; None where another thread has just left the last one."""
        with _LOCK:
            own = [block for block in reversed(_BLOCKS.get()) if block in self.blocks]
            return next(iter([*own, *self.blocks[::-1]]), None)

    def _forward(self, entrance: Entrance, block: Pruning, inputs: dict[str, Any]) -> Any:
        call = block.shorten(inputs, generating=False)
        of_core = entrance.owner is not self.model
        with block.running(call, inputs) as note:
            given = _without_marks(inputs) if call is None else call.inputs
            # The hooks of the core have run when its forward is called.
            output = note(entrance.plain(**(block.backbone.joined(given) if of_core else given)))
        if call is None or isinstance(call, NextTurn) or of_core:
            return output
        if not block.fills_logits(inputs):
            return output
        return with_full_logits(output, block.backbone, call.short, inputs)

    def _generate(self, entrance: Entrance, block: Pruning, inputs: dict[str, Any]) -> Any:
        """Return sequences that begin with the prompts as they were given: callers cut them off by their length."""
        if inputs.get("input_ids") is None and inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs.pop("inputs")
        if inputs.get("cache_implementation") == "paged":
            raise ValueError('prune() does not support continuous batching, cache_implementation="paged"')
        call = block.shorten(inputs, generating=True)
        with block.running(call, inputs) as note:
            if call is None:
                return entrance.plain(**_without_marks(inputs))
            given = GivenPrompts(inputs["input_ids"], call.inputs["input_ids"].shape[1])
            cut = given.prompts.shape[1] - given.width
            output = note(
                entrance.plain(**(call.inputs | moved_limits(self.model, inputs, cut) | given.callbacks(call.inputs)))
            )
        if isinstance(output, Tensor):
            return given.restore(output)
        output.sequences = given.restore(output.sequences)
        return output


def _without_marks(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call without those that prune alone reads."""
    return {name: value for name, value in inputs.items() if name != "question_mask"}
