"""ID-Selection's greedy: pick the best token, suppress the tokens that look like it, repeat.

Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9 (distance, weight, update).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

Update = Literal["subtract", "multiply"]

LONGEST_SHORTLIST = 128


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens that a method keeps of each image of a batch.

    Attributes
    ----------
    indices : Tensor
        Long (B, K); kept tokens in raster (ascending) order, -1 after the last one of a shorter row.
    order : Tensor
        Long (B, K); the same tokens in the order in which they were picked, padded alike.
    scores : Tensor
        float32 (B, N); the scores that the choice started from, -inf on padding.
    counts : Tensor
        Long (B,); tokens kept per row.
    requested : int or float
        The budget as it was asked for: tokens, or a share of each row.
    features : Tensor or None
        (B, K, D); new features of the kept tokens, aligned with `indices`, for methods that merge.
    trace : Tensor or None
        float32 (B, K, N); the scores before each pick, -inf on padding and on tokens picked before.
    """

    indices: Tensor
    order: Tensor
    scores: Tensor
    counts: Tensor
    requested: int | float
    features: Tensor | None = None
    trace: Tensor | None = None

    @classmethod
    def from_order(
        cls, order: Tensor, scores: Tensor, requested: int | float, trace: Tensor | None = None
    ) -> Selection:
        """Build the selection that picks tokens in the given order.

        Parameters
        ----------
        order : Tensor
            Long (B, K); picks of each row, -1 after the last one of a shorter row.
        scores, requested, trace
            As the attributes of the same name.
        """
        behind_all = scores.shape[1]
        indices = order.masked_fill(order < 0, behind_all).sort(dim=1).values
        indices = indices.masked_fill(indices == behind_all, -1)
        return cls(indices, order, scores.float(), (order >= 0).sum(dim=1), requested, trace=trace)

    def __len__(self) -> int:
        """Return the number of rows (images)."""
        return self.indices.shape[0]

    def keep_mask(self, n: int) -> Tensor:
        """Return a bool (B, n) mask that is true on the kept tokens of rows of n tokens.

        Raises
        ------
        ValueError
            If a kept index is n or more.
        """
        if n <= (last := int(self.indices.max())):
            raise ValueError(f"n must be above the highest kept index {last}, not {n}")
        mask = self.indices.new_zeros((len(self), n + 1), dtype=torch.bool)
        return mask.scatter(1, self.indices.where(self.indices >= 0, n), True)[:, :n]

    def rows(self) -> list[Tensor]:
        """Return the kept indices of each row in raster order, without padding."""
        return [row[:count] for row, count in zip(self.indices, self.counts.tolist(), strict=True)]


def resolve_budget(budget: int | float, lengths: Tensor) -> Tensor:
    """Turn a budget into the number of tokens that each row keeps.

    Parameters
    ----------
    budget : int or float
        int: tokens, and a row that has fewer keeps all it has. float in (0, 1]: share of each row's own
        length, rounded half up, at least one token.
    lengths : Tensor
        Long (B,); tokens of each row.

    Returns
    -------
    Tensor
        Long (B,).

    Raises
    ------
    TypeError
        If the budget is not a number.
    ValueError
        If the budget is not in its range, or is more tokens than the longest row has.
    """
    allowed = "a number of tokens (int, 1 or more) or a share of them (float, above 0 and up to 1)"
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise TypeError(f"budget must be {allowed}, not {budget!r}")
    if isinstance(budget, numbers.Integral):
        longest = int(lengths.max())
        if not 1 <= budget <= longest:
            raise ValueError(f"budget must be {allowed}; got {budget!r} tokens, and the longest row has {longest}")
        return lengths.clamp_max(int(budget))
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be {allowed}, not {budget!r}")
    return (lengths.double() * float(budget) + 0.5).floor().long().clamp_min(1)


