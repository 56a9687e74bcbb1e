"""Importance of visual tokens: attention rows, relevance, their normalisation and combination, on plain tensors."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

Normalise = Literal["minmax", "raw"]
Combine = Literal["mean", "product", "geometric"]


class Scorable(Protocol):
    """What a score may read of the tokens: `mask` bool (B, N), and views float (B, N), anything on padding."""

    @property
    def mask(self) -> Tensor:
        """True on tokens, false on padding."""

    @property
    def saliency(self) -> Tensor:
        """Attention that the vision tower pays to each token, 0 or more."""

    @property
    def instruction_attention(self) -> Tensor:
        """Attention that the instruction pays to each token, 0 or more."""

    @property
    def relevance(self) -> Tensor:
        """Cosine of each token and the text, -1 to 1."""


def normalised(scores: Tensor, kind: Normalise, mask: Tensor) -> Tensor:
    """Return scores as float32, 0 on padding, min-maxed over the tokens of each row or as they are.

    Parameters
    ----------
    scores : Tensor
        (B, N), any float dtype, finite and 0 or more on tokens.
    kind : {"minmax", "raw"}
        "minmax" maps a row's lowest score to 0 and its highest to 1. A row of equal scores becomes all ones: zeros
        would say that nothing is worth keeping and leave the choice to the tokens' places.
    mask : Tensor
        bool (B, N); true on tokens.

    Raises
    ------
    ValueError
        If `kind` is unknown, shapes differ, or the score of a token is negative, NaN or infinite.
    """
    if kind not in get_args(Normalise):
        raise ValueError(f"normalise must be one of {', '.join(get_args(Normalise))}, not {kind!r}")
    if scores.shape != mask.shape:
        raise ValueError(f"scores must be shaped as mask, {tuple(mask.shape)}, not {tuple(scores.shape)}")
    scores, padding = scores.float(), ~mask
    low = scores.masked_fill(padding, torch.inf).amin(dim=1, keepdim=True)
    high = scores.masked_fill(padding, -torch.inf).amax(dim=1, keepdim=True)
    # A NaN is among the extremes if it is anywhere, and fails every comparison.
    if not bool(((low >= 0) & (high < torch.inf)).all()):
        wrong = mask & ~(scores.isfinite() & (scores >= 0))
        row, token = wrong.nonzero()[0].tolist()
        raise ValueError(f"scores must be finite and 0 or more; row {row}, token {token} has {scores[row, token]:g}")
    if kind == "minmax":
        span = high - low
        scores = torch.where(span > 0, (scores - low) / span, 1.0)
    return scores.masked_fill(padding, 0.0)


def unify(a: Tensor, b: Tensor, how: Combine = "mean") -> Tensor:
    """Combine two scores of the same tokens.

    Parameters
    ----------
    a, b : Tensor
        float (B, N), 0 or more.
    how : {"mean", "product", "geometric"}
        (a + b) / 2, a b, or the square root of a b.

    Raises
    ------
    ValueError
        If `how` is unknown or the shapes differ.
    """
    if how not in get_args(Combine):
        raise ValueError(f"how must be one of {', '.join(get_args(Combine))}, not {how!r}")
    if a.shape != b.shape:
        raise ValueError(f"both scores must have one shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    if how == "mean":
        return (a + b) / 2
    return a * b if how == "product" else a.sqrt() * b.sqrt()


def saliency(tokens: Scorable, normalise: Normalise = "minmax") -> Tensor:
    """Score tokens by the attention that the vision tower pays to them."""
    return normalised(tokens.saliency, normalise, tokens.mask)


def instruction(tokens: Scorable, normalise: Normalise = "minmax") -> Tensor:
    """Score tokens by the attention that the instruction pays to them."""
    return normalised(tokens.instruction_attention, normalise, tokens.mask)


def relevance(tokens: Scorable, normalise: Normalise = "minmax") -> Tensor:
    """Score tokens by their cosine with the text; raw is (1 + cos) / 2, which is never negative and keeps the order."""
    return normalised((1 + tokens.relevance.float()) / 2, normalise, tokens.mask)


def unified(tokens: Scorable, normalise: Normalise = "minmax", how: Combine = "mean") -> Tensor:
    """Score tokens by saliency and instruction attention together; each is normalised first."""
    return unify(saliency(tokens, normalise), instruction(tokens, normalise), how)


IMPORTANCE: Mapping[str, Callable[..., Tensor]] = {
    "saliency": saliency,
    "instruction": instruction,
    "relevance": relevance,
    "unified": unified,
    "unified-product": partial(unified, how="product"),
    "unified-geometric": partial(unified, how="geometric"),
}


def importance_scores(tokens: Scorable, name: str, normalise: Normalise = "minmax") -> Tensor:
    """Return the importance of each token by the name of the score.

    Parameters
    ----------
    tokens : Scorable
        For example `VisualTokens`; only the views that the score needs are read.
    name : str
        A name in `IMPORTANCE`.
    normalise : {"minmax", "raw"}
        What is done to each score before it is combined with another, as in `normalised`.

    Returns
    -------
    Tensor
        float32 (B, N), 0 or more, 0 on padding.

    Raises
    ------
    ValueError
        If `name` or `normalise` is unknown.
    """
    if name not in IMPORTANCE:
        near = difflib.get_close_matches(str(name), IMPORTANCE, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"importance must be one of {', '.join(IMPORTANCE)}, not {name!r}{hint}")
    return IMPORTANCE[name](tokens, normalise=normalise)
