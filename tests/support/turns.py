"""Conversations of two and three turns in batches of different lengths."""

from __future__ import annotations

import torch

from tests.support import tiny
from tests.support.families import FAMILIES, IMAGE, PAD, Family
from tests.support.family_prompts import BARRED, MIXED

SECOND, THIRD = ((5, 6, 7), (8, 9, 10, 11, 12), (13, 14)), ((21, 22), (23,), (24, 25, 26, 27))
"""New text of three prompts."""
GREEDY = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": BARRED}
STEPS = 3


class Llava(Family):
    """The tiny LLaVA-1.5, so that it can be asked like all others."""

    def build(self, attention="sdpa", **knobs):
        return tiny.build("clip", attention)

    def pixels(self, size, generator):
        return {"pixel_values": torch.randn(1, 3, 24, 24, generator=generator)}


ALL_FAMILIES = {"llava": Llava("llava", dict.fromkeys(range(3), 36)), **FAMILIES}


def padded(texts):
    """Return texts padded on the left, and their mask."""
    width = max(map(len, texts))
    ids = torch.tensor([[PAD] * (width - len(text)) + list(text) for text in texts])
    return ids, (ids != PAD).long()


def conversation(family, inputs, before, texts):
    """Return the arguments of a turn with the whole conversation, without pixels.

    Parameters
    ----------
    inputs : dict[str, Tensor]
        The first turn's.
    before : dict[str, Tensor]
        ``sequences`` and ``attention_mask`` of the turns so far, with the answers.
    texts : tuple
        What is said now.
    """
    new, real = padded(texts)
    ids = torch.cat([before["sequences"], new], 1)
    answer = torch.ones_like(before["sequences"][:, before["attention_mask"].shape[1] :])
    whole = {"input_ids": ids, "attention_mask": torch.cat([before["attention_mask"], answer, real], 1)}
    marks = family.marked(ids)
    if family.name == "paligemma":
        # New text attends to what is before it alone.
        marks["token_type_ids"][:, inputs["input_ids"].shape[1] :] = 1
    return {**whole, **marks}


__all__ = ["ALL_FAMILIES", "GREEDY", "IMAGE", "MIXED", "SECOND", "STEPS", "THIRD", "conversation", "padded"]
