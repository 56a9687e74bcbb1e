"""KV caches: where a call of a model holds one, and how many prompts it holds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.cache_utils import Cache


def cache_in(arguments: Mapping[str, Any]) -> Any:
    """Return the KV cache among the arguments or outputs of a model, or None."""
    given = (arguments.get(name) for name in ("cache", "past_key_values"))
    return next((cache for cache in given if cache is not None), None)


def with_cache(model: Any, cache: Any) -> dict[str, Any]:
    """Return the keyword argument that passes a KV cache to a model or to its ``generate``."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def cached_rows(cache: Cache) -> int:
    """Return how many prompts, copies among them, a cache that holds tokens holds."""
    layer: Any = cache.layers[0]
    return len(layer.keys)