@torch.no_grad()
def id_select(
    features: Tensor,
    scores: Tensor,
    budget: int | float,
    gamma: float = 20.0,
    update: Update = "subtract",
    mask: Tensor | None = None,
    trace: bool = False,
) -> Selection:
    """Keep the tokens that ID-Selection picks: highest score first, each pick suppressing its likes.

    With d = max(0, 1 - cos) and w = exp(-gamma d^2), each round picks the token of highest score S_i (ties:
    lowest index) and lowers every other: *subtract* S_j -= w_ij max(S_i, 0), *multiply* S_j *= 1 - w_ij.
    Where no positive score is left, the rule goes on unchanged, so the least suppressed token is next.

    Parameters
    ----------
    features : Tensor
        (B, N, D) or (N, D), any float dtype; a zero vector is at distance 1 from every token.
    scores : Tensor
        (B, N) or (N,), any float dtype, 0 or more. Scores are computed in float64 (on MPS, which has none, float32),
        similarities in float32 or, if the features are, float64.
    budget : int or float
        Tokens or share of each row, as in `resolve_budget`.
    gamma : float
        Sharpness of the suppression, 0 to infinity; 0: every token suppresses all others alike, infinity:
        duplicates alone are suppressed (top-K by score where there are none).
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    mask : Tensor, optional
        bool, shaped as `scores`; true on tokens, false on padding, which may hold anything.
    trace : bool
        Whether to record the scores before each pick.

    Returns
    -------
    Selection
        Always batched; B = 1 for unbatched input.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or value; the message names it.

    Notes
    -----
    Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9. Tokens whose scores differ by less than rounding (so
    duplicates with equal scores, once something was suppressed) may come in either order.
    """
    _check_knobs(gamma, update)
    x, s, valid = _as_batch(features, scores, mask)
    images = _Images(x, _inverse_norms(x, s, valid), gamma, update)
    counts = resolve_budget(budget, valid.sum(dim=1))
    s, dead = s.masked_fill(~valid, -math.inf), ~valid
    most = int(counts.max())
    unused = torch.arange(most, device=x.device) >= counts[:, None]
    steps: list[Tensor] = []
    with _full_precision(x.device):
        if x.device.type == "cpu" and not trace:
            order = torch.full_like(unused, -1, dtype=torch.long)
            for row, count in enumerate(counts.tolist()):
                one = slice(row, row + 1)
                order[row, :count] = _shortlisted(images[one], s[one], dead[one], count)
        else:
            picks, _ = _greedy(images, s, dead, most, steps if trace else None)
            order = picks.masked_fill(unused, -1)
    traced = torch.stack(steps, dim=1).masked_fill_(unused[..., None], -math.inf) if trace else None
    return Selection.from_order(order, s, budget, traced)


@dataclass(frozen=True)
class _Images:
    """Features of B images, and how much a token of theirs suppresses another."""

    x: Tensor  # (B, N, D)
    inverse: Tensor  # (B, N): 1 / |x|
    gamma: float
    update: Update

    def __getitem__(self, images: slice) -> _Images:
        return replace(self, x=self.x[images], inverse=self.inverse[images])

    def unit(self, tokens: Tensor) -> Tensor:
        """Return the unit features (B, T, D) of tokens (B, T)."""
        flat = (tokens + self._starts).flatten()
        rows = self.x.flatten(0, 1).index_select(0, flat)
        return rows.mul_(self.inverse.flatten()[flat, None]).view(*tokens.shape, -1)

    @cached_property
    def _starts(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)[:, None] * self.x.shape[1]

    def strengths_of(self, picks: Tensor) -> Tensor:
        """Return the strengths (B, T, N) at which tokens (B, T) suppress every token."""
        return self.strengths((self.unit(picks) @ self.x.mT).mul_(self.inverse[:, None]))

    def strengths(self, cosines: Tensor) -> Tensor:
        """Return w = exp(-gamma d^2), or for *multiply* 1 - w, without the loss of digits near w = 1."""
        rounding = 32 * torch.finfo(cosines.dtype).eps
        distance = torch.nn.functional.threshold(1 - cosines.to(_score_dtype(cosines)), rounding, 0.0)
        exponent = distance.square_().mul_(-min(self.gamma, torch.finfo(distance.dtype).max))
        return exponent.exp_() if self.update == "subtract" else exponent.expm1_().neg_()

    def suppress(self, scores: Tensor, dead: Tensor, strengths: Tensor, values: Tensor) -> Tensor:
        """Lower scores (B, N) by T picks of strengths (B, T, N) that had the scores `values` (B, T)."""
        if self.update == "subtract":
            lowered = torch.baddbmm(scores[:, None], values[:, None].relu(), strengths, alpha=-1)[:, 0]
        else:
            lowered = scores * strengths.prod(dim=1)
        return lowered.masked_fill_(dead, -math.inf)


