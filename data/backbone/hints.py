"""Targets and losses that exist only while training: they tell the language model where to look, and at what."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.backbone.features import covers, describe
from data.scenes.ask import COUNTS, Question
from data.scenes.draw import COLORS, DIGITS, LETTERS, NOUNS, Thing

NOUN_NAMES = [*NOUNS, "word"]
GLYPHS = [*DIGITS, *LETTERS]
COUNT_WEIGHTS = dict(zip(COUNTS, (0.5, 1.0, 2.0, 4.0), strict=True))
"""What a counting question weighs in the loss, by its answer: scenes hold many single objects and few fours."""


def head_sizes(nouns: int = len(NOUN_NAMES)) -> dict[str, int]:
    """Return how many outputs each training head has, where objects are of so many nouns."""
    return {"noun": nouns + 1, "color": len(COLORS), "glyph": len(GLYPHS), "size": 2, "center": 2}


HEADS = head_sizes()


def heads_loss(outputs: Tensor, targets: Tensor, nouns: int = len(NOUN_NAMES)) -> Tensor:
    """Sum the losses of training heads, (..., heads) against (..., 6); attributes count on objects that have them."""
    noun, color, glyph, size, center = outputs.float().split(list(head_sizes(nouns).values()), -1)
    kind = targets[..., 0].long()
    background = kind < 0
    loss = F.cross_entropy(noun.flatten(0, -2), torch.where(background, nouns, kind).flatten())
    on = ~background
    if not on.any():
        return loss
    loss = loss + F.cross_entropy(noun[on], kind[on])
    colored = targets[..., 1] >= 0
    if colored.any():
        loss = loss + F.cross_entropy(color[colored], targets[..., 1][colored].long())
    loss = loss + 0.5 * F.cross_entropy(size[on], targets[..., 3][on].long())
    loss = loss + 10 * F.smooth_l1_loss(center[on], targets[..., 4:][on], beta=0.1)
    glyphs = targets[..., 2] >= 0
    if glyphs.any():
        loss = loss + F.cross_entropy(glyph[glyphs], targets[..., 2][glyphs].long())
    return loss


def asked_targets(
    things: tuple[Thing, ...], question: Question, side: int, nouns: list[str] = NOUN_NAMES
) -> np.ndarray:
    """Describe the one object, or the two of a relation, that a question is about, (2, 6); -1 where there is none."""
    table = np.full((2, 6), -1, np.float32)
    if len(question.about) == 1 or question.question_type == "relation":
        for row, i in zip(table, question.about, strict=False):
            row[:] = describe(things[i], side, nouns, list(COLORS), GLYPHS)
    return table


def gaze_targets(things: tuple[Thing, ...], question: Question, side: int) -> np.ndarray:
    """Return the patches of all objects that a question is about, bool (2, tokens); of each one for a relation."""
    covered = np.array([covers(things[i], side) for i in question.about])
    if not len(covered):
        return np.zeros((2, (side // 14) ** 2), bool)
    return covered if question.question_type == "relation" else np.stack([covered.any(0)] * 2)


def vote_targets(things: tuple[Thing, ...], question: Question, side: int) -> np.ndarray:
    """Return the patch in the middle of each counted object, bool (tokens,); none for other questions."""
    votes = np.zeros((side // 14, side // 14), bool)
    if question.question_type == "counting":
        for i in question.about:
            x, y = things[i].center
            votes[int(y // 14), int(x // 14)] = True
    return votes.reshape(-1)


def vote_loss(votes: Tensor, targets: Tensor, visual: slice, weights: Tensor) -> Tensor:
    """Return the cross-entropy of attention (log) that should give each target an equal share, the text the rest."""
    share = 1 / (len(COUNTS) + 1)
    on_objects = votes[:, visual].masked_fill(~targets, 0).sum(-1)
    on_text = torch.cat([votes[:, : visual.start], votes[:, visual.stop :]], -1).logsumexp(-1)
    losses = -(share * on_objects + (1 - share * targets.sum(-1)) * on_text)
    return (losses * weights).sum() / weights.sum()


def middle_targets(things: tuple[Thing, ...], side: int) -> np.ndarray:
    """Return the patches in the middle of an object, float32 (tokens,)."""
    middle = np.zeros((side // 14, side // 14), np.float32)
    for thing in things:
        x, y = thing.center
        middle[int(y // 14), int(x // 14)] = 1
    return middle.reshape(-1)


def gaze_loss(gaze: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the attention that falls on the patches asked about."""
    on = targets.any(-1)
    inside = gaze.masked_fill(~targets, -torch.inf)[on].logsumexp(-1)
    return (gaze[on].logsumexp(-1) - inside).mean()
