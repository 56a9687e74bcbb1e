"""Importance scores by name, their normalisation and their combination."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from idsel_core.hints import did_you_mean

if TYPE_CHECKING:
    from idsel_core.visual_tokens import VisualTokens

Normalise = Literal["minmax", "raw"]
Combine = Literal["mean", "product", "geometric"]


def saliency(tokens: VisualTokens) -> Tensor:
    """Score tokens by the attention that the vision tower pays to them."""
    return tokens.saliency


def instruction(tokens: VisualTokens) -> Tensor:
    """Score tokens by the attention that the instruction pays to them."""
    return tokens.instruction_attention


def relevance(tokens: VisualTokens) -> Tensor:
    """Score tokens by (1 + cos) / 2 of their cosine with the question, which is never negative."""
    return (1 + tokens.relevance.float()) / 2


def _check_how(how: str) -> None:
    if how not in get_args(Combine):
        raise ValueError(f"how must be one of {', '.join(get_args(Combine))}, not {how!r}")


@dataclass(frozen=True)
class Combination:
    """Two importance scores that are combined after each was normalised.

    Parameters
    ----------
    first, second : str
        Names in `IMPORTANCE`.
    how : {"mean", "product", "geometric"}
        As in `unify`.

    Raises
    ------
    ValueError
        If `how` is unknown.
    """

    first: str
    second: str
    how: Combine = "mean"

    def __post_init__(self) -> None:
        _check_how(self.how)


Score: TypeAlias = "Callable[[VisualTokens], Tensor]"

IMPORTANCE: dict[str, Score | Combination] = {
    "saliency": saliency,
    "instruction": instruction,
    "relevance": relevance,
    "unified": Combination("saliency", "instruction"),
    "unified-product": Combination("saliency", "instruction", "product"),
    "unified-geometric": Combination("saliency", "instruction", "geometric"),
}
"""All importance scores. A score of your own is one more entry: ``IMPORTANCE["mine"] = function``.

The function takes `VisualTokens` and returns one number a token, float (B, N), finite and 0 or more. It may read any
view. Padding may hold any value, in the views and in the result. `importance_scores` normalises and checks the result.
"""


def importance_scores(tokens: VisualTokens, name: str, normalise: Normalise = "minmax") -> Tensor:
    """Return the importance of each token by the name of the score.

    Parameters
    ----------
    tokens : VisualTokens
        B rows. Only the views that the score needs are computed.
    name : str
        A name in `IMPORTANCE`.
    normalise : {"minmax", "raw"}
        Normalisation of each score, before it is combined with another; see `normalised`.

    Returns
    -------
    Tensor
        float32 (B, N), 0 or more, 0 at padding.

    Raises
    ------
    ValueError
        If `name` or `normalise` is unknown, or the score of a token is negative, NaN or infinite.
    """
    check_importance(name)
    score = IMPORTANCE[name]
    if isinstance(score, Combination):
        first, second = (importance_scores(tokens, part, normalise) for part in (score.first, score.second))
        return unify(first, second, score.how)
    return normalised(score(tokens), normalise, tokens.mask, f"importance {name!r}", tokens.padded)


def check_importance(name: str) -> None:
    """Raise ValueError unless `IMPORTANCE` has a score of this name; the message lists the known names."""
    if name not in IMPORTANCE:
        raise ValueError(
            f"importance must be one of {', '.join(IMPORTANCE)}, not {name!r}{did_you_mean(name, IMPORTANCE)}"
        )


def normalised(scores: Tensor, kind: Normalise, mask: Tensor, name: str = "scores", padded: bool = True) -> Tensor:
    """Return scores as float32, 0 at padding, scaled to 0 to 1 in each row or unchanged.

    Parameters
    ----------
    scores : Tensor
        (B, N), any dtype, finite and 0 or more at tokens; padding may hold any value.
    kind : {"minmax", "raw"}
        "minmax" maps the lowest score of a row to 0 and the highest to 1. A row of equal scores becomes all ones,
        because with all zeros the lowest index would decide every pick. "raw" changes nothing.
    mask : Tensor
        bool (B, N); True at tokens.
    name : str
        What an error message calls the scores.
    padded : bool
        Whether a row may be padded. If not, the values of `mask` are not read.

    Raises
    ------
    ValueError
        If `kind` is unknown, the shapes differ, or the score of a token is negative, NaN or infinite.
    """
    if kind not in get_args(Normalise):
        raise ValueError(f"normalise must be one of {', '.join(get_args(Normalise))}, not {kind!r}")
    if scores.shape != mask.shape:
        raise ValueError(f"{name} must have one number for each token, {tuple(mask.shape)}, not {tuple(scores.shape)}")
    scores, padding = scores.float(), ~mask if padded else None
    if padding is None:
        low, high = scores.aminmax(dim=1, keepdim=True)  # (B, 1) each
    else:
        low = scores.masked_fill(padding, torch.inf).amin(dim=1, keepdim=True)
        high = scores.masked_fill(padding, -torch.inf).amax(dim=1, keepdim=True)
    # The extremes pass a NaN on, and a NaN fails every comparison.
    if not all(least >= 0 and most < math.inf for least, most in torch.cat([low, high], 1).tolist()):
        wrong = mask & ~(scores.isfinite() & (scores >= 0))
        row, token = wrong.nonzero()[0].tolist()
        raise ValueError(f"{name} must be finite and 0 or more; row {row}, token {token} has {scores[row, token]:g}")
    if kind == "minmax":
        scores = (scores - low).div_(high - low).nan_to_num_(1.0)  # 0 / 0 where all are equal
    return scores if padding is None else scores.masked_fill(padding, 0.0)


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
    _check_how(how)
    if a.shape != b.shape:
        raise ValueError(f"both scores must have the same shape, not {tuple(a.shape)} and {tuple(b.shape)}")
    if how == "mean":
        return (a + b) / 2
    return a * b if how == "product" else a.sqrt() * b.sqrt()
