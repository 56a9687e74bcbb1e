"""Capture the queries and keys of one attention layer while the model runs unchanged."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "idsel_capture_qk"


class Stop(Exception):
    """Ends a forward pass early, once the layer that it was run for has been captured."""


@dataclass
class CapturedQK:
    """Queries and keys of one attention layer, after its norms and rotary positions.

    Parameters
    ----------
    config : Any
        Configuration of the layer, which names the attention function that it goes on to use.
    query_tokens : Tensor, optional
        Mask of the query tokens whose attention is needed, bool (B, L). With it the forward pass ends, by `Stop`, as
        soon as the layer has been captured.
    pieces : list[tuple[Tensor, Tensor]]
        Queries (B, heads, L, d) and keys (B, key heads, L, d) once the layer has run: one pair, or one pair for each
        sequence if the layer attends within one sequence after the other.
    scale : float
        Factor of their inner products before the softmax.
    softcap : float, optional
        Bound of the scaled products, if the layer has one.
    """

    config: Any
    query_tokens: Tensor | None = None
    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    scale: float = 1.0
    softcap: float | None = None

    def tensors(self) -> tuple[Tensor, Tensor, float]:
        """Return the last queries and keys, and the scale.

        Raises
        ------
        RuntimeError
            If the layer did not run.
        """
        if not self.pieces:
            raise RuntimeError("the captured attention layer did not run")
        return *self.pieces[-1], self.scale


_CAPTURES: dict[tuple[int, nn.Module], CapturedQK] = {}
"""What is captured, by thread and attention module: several threads may run one model at a time."""
_PLAIN: dict[nn.Module, tuple[Any, int]] = {}
"""Configurations that captured modules had before, and how many threads capture them now."""
_COUNTING, _PARTIAL = threading.RLock(), threading.RLock()


@torch.compiler.disable  # type: ignore[untyped-decorator]  # no graph can ask which thread runs it
def _capture_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    seen = _CAPTURES.get((threading.get_ident(), module))
    config = _PLAIN.get(module, (module.config, 0))[0]
    if seen is not None:
        seen.pieces.append((query, key))
        scaling = kwargs.get("scaling")
        seen.scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        seen.softcap = kwargs.get("softcap")
        if seen.query_tokens is not None:
            raise Stop
    # transformers keeps eager attention in each model's own file, every other kind in one table.
    eager: Callable[..., Any] = getattr(sys.modules[type(module).__module__], "eager_attention_forward", _no_eager)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)
    # FlashAttention chooses its kernel by the name in the module's configuration.
    plain: Any = copy.copy(module)
    plain.config = config
    return attend(plain, query, key, value, attention_mask, **kwargs)


def _no_eager(module: nn.Module, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
    raise NotImplementedError(f"{type(module).__name__} has no eager attention to capture; load the model with SDPA")


AttentionInterface.register(_NAME, _capture_attention)


class _ProjectSelected(nn.Module):
    """Projection of selected tokens, the others are 0; in other threads the whole projection."""

    def __init__(self, projection: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        # In a tuple it is no submodule, so that its parameters keep their names.
        self.projection, self.places = (projection,), tokens.nonzero(as_tuple=True)
        self.owner = threading.get_ident()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, states: Tensor) -> Tensor:
        if threading.get_ident() != self.owner:
            whole: Tensor = self.projection[0](states)
            return whole
        places = tuple(axis.to(states.device) for axis in self.places)
        some: Tensor = self.projection[0](states[places])
        return some.new_zeros(*states.shape[:-1], some.shape[-1]).index_put(places, some)


class _ProjectNothing(nn.Module):
    """Zeros in place of a projection that is not read; in other threads the projection."""

    def __init__(self, projection: nn.Module, width: int) -> None:
        super().__init__()
        self.projection, self.width, self.owner = (projection,), width, threading.get_ident()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, states: Tensor) -> Tensor:
        if threading.get_ident() != self.owner:
            whole: Tensor = self.projection[0](states)
            return whole
        return states.new_zeros(()).expand(*states.shape[:-1], self.width)


@contextmanager
def _skip_unread_projections(module: nn.Module, query_tokens: Tensor) -> Iterator[None]:
    """Skip the value projection, and the query projection of all but the query tokens, of a layer."""
    with _PARTIAL:  # one thread at a time
        query, value = (getattr(module, name, None) for name in ("q_proj", "v_proj"))
        if not isinstance(query, nn.Module) or not isinstance(value, nn.Module) or not hasattr(value, "out_features"):
            yield  # for example a layer with one projection for queries, keys and values
            return
        width: Any = value.out_features
        try:
            module.q_proj, module.v_proj = _ProjectSelected(query, query_tokens), _ProjectNothing(value, width)
            yield
        finally:
            module.q_proj, module.v_proj = query, value


@contextmanager
def capture_qk(module: nn.Module, query_tokens: Tensor | None = None) -> Iterator[CapturedQK]:
    """Capture the queries and keys of one attention module while the model runs.

    Only references are kept: nothing is computed twice, and the layer keeps its attention function (SDPA,
    FlashAttention, eager).

    Parameters
    ----------
    module : nn.Module
        An attention module of a transformers model.
    query_tokens : Tensor, optional
        Mask of the query tokens whose attention is needed, bool (B, L). If given, the layer computes no values and, if
        it has a projection for queries alone, no other queries: those may hold any value. It raises `Stop` instead of
        attending, which the context manager catches.

    Yields
    ------
    CapturedQK
        It is filled when the module has run.
    """
    place = (threading.get_ident(), module)
    with _COUNTING:
        config, threads = _PLAIN.get(module, (module.config, 0))
        _PLAIN[module] = (config, threads + 1)
        if not threads:
            # A copy of the configuration names the capturing function for this one module; the shared one is not
            # changed.
            own: Any = copy.copy(config)
            own._attn_implementation_internal = _NAME
            module.config = own
    outer, seen = _CAPTURES.get(place), CapturedQK(config, query_tokens)
    _CAPTURES[place] = seen
    try:
        with nullcontext() if query_tokens is None else _skip_unread_projections(module, query_tokens):
            yield seen
    except Stop:
        pass
    finally:
        if outer is None:
            del _CAPTURES[place]
        else:
            _CAPTURES[place] = outer
        with _COUNTING:
            config, threads = _PLAIN[module]
            if threads == 1:
                module.config = config
                del _PLAIN[module]
            else:
                _PLAIN[module] = (config, threads - 1)


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a transformers encoder or decoder, one a layer, in order.

    Raises
    ------
    ValueError
        If their number is not the number of configured layers.
    """
    # vars() is much faster than hasattr() for the many modules without a config.
    found = [module for module in model.modules() if "config" in vars(module) and hasattr(module, "is_causal")]
    config: Any = model.config
    layers = config.depth if hasattr(config, "depth") else config.num_hidden_layers
    if len(found) != layers:
        raise ValueError(f"{type(model).__name__} has {layers} layers, but {len(found)} attention modules")
    return found