def _greedy(
    images: _Images, scores: Tensor, dead: Tensor, rounds: int, steps: list[Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Run rounds on scores (B, N); return the picks (B, rounds) and the new scores. `steps` receives the scores before.

    A round is a few kernels for the whole batch and never waits for the device.
    """
    picks = []
    dead = dead.clone()
    for _ in range(rounds):
        if steps is not None:
            steps.append(scores.float())
        value, pick = scores.max(dim=1, keepdim=True)
        scores = images.suppress(scores, dead.scatter_(1, pick, True), images.strengths_of(pick), value)
        picks.append(pick)
    return torch.cat(picks, dim=1), scores


def _shortlisted(image: _Images, scores: Tensor, dead: Tensor, count: int) -> Tensor:
    """Run the same greedy on one image (B = 1), comparing only tokens that can win with each other.

    Scores never rise. So rounds run on a shortlist of the highest scores alone, as far as they cannot be beaten
    from outside, and only then all scores are brought up to date. Where that yields few picks, as with equal
    scores, some rounds run on all tokens.
    """
    order = []
    size = 3 * count // 2
    while count:
        ranking = scores.sort(dim=1, descending=True, stable=True)
        if ranking.values[0, 0] <= 0:  # neither update moves such scores
            order.append(ranking.indices[0, :count])
            break
        size = min(size, 2 * count, LONGEST_SHORTLIST, scores.shape[1] - 1)
        if size < 4:
            picks, scores = _greedy(image, scores, dead, min(count, 16))
            size = 16
        else:
            picks, scores = _shortlist_rounds(image, scores, dead, ranking.indices[:, : size + 1], count)
            size = 2 * picks.shape[1]
        order.append(picks[0])
        dead = dead.scatter(1, picks, True)
        count -= picks.shape[1]
    return torch.cat(order)


def _shortlist_rounds(
    image: _Images, scores: Tensor, dead: Tensor, ranked: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Return up to `count` picks (1, P) from the tokens `ranked` (1, S) and, if more are wanted, all new scores.

    The last of `ranked` is the sentinel. It stands for all tokens outside: none of them scores more, now or later,
    so its score is left as it is, and once it would win nothing more is known.
    """
    short, rank = ranked.sort(dim=1)
    sentinel = int(rank.argmax())
    near = image.unit(short)
    table = image.strengths(near @ near.mT)[0].numpy()  # its calls cost a fifth of torch's, on rows as short as these
    table[:, sentinel] = 0 if image.update == "subtract" else 1
    now, gone = scores.gather(1, short)[0].numpy(), dead.gather(1, short)[0].numpy()
    below_all = -math.inf if image.update == "subtract" else -1.0  # infinity times 0 would be NaN
    now[gone] = below_all
    picked: list[int] = []
    values: list[float] = []
    while len(picked) < count and (best := int(now.argmax())) != sentinel:
        picked.append(best)
        values.append(now[best])
        now = now - max(now[best], 0.0) * table[best] if image.update == "subtract" else now * table[best]
        gone[best] = True
        now[gone] = below_all
    picks = short[:, picked]
    if len(picked) < count:
        at_pick = scores.new_tensor([values])
        scores = image.suppress(scores, dead.scatter(1, picks, True), image.strengths_of(picks), at_pick)
    return picks, scores


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Keep autocast and TF32, which the caller may have on for the model, away from the similarities."""
    matmul = torch.backends.cuda.matmul
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before


def _check_knobs(gamma: float, update: str) -> None:
    if isinstance(gamma, bool) or not isinstance(gamma, numbers.Real) or not gamma >= 0:
        raise ValueError(f"gamma must be a number from 0 to infinity, not {gamma!r}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(map(repr, get_args(Update)))}, not {update!r}")


def _as_batch(features: Tensor, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Check types and shapes; return features, scores and mask with a batch axis, floats as they are worked with."""
    for name, value in (("features", features), ("scores", scores)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a tensor of a float dtype, not {found}")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(f"features must be (B, N, D) or (N, D) without an empty axis, not {tuple(features.shape)}")
    expected = features.shape[:-1]
    if scores.shape != expected:
        raise ValueError(f"scores must be {tuple(expected)}, as features are, not {tuple(scores.shape)}")
    if mask is None:
        mask = torch.ones(expected, dtype=torch.bool, device=features.device)
    elif not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, not {found}")
    elif mask.shape != expected:
        raise ValueError(f"mask must be {tuple(expected)}, as features are, not {tuple(mask.shape)}")
    if not features.device == scores.device == mask.device:
        raise ValueError(
            f"features, scores and mask must be on one device, not {features.device}, {scores.device}, {mask.device}"
        )
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    batch = (-1, *features.shape[-2:])
    return features.reshape(batch), scores.to(_score_dtype(scores)).reshape(batch[:2]), mask.reshape(batch[:2])


def _score_dtype(like: Tensor) -> torch.dtype:
    # In float32 equal scores stay equal after 1 - 1e-9, and the choice would fall to the tokens' places.
    return torch.float32 if like.device.type == "mps" else torch.float64


def _inverse_norms(x: Tensor, scores: Tensor, valid: Tensor) -> Tensor:
    """Return 1 / |x| (0 for zero vectors) after checking the values of all tokens with one look from the host."""
    norms = torch.linalg.vector_norm(x, dim=-1)
    faults = (
        ("features must be finite, and so must their norms", norms, ~norms.isfinite() & valid),
        ("scores must be finite", scores, ~scores.isfinite() & valid),
        ("scores must be 0 or more", scores, (scores < 0) & valid),
        ("mask must be true on a token of every row", valid, ~valid.any(dim=1, keepdim=True).expand_as(valid)),
    )
    flags = torch.stack([broken.any() for _, _, broken in faults]).tolist()
    for flag, (rule, values, broken) in zip(flags, faults, strict=True):
        if flag:
            row, token = broken.nonzero()[0].tolist()
            raise ValueError(f"{rule}; row {row}, token {token} has {values[row, token].item()}")
    inverse: Tensor = norms.reciprocal().masked_fill_(norms == 0, 0)
    return inverse
