"""Queries and keys of one attention layer, taken while the model runs as it always does."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "idsel_watch"


class Stop(Exception):
    """Raised inside a watched layer to end a forward pass that has given what it was run for."""


@dataclass
class Watched:
    """Queries and keys that one attention layer was given, after its norms and rotary positions.

    Parameters
    ----------
    config : Any
        The layer's own configuration, which names the attention function that it goes on to use.
    query_tokens : Tensor, optional
        Tokens whose queries will do, bool (B, L); then the forward pass ends, by `Stop`, as soon as the layer was seen.
    pieces : list[tuple[Tensor, Tensor]]
        Queries (B, heads, L, d) and keys (B, key heads, L, d), once the layer has run: one pair, or one for each
        sequence where the layer attends within one after the other.
    scale : float
        Factor on their products.
    softcap : float, optional
        Bound of the products after that, if any.
    """

    config: Any
    query_tokens: Tensor | None = None
    pieces: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    scale: float = 1.0
    softcap: float | None = None

    def tensors(self) -> tuple[Tensor, Tensor, float]:
        """Return the last query and key, and scale.

        Raises
        ------
        RuntimeError
            If the layer did not run.
        """
        if not self.pieces:
            raise RuntimeError("the watched attention layer did not run")
        return *self.pieces[-1], self.scale


_WATCHED: dict[nn.Module, Watched] = {}


def _watch_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    seen = _WATCHED[module]
    seen.pieces.append((query, key))
    scaling = kwargs.get("scaling")
    seen.scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seen.softcap = kwargs.get("softcap")
    if seen.query_tokens is not None:
        raise Stop
    # transformers keeps eager attention in each model's own file, every other kind in one table.
    eager: Callable[..., Any] = getattr(sys.modules[type(module).__module__], "eager_attention_forward", _no_eager)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(seen.config._attn_implementation, eager)
    # FlashAttention looks its kernel up by the name in the module's configuration.
    watching: Any = module.config
    module.config = seen.config
    try:
        return attend(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.config = watching


def _no_eager(module: nn.Module, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:
    raise NotImplementedError(f"{type(module).__name__} has no eager attention to watch; load the model with SDPA")


AttentionInterface.register(_NAME, _watch_attention)


class _ProjectSelected(nn.Module):
    """A projection of some tokens; it leaves 0 at the others."""

    def __init__(self, projection: nn.Module, tokens: Tensor) -> None:
        super().__init__()
        # In a tuple it is no part of this module, so that its parameters keep their names.
        self.projection, self.places = (projection,), tokens.nonzero(as_tuple=True)

    def forward(self, states: Tensor) -> Tensor:
        places = tuple(axis.to(states.device) for axis in self.places)
        some: Tensor = self.projection[0](states[places])
        return some.new_zeros(*states.shape[:-1], some.shape[-1]).index_put(places, some)


class _ProjectNothing(nn.Module):
    """A projection that nobody reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, states: Tensor) -> Tensor:
        return states.new_zeros(()).expand(*states.shape[:-1], self.width)


@contextmanager
def _skip_unread_projections(module: nn.Module, query_tokens: Tensor) -> Iterator[None]:
    """Spare a layer that will not attend its values, and the queries of tokens that do not ask."""
    query, value = (getattr(module, name, None) for name in ("q_proj", "v_proj"))
    if not isinstance(query, nn.Module) or not isinstance(value, nn.Module) or not hasattr(value, "out_features"):
        yield  # a layer that projects all at once, for one
        return
    width: Any = value.out_features
    try:
        module.q_proj, module.v_proj = _ProjectSelected(query, query_tokens), _ProjectNothing(width)
        yield
    finally:
        module.q_proj, module.v_proj = query, value


@contextmanager
def watch(module: nn.Module, query_tokens: Tensor | None = None) -> Iterator[Watched]:
    """Keep references to the queries and keys of one attention module; the rest of the model is not touched.

    Nothing is computed twice and the layer keeps its attention function (SDPA, FlashAttention, eager).

    Parameters
    ----------
    module : nn.Module
        An attention module of a transformers model.
    query_tokens : Tensor, optional
        Tokens whose queries will do, bool (B, L). Given, the layer computes no values and, where it projects queries
        by themselves, only these queries; the others may be anything. It raises `Stop` instead of attending, which the
        context manager catches.

    Yields
    ------
    Watched
        Filled when the module has run.
    """
    config: Any = module.config
    seen = Watched(config, query_tokens)
    # A copied config names the watching function for this one module; the shared one stays as it is.
    own: Any = copy.copy(config)
    own._attn_implementation_internal = _NAME
    module.config = own
    _WATCHED[module] = seen
    try:
        with nullcontext() if query_tokens is None else _skip_unread_projections(module, query_tokens):
            yield seen
    except Stop:
        pass
    finally:
        module.config = config
        del _WATCHED[module]


def attention_modules(model: nn.Module) -> list[nn.Module]:
    """Return the attention modules of a transformers encoder or decoder, one a layer, in order.

    Raises
    ------
    ValueError
        If there is not one for each of the configured layers.
    """
    # Most modules lack a config, and looking for what a module lacks is slow unless it is among its own variables.
    found = [module for module in model.modules() if "config" in vars(module) and hasattr(module, "is_causal")]
    config: Any = model.config
    layers = config.depth if hasattr(config, "depth") else config.num_hidden_layers
    if len(found) != layers:
        raise ValueError(f"{type(model).__name__} has {layers} layers, but {len(found)} attention modules")
    return found
