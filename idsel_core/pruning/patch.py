"""The hooks that `prune` sets in a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.caches import cache_in
from idsel_core.pruning.arguments import bound_arguments, moved_limits

if TYPE_CHECKING:
    from idsel_core.pruning.api import Pruning


class Patch:
    """The cuts into a model: ``generate``, and hooks round ``forward``; the innermost run decides what they do."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.runs: list[Pruning] = []
        self.generate: Callable[..., Any] = model.generate
        self.own = model.__dict__.get("generate")
        self.inside = False
        self.forward = ExitStack()
        self.hooks = [
            model.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            model.register_forward_hook(self.after_forward, always_call=True),
        ]

        @functools.wraps(self.generate)
        def generate(*args: Any, **kwargs: Any) -> Any:
            return self.shortened_generate(args, kwargs)

        model.generate = generate

    def undo(self) -> None:
        """Give the model back as it was."""
        self.end_forward(failed=True)
        for hook in self.hooks:
            hook.remove()
        del self.model.generate
        if self.own is not None:
            self.model.generate = self.own

    def before_forward(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Shorten a call of ``forward`` that does not come from ``generate``."""
        if self.inside:
            return None
        self.end_forward(failed=True)
        run, inputs = self.runs[-1], bound_arguments(self.model.forward, args, kwargs)
        call = run.shorten(inputs, generating=False)
        self.forward.enter_context(run.running(call, cache_in(inputs)))
        return None if call is None else ((), call.short.inputs)

    def after_forward(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Report a call of ``forward``, whether it succeeded or not."""
        if not self.inside:
            self.end_forward(failed=output is None)

    def end_forward(self, failed: bool) -> None:
        """Leave what `before_forward` entered."""
        error = RuntimeError("the call of the model failed") if failed else None
        self.forward.__exit__(type(error) if error else None, error, None)

    def shortened_generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run ``generate`` on shorter prompts; return sequences that begin with the prompts as they were given."""
        inputs = bound_arguments(self.generate, args, kwargs)
        if inputs.get("input_ids") is None and inputs.get("inputs") is not None:
            inputs["input_ids"] = inputs.pop("inputs")
        if inputs.get("cache_implementation") == "paged":
            raise ValueError('prune() does not support continuous batching, cache_implementation="paged"')
        if self.inside:
            return self.generate(*args, **kwargs)
        run = self.runs[-1]
        call = run.shorten(inputs, generating=True)
        self.inside = True
        try:
            with run.running(call, cache_in(inputs)):
                if call is None:
                    return self.generate(*args, **kwargs)
                prompt, width = inputs["input_ids"], call.short.inputs["input_ids"].shape[1]
                out = self.generate(**(call.short.inputs | moved_limits(self.model, inputs, prompt.shape[1] - width)))
        finally:
            self.inside = False
        sequences: Tensor = out if isinstance(out, Tensor) else out.sequences
        # Callers cut their own prompt off by its length.
        prompt = prompt.to(sequences.device).repeat_interleave(len(sequences) // len(prompt), 0)
        sequences = torch.cat([prompt, sequences[:, width:]], 1)
        if isinstance(out, Tensor):
            return sequences
        out.sequences = sequences
        return out


PATCHES: dict[nn.Module, Patch] = {}
