"""Passes that go on from a cache whose layers differ in length."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from idsel_core.backbones._shared.caches import cache_in


@dataclass(frozen=True, eq=False)
class Span:
    """Layers that read the same columns of a prompt.

    Attributes
    ----------
    first : int
        The first of these layers; the last one is that before the next span.
    width : int
        Columns of the whole prompt.
    real : Tensor
        Columns that the layers read: false at padding, bool (R, W).
    shift : Tensor
        How far the positions of all that follows moved down, int64 (R, 1).
    """

    first: int
    width: int
    real: Tensor
    shift: Tensor

    @functools.cached_property
    def padded(self) -> bool:
        """Whether there is padding."""
        return not bool(self.real.all())

    @functools.cached_property
    def moved(self) -> bool:
        """Whether positions moved."""
        return bool(self.shift.any())

    def take(self, rows: Tensor) -> Span:
        """Return the same of these rows, int64."""
        rows = rows.to(self.real.device)
        return dataclasses.replace(self, real=self.real[rows], shift=self.shift[rows])

    def cropped(self, columns: int) -> Span:
        """Return the same of prompts whose last columns, which all layers read, are gone."""
        return dataclasses.replace(self, width=self.width - columns, real=self.real[:, :-columns])


class DecodeStep:
    """A pass that goes on from a cache whose layers read different columns of the prompts."""

    def __init__(self, decoder: Any, spans: tuple[Span, ...], mask: Tensor | None) -> None:
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask must be (prompts, tokens), not {tuple(mask.shape)}")
        self.decoder, self.spans, self.mask = decoder, spans, mask
        self.changes: dict[int, dict[str, Any]] = {}

    def before_layer(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the states (B, L, D) and the changed arguments that layer `index` reads."""
        span = next((span for span in reversed(self.spans) if span.first <= index), None)
        if span is None:
            return hidden, {}
        if span.first not in self.changes:
            self.changes[span.first] = self._changes(span, index, hidden, given)
        return hidden, self.changes[span.first]

    def _changes(self, span: Span, index: int, hidden: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        if len(span.real) != len(hidden):
            raise ValueError(f"the cache holds {len(span.real)} pruned prompts, but {len(hidden)} go on from it")
        layer = cache_in(given).layers[index]
        behind = layer.get_seq_length() + hidden.shape[1] - span.real.shape[1]
        mask = None
        if span.padded or self.mask is not None:
            tail = torch.ones(len(hidden), behind, dtype=torch.bool, device=hidden.device)
            if self.mask is not None:
                tail = self.mask[:, span.width :].bool().to(hidden.device)
            mask = torch.cat([span.real.to(hidden.device), tail], 1)
        changes: dict[str, Any] = {
            "attention_mask": create_causal_mask(self.decoder.config, hidden, mask, Cache(layers=[layer]))
        }
        if span.moved:
            positions = given["position_ids"] - span.shift.to(hidden.device)
            changes |= {
                "position_ids": positions,
                "position_embeddings": self.decoder.rotary_emb(hidden, positions),
            }
        return changes
