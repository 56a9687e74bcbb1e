"""KV caches that were filled with shortened prompts, which know it, and refuse to be read as if they were not."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from idsel_core.backbones._shared.caches import cached_rows

PROMPTS_ATTRIBUTE = "idsel_prompts"
"""Attribute of a cache: the prompts that were cut before it was filled with them."""
SPANS_ATTRIBUTE = "idsel_spans"
"""Attribute of a cache: what its layers hold where they hold different columns of the prompts."""

_ELSEWHERE = (
    "this cache holds prompts that prune() shortened, so it does not fit them: go on from it by model(...) or "
    "model.generate(...) of the same model inside a `with prune(model, ...)` block, or give the whole conversation "
    "with its images and no cache"
)


class OfRows(Protocol):
    """What a cache knows of its R rows, each a prompt."""

    def take(self, rows: Tensor) -> Self:
        """Return what is known of these rows, int64."""

    def cropped(self, columns: int) -> Self:
        """Return what is known once the last columns of the prompts are gone."""


class ShortenedCache(Cache):
    """What stands before the class of a cache that was filled with shortened prompts.

    Such a cache reads nothing more, because only `prune` knows which tokens are new and where they stand; it hands the
    cache out as one of its own class while a call goes on from it. Copies know what it knows.
    """

    plain: ClassVar[type[Cache]]
    """The class without this one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.plain, dict(vars(self)))

    @property
    def _is_user_defined(self) -> bool:
        return bool(vars(self).get("_is_user_defined", False))

    @_is_user_defined.setter
    def _is_user_defined(self, value: bool) -> None:
        # What generate() does first with a cache that it is given.
        if self.get_seq_length():
            raise ValueError(_ELSEWHERE)
        vars(self)["_is_user_defined"] = value

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Refuse to be read, unless it is empty."""
        self._check_that_it_is_empty()
        return super().get_mask_sizes(query_length, layer_idx)

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse to be filled, unless it is empty."""
        self._check_that_it_is_empty()
        return super().update(*args, **kwargs)

    def _check_that_it_is_empty(self) -> None:
        if self.get_seq_length():
            raise ValueError(_ELSEWHERE)
        forget(self)

    def reset(self) -> None:
        """Forget everything."""
        forget(self)
        self.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take these rows."""
        rows: Any = beam_idx
        super().reorder_cache(rows)
        self._take(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take these rows."""
        super().batch_select_indices(indices)
        self._take(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        rows = cached_rows(self)
        super().batch_repeat_interleave(repeats)
        self._take(torch.arange(rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove columns from the end; those of the prompts are forgotten with them."""
        super().crop(tokens_to_remove)
        length, held = self.get_seq_length(), vars(self)
        gone = held[PROMPTS_ATTRIBUTE].width - int(length)
        for name in (PROMPTS_ATTRIBUTE, SPANS_ATTRIBUTE):
            if gone > 0 and name in held:
                held[name] = _each(held[name], lambda known: known.cropped(gone))

    def _take(self, rows: Tensor) -> None:
        held = vars(self)
        for name in (PROMPTS_ATTRIBUTE, SPANS_ATTRIBUTE):
            if name in held:
                held[name] = _each(held[name], lambda known: known.take(rows))


def _each(known: Any, change: Any) -> Any:
    return tuple(map(change, known)) if isinstance(known, tuple) else change(known)


@functools.cache
def _shortened(plain: Any) -> Any:
    """Return the class of caches of a plain class that were filled with shortened prompts."""
    return type(f"Shortened{plain.__name__}", (ShortenedCache, plain), {"plain": plain})


def _rebuilt(plain: Any, state: dict[str, Any]) -> Cache:
    cache: Cache = object.__new__(_shortened(plain))
    vars(cache).update(state)
    return cache


def prompts_of(cache: Any) -> Any:
    """Return what `remember` noted at a cache that still holds tokens, or None."""
    known = vars(cache).get(PROMPTS_ATTRIBUTE) if isinstance(cache, Cache) else None
    return known if known is not None and cache.get_seq_length() else None


def remember(cache: Any, prompts: OfRows) -> None:
    """Note at a cache which prompts were shortened before it was filled with them; from now on it refuses to go on."""
    vars(cache)[PROMPTS_ATTRIBUTE] = prompts
    if not isinstance(cache, ShortenedCache):
        plain: Any = type(cache)
        cache.__class__ = _shortened(plain)


def forget(cache: Any) -> None:
    """Make a cache one that knows nothing of shortened prompts."""
    for name in (PROMPTS_ATTRIBUTE, SPANS_ATTRIBUTE):
        vars(cache).pop(name, None)
    if isinstance(cache, ShortenedCache):
        plain: Any = cache.plain
        cache.__class__ = plain


@contextmanager
def handed_out(cache: Cache) -> Iterator[None]:
    """Let a cache that was filled with shortened prompts be read and filled in the block."""
    shortened: Any = cache.__class__
    cache.__class__ = getattr(shortened, "plain", shortened)
    try:
        yield
    finally:
        cache.__class__ = shortened
