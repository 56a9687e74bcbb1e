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


def cls_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the attention of the first token ([CLS]) to all tokens, mean over heads.

    Parameters
    ----------
    query : Tensor
        (B, H, T, d), any float dtype; only the first of the T is used.
    key : Tensor
        (B, H', N, d) with H a multiple of H' (grouped queries), [CLS] among them.
    scale : float
        Factor of the products before the softmax.

    Returns
    -------
    Tensor
        float32 (B, N); rows sum to 1.
    """
    return _attend(query[:, :, :1], key, scale)[:, 0]


def received(query: Tensor, key: Tensor, scale: float, chunk: int = 64) -> Tensor:
    """Return the attention that each token receives, mean over queries and heads.

    Parameters
    ----------
    query, key, scale
        As in `cls_row`; all T queries are used.
    chunk : int
        Queries taken at a time, which bounds the memory to B x H x chunk x N numbers.

    Returns
    -------
    Tensor
        float32 (B, N); rows sum to 1.
    """
    key = key.float().contiguous()  # once, not for each part
    parts = [_shares(part, key, scale).sum(dim=(1, 2, 3)) for part in torch.split(query, chunk, dim=2)]
    return torch.stack(parts).sum(dim=0) / (query.shape[1] * query.shape[2])


def last_token(real: Tensor) -> Tensor:
    """Mark the last token of each row, bool (B, L), given the columns that are no padding, one at least."""
    place = torch.arange(real.shape[1], device=real.device)
    return place == (place * real).amax(1, keepdim=True)


def instruction_row(
    query: Tensor,
    key: Tensor,
    scale: float,
    question: Tensor,
    columns: Tensor,
    which: Literal["last", "mean"] = "last",
    softcap: float | None = None,
) -> Tensor:
    """Return the attention of the instruction to the visual tokens, softmax over these alone, mean over heads.

    Parameters
    ----------
    query : Tensor
        (B, H, L, d), any float dtype: the whole sequence in one layer of the language model.
    key : Tensor
        (B, H', L, d) with H a multiple of H' (grouped queries).
    scale : float
        Factor of the products before the softmax.
    question : Tensor
        bool (B, L); true on the instruction's tokens.
    columns : Tensor
        Long (B, N); where in the sequence the visual tokens are, -1 for padding.
    which : {"last", "mean"}
        The query: the instruction's last token, or each of its tokens, averaged afterwards.
    softcap : float, optional
        Bound of the products, c in c tanh(x / c), where the layer has one.

    Returns
    -------
    Tensor
        float32 (B, N); rows sum to 1, padding is 0.

    Raises
    ------
    ValueError
        If `which` is unknown, or a row has no instruction or no visual token.
    """
    if which not in ("last", "mean"):
        raise ValueError(f"which must be 'last' or 'mean', not {which!r}")
    visual = columns >= 0
    for name, present in (("question", question.any(dim=1)), ("columns", visual.any(dim=1))):
        if not bool(present.all()):
            raise ValueError(f"{name} must name a token in every row; row {int(present.int().argmin())} has none")
    if which == "last":
        question = last_token(question)
    counts = question.sum(dim=1, keepdim=True)
    places = question.int().sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    rows = _attend(_take(query, places), _take(key, columns.clamp_min(0)), scale, visual[:, None], softcap)
    share = question.gather(1, places) / counts
    return (rows * share[..., None]).sum(dim=1)


def causal_row(query: Tensor, key: Tensor, scale: float, asking: Tensor, real: Tensor, columns: Tensor) -> Tensor:
    """Return the attention of some tokens to the visual tokens, mean over heads, then over the tokens that ask.

    The softmax is over all tokens that the asking one may see: those up to itself. Only the rows of the asking tokens
    are computed.

    Parameters
    ----------
    query : Tensor
        (B, H, L, d), any float dtype: the whole sequence in one layer of the language model.
    key : Tensor
        (B, H', L, d) with H a multiple of H' (grouped queries).
    scale : float
        Factor of the products before the softmax.
    asking, real : Tensor
        bool (B, L); true on the tokens that ask; false at padding.
    columns : Tensor
        Long (B, N); where in the sequence the visual tokens are, -1 for padding.

    Returns
    -------
    Tensor
        float32 (B, N), padding is 0.

    Raises
    ------
    ValueError
        If no token of a row asks.
    """
    counts = asking.sum(dim=1, keepdim=True)
    if bool((counts == 0).any()):
        raise ValueError(f"a token of every row must ask; none of row {int((counts[:, 0] == 0).int().argmax())} does")
    places = asking.int().sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    visible = real[:, None] & (torch.arange(real.shape[1], device=real.device) <= places[..., None])
    rows = _attend(_take(query, places), key, scale, visible)
    # Places beyond a row's own are padding, which may see nothing.
    mean = rows.masked_fill(~asking.gather(1, places)[..., None], 0).sum(dim=1) / counts
    return mean.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0)


def relevance_row(patches: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of each patch and the text in their shared space.

    Parameters
    ----------
    patches : Tensor
        (B, N, D), any float dtype.
    text : Tensor
        (B, D), any float dtype.

    Returns
    -------
    Tensor
        float32 (B, N), -1 to 1; 0 for zero vectors.
    """
    return torch.cosine_similarity(patches.float(), text.float()[:, None], dim=-1)


def relevance_product(patches: Tensor, text: Tensor) -> Tensor:
    """Return the inner product of each patch and the text; arguments and result as of `relevance_row`."""
    with torch.autocast(patches.device.type, enabled=False):
        return (patches.float() @ text.float()[..., None])[..., 0]


def word_cosines(tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Return the cosine of each visual token and each word.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D), any float dtype.
    words : Tensor
        (B, T, D), any float dtype.
    mask : Tensor
        bool (B, T); true on words.

    Returns
    -------
    Tensor
        float32 (B, N, T), -1 to 1; 0 for zero vectors, -inf where there is no word.
    """
    unit = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (tokens, words)]
    with torch.autocast(tokens.device.type, enabled=False):
        return (unit[0] @ unit[1].mT).masked_fill(~mask[:, None], -torch.inf)


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


def _take(states: Tensor, places: Tensor) -> Tensor:
    """Return states (B, H, L, d) at places (B, T), as (B, H, T, d)."""
    heads, width = states.shape[1], states.shape[3]
    return states.gather(2, places[:, None, :, None].expand(-1, heads, -1, width))


def _attend(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Return attention (B, T, N) of queries (B, H, T, d) to keys (B, H', N, d), in float32, mean over heads.

    Keys are left out where `mask` (B, T or 1, N) is false; `softcap` bounds the products.
    """
    rows: Tensor = _shares(query, key, scale, mask, softcap).mean(dim=(1, 2))
    return rows


def _shares(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Return the attention (B, H', H / H', T, N) of every head."""
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, not {query.shape[1]} to {key.shape[1]}")
    batch, heads, length, width = query.shape
    grouped = query.float().mul(scale).reshape(batch, key.shape[1], heads // key.shape[1], length, width)
    with torch.autocast(query.device.type, enabled=False):
        logits = grouped @ key.float()[:, :, None].mT
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -torch.inf)
    return logits.softmax(dim=-1)
