"""Attention over several questions that share one image, in which no question is compared with another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "questions_of_one_image"


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each question stand behind the image: scenes B, text tokens T, questions Q, longest L.

    Parameters
    ----------
    start : int
        How many tokens come before the questions.
    question, place : Tensor
        Of each text token its question and its place in it, int64 (B, T); 0 for padding.
    token : Tensor
        Of each place of each question its text token, int64 (B, Q, L); 0 past the end of a question.
    """

    start: int
    question: Tensor
    place: Tensor
    token: Tensor

    def by_question(self, states: Tensor) -> Tensor:
        """Return states of text tokens (B, T, ...) as (B, Q, L, ...)."""
        scene = torch.arange(len(states), device=states.device)[:, None, None]
        return states[scene, self.token]

    def in_sequence(self, states: Tensor) -> Tensor:
        """Return states of questions (B, Q, L, ...) as (B, T, ...)."""
        scene = torch.arange(len(states), device=states.device)[:, None]
        return states[scene, self.question, self.place]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend to the tokens before the questions and, within a question, to the earlier tokens of it.

    Parameters
    ----------
    module : nn.Module
        The attention layer; not used.
    query, key, value : Tensor
        Of all tokens, (B, heads, start + T, d) and (B, key heads, start + T, d).
    attention_mask : Tensor, optional
        Not used: the layout says who sees whom.
    scaling : float
        Factor of the inner products before the softmax.
    layout : Layout, optional
        Where the questions stand, if there are any.

    Returns
    -------
    tuple[Tensor, None]
        The attended values, (B, start + T, heads, d).
    """
    if layout is None:
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2), None
    shared = key.shape[1]  # heads of keys, each for heads // shared heads of queries
    start, text = layout.start, query.shape[2] - layout.start
    grouped = (query * scaling).unflatten(1, (shared, -1))
    opening, asking = grouped[:, :, :, :start].flatten(2, 3), grouped[:, :, :, start:]
    first_keys, first_values = key[:, :, :start], value[:, :, :start]

    scores = (opening @ first_keys.mT).unflatten(2, (-1, start))
    later = torch.ones(start, start, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    before = (weights.flatten(2, 3) @ first_values).unflatten(2, (-1, start)).flatten(1, 2)

    # (B, shared, groups, T, d) to (B, Q, shared, groups L, d); keys and values to (B, Q, shared, L, d)
    asking_own = layout.by_question(asking.permute(0, 3, 1, 2, 4)).permute(0, 1, 3, 4, 2, 5)
    keys, values = (layout.by_question(states[:, :, start:].transpose(1, 2)).transpose(2, 3) for states in (key, value))
    longest = layout.token.shape[-1]
    within = (asking_own.flatten(3, 4) @ keys.mT).unflatten(3, (-1, longest))
    later = torch.ones(longest, longest, dtype=torch.bool, device=query.device).triu(1)
    within = within.masked_fill(later, -torch.inf)
    # (B, Q, shared, groups, L, L) to (B, shared, groups, T, L)
    within = layout.in_sequence(within.permute(0, 1, 4, 2, 3, 5)).permute(0, 2, 3, 1, 4)
    seen = (asking.flatten(2, 3) @ first_keys.mT).unflatten(2, (-1, text))
    weights = torch.cat([seen, within], -1).softmax(-1)
    after = (weights[..., :start].flatten(2, 3) @ first_values).unflatten(2, (-1, text)).flatten(1, 2)
    own = layout.by_question(weights[..., start:].permute(0, 3, 1, 2, 4)).permute(0, 1, 3, 4, 2, 5)
    own = (own.flatten(3, 4) @ values).unflatten(3, (-1, longest))
    # (B, Q, shared, groups, L, d) to (B, heads, T, d)
    own = layout.in_sequence(own.permute(0, 1, 4, 2, 3, 5)).flatten(2, 3).transpose(1, 2)
    return torch.cat([before, after + own], 2).transpose(1, 2), None


AttentionInterface.register(NAME, attend)
