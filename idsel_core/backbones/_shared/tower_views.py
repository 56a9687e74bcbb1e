"""Views of visual tokens from one layer of a vision tower."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from idsel_core.backbones._shared.qk_capture import CapturedQK
from idsel_core.scores import attention_rows


def attention_views(seen: CapturedQK, first: int, has_cls: bool) -> dict[str, Callable[[], Tensor]]:
    """Return the views of visual tokens from one layer of a vision tower.

    Parameters
    ----------
    seen : CapturedQK
        Queries and keys of the layer, after it has run.
    first : int
        Number of tower tokens before the first visual token.
    has_cls : bool
        Whether the first token of the tower is a [CLS].
    """
    query, key, scale = seen.tensors()
    views: dict[str, Callable[[], Tensor]] = {
        "received_attention": lambda: attention_rows.received(query, key, scale)[:, first:],
        "keys": lambda: key.transpose(1, 2)[:, first:],
    }
    if has_cls:
        views["cls_attention"] = lambda: attention_rows.cls_row(query, key, scale)[:, first:]
        views["wide_cls_attention"] = lambda: _wide_cls_row(query, key)[:, first:]
    return views


def _wide_cls_row(query: Tensor, key: Tensor) -> Tensor:
    """Return the attention of [CLS], (B, T), with all heads concatenated to one."""
    first, keys = (states.transpose(1, 2).flatten(2)[:, None] for states in (query[:, :, :1], key))
    return attention_rows.cls_row(first, keys, keys.shape[-1] ** -0.5)


def layer_at(depth: float, layers: int) -> int:
    """Return the layer at a depth, 0 (first layer) to 1 (last layer), of a tower of `layers` layers.

    Raises
    ------
    ValueError
        If `depth` is not in this range.
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"depth must be a share of the tower's layers, 0 to 1, not {depth!r}")
    return max(0, math.floor(depth * layers + 0.5) - 1)
