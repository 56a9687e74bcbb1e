"""Attention that visual tokens receive, computed from queries and keys."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def cls_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Return the attention of the first token ([CLS]) to all tokens, mean over heads.

    Parameters
    ----------
    query : Tensor
        (B, H, T, d), any float dtype; only the first of the T queries is used.
    key : Tensor
        (B, H', N, d), [CLS] included. H is a multiple of H' (grouped queries).
    scale : float
        Factor of the inner products before the softmax.

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
        Number of queries at a time, which bounds the memory to B x H x chunk x N numbers.

    Returns
    -------
    Tensor
        float32 (B, N); rows sum to 1.
    """
    key = key.float().contiguous()  # once, not for each chunk
    parts = [_shares(part, key, scale).sum(dim=(1, 2)) for part in torch.split(query, chunk, dim=2)]
    return torch.stack(parts).sum(dim=0) / (query.shape[1] * query.shape[2])


def last_token(real: Tensor) -> Tensor:
    """Return a mask of the last token of each row, bool (B, L).

    Parameters
    ----------
    real : Tensor
        bool (B, L); False at padding. Each row has at least one token.
    """
    place = torch.arange(real.shape[1], device=real.device)  # (L,)
    return place == (place * real).amax(1, keepdim=True)


def instruction_row(
    query: Tensor,
    key: Tensor,
    scale: float,
    query_tokens: Tensor,
    columns: Tensor,
    softcap: float | None = None,
    chunk: int = 64,
    rows: Tensor | None = None,
) -> Tensor:
    """Return the attention of the query tokens to the visual tokens, mean over heads and query tokens.

    The softmax of a query token is over the visual tokens alone, those behind it too.

    Parameters
    ----------
    query : Tensor
        (B, H, L, d), any float dtype; of the whole sequence in one layer of the language model.
    key : Tensor
        (B, H', L, d). H is a multiple of H' (grouped queries).
    scale : float
        Factor of the inner products before the softmax.
    query_tokens : Tensor
        bool (I, L); True at the query tokens of I images.
    columns : Tensor
        Long (I, N); columns of their visual tokens in the sequence, -1 at padding.
    softcap : float, optional
        Bound c of the products, c tanh(x / c), if the layer has one.
    chunk : int
        Number of query tokens at a time, which bounds the memory to I x H x chunk x N numbers.
    rows : Tensor, optional
        Long (I,); the sequence that each image is in. By default there is one image in each, I = B.

    Returns
    -------
    Tensor
        float32 (I, N); rows sum to 1; 0 at padding.

    Raises
    ------
    ValueError
        If a row has no query token or no visual token.
    """
    visual, counts = columns >= 0, query_tokens.sum(dim=1, keepdim=True)
    asked, shown = counts[:, 0].tolist(), visual.sum(dim=1).tolist()
    for name, numbers in (("query_tokens", asked), ("columns", shown)):
        if 0 in numbers:
            raise ValueError(f"{name} must name a token in every row; row {numbers.index(0)} has none")
    places = query_tokens.int().sort(dim=1, descending=True, stable=True).indices[:, : max(asked)]  # (I, T)
    share = query_tokens.gather(1, places) / counts  # (I, T), 0 beyond an image's own query tokens
    mask = None if min(shown) == columns.shape[1] else visual[:, None]
    seen = _take(key, columns.clamp_min(0), rows)
    # (I, T, N), some T at a time: queries of T query tokens, keys of the N visual tokens.
    parts = [
        (_attend(_take(query, some, rows), seen, scale, mask, softcap) * weights[..., None]).sum(dim=1)
        for some, weights in zip(torch.split(places, chunk, dim=1), torch.split(share, chunk, dim=1), strict=True)
    ]
    return functools.reduce(torch.add, parts)


def causal_row(query: Tensor, key: Tensor, scale: float, query_tokens: Tensor, real: Tensor, columns: Tensor) -> Tensor:
    """Return the attention of the query tokens to the visual tokens, mean over heads and query tokens.

    The softmax of a query token is over all tokens that it may attend to: those up to itself. Only the rows of the
    query tokens are computed.

    Parameters
    ----------
    query : Tensor
        (B, H, L, d), any float dtype; of the whole sequence in one layer of the language model.
    key : Tensor
        (B, H', L, d). H is a multiple of H' (grouped queries).
    scale : float
        Factor of the inner products before the softmax.
    query_tokens, real : Tensor
        bool (B, L); True at the query tokens; False at padding.
    columns : Tensor
        Long (B, N); columns of the visual tokens in the sequence, -1 at padding.

    Returns
    -------
    Tensor
        float32 (B, N); 0 at padding.

    Raises
    ------
    ValueError
        If a row has no query token.
    """
    counts = query_tokens.sum(dim=1, keepdim=True)
    if bool((counts == 0).any()):
        raise ValueError(f"every row needs a query token; row {int((counts[:, 0] == 0).int().argmax())} has none")
    places = query_tokens.int().sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]  # (B, T)
    visible = real[:, None] & (torch.arange(real.shape[1], device=real.device) <= places[..., None])  # (B, T, L)
    rows = _attend(_take(query, places), key, scale, visible)  # (B, T, L)
    # Beyond a row's own query tokens are arbitrary ones, and a row of padding that sees nothing is NaN.
    mean = rows.masked_fill(~query_tokens.gather(1, places)[..., None], 0).sum(dim=1) / counts
    return mean.gather(1, columns.clamp_min(0)).masked_fill(columns < 0, 0)


def _take(states: Tensor, places: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return states (B, H, L, d) at places (I, T) of sequences (I,), by default one each, as (I, H, T, d)."""
    heads, length, width = states.shape[1:]
    rows = torch.arange(len(places), device=places.device) if rows is None else rows
    flat = (rows[:, None] * length + places).flatten()  # (I T,): rows of (B L, H, d), which are whole in memory
    taken = states.transpose(1, 2).flatten(0, 1).index_select(0, flat)
    return taken.view(*places.shape, heads, width).transpose(1, 2)


def _attend(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Return attention (B, T, N) of queries (B, H, T, d) to keys (B, H', N, d), in float32, mean over heads.

    Keys are left out where `mask` (B, T or 1, N) is False; `softcap` bounds the products.
    """
    return _shares(query, key, scale, mask, softcap).mean(dim=1)


def _shares(
    query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Return the attention of every head, (B, H, T, N)."""
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"query heads must be a multiple of key heads, not {query.shape[1]} to {key.shape[1]}")
    batch, heads, length, width = query.shape
    grouped = query.float().mul(scale).reshape(batch, key.shape[1], -1, width)  # (B, H', H / H' T, d)
    with torch.autocast(query.device.type, enabled=False):
        logits = (grouped @ key.float().mT).view(batch, heads, length, -1)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], -torch.inf)
    return logits.softmax(dim=-1)
