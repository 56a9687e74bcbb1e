"""Backend "numba": picks on a CPU with compiled loops that compute only the similarities a pick depends on.

This is the lazy greedy algorithm. Scores never rise within a sweep, so an outdated score is an upper bound. The tokens
are kept in a heap by their last known scores. If the score of the first token is up to date, it is picked; otherwise it
is updated, together with others near the top, and sinks to its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from idsel_core.selection.suppression import Update, exhausted_share, finite_exponent, rounding

GROUP = 4
"""Number of tokens that are updated together, so that the features of the picks are read once for all of them."""
HIGH = 31
"""Number of places at the top of the heap that these tokens are taken from."""
STRETCH = 2048
"""Number of products that are summed in the features' dtype before the sum is added in float64, to bound rounding."""
Features: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.float64]
Longs: TypeAlias = npt.NDArray[np.int64]


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function at its first call, and cache the result on disk where a folder can be written to."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # there is no such folder
            return numba.njit(nogil=True, **options)(function)

    return compile_


# Sums may be reordered, but infinities and NaN keep their meaning.
_in_any_order = compiled(fastmath={"reassoc", "contract", "nsz"})


@_in_any_order
def _product(a: Features, b: Features) -> float:
    total: Any = 0.0
    for start in range(0, len(a), STRETCH):
        part = a.dtype.type(0)
        for i in range(start, min(start + STRETCH, len(a))):
            part += a[i] * b[i]
        total += part
    return total


@_in_any_order
def _four_by_three(x: Features, tokens: Longs, picks: Longs, out: Floats) -> None:
    """Write the inner products (4, 3) of four tokens and three picks to `out`; each of the seven rows is read once."""
    out[:] = 0.0
    a, b, c, d = x[tokens[0]], x[tokens[1]], x[tokens[2]], x[tokens[3]]
    p, q, r = x[picks[0]], x[picks[1]], x[picks[2]]
    for start in range(0, len(a), STRETCH):
        ap = aq = ar = bp = bq = br = cp = cq = cr = dp = dq = dr = a.dtype.type(0)
        for i in range(start, min(start + STRETCH, len(a))):
            ap, aq, ar = ap + a[i] * p[i], aq + a[i] * q[i], ar + a[i] * r[i]
            bp, bq, br = bp + b[i] * p[i], bq + b[i] * q[i], br + b[i] * r[i]
            cp, cq, cr = cp + c[i] * p[i], cq + c[i] * q[i], cr + c[i] * r[i]
            dp, dq, dr = dp + d[i] * p[i], dq + d[i] * q[i], dr + d[i] * r[i]
        for column, sums in enumerate(((ap, bp, cp, dp), (aq, bq, cq, dq), (ar, br, cr, dr))):
            for row in range(GROUP):
                out[row, column] += sums[row]


@compiled()
def _products(x: Features, tokens: Longs, picks: Longs) -> Floats:
    out = np.empty((len(tokens), len(picks)))
    whole = len(picks) - len(picks) % 3 if len(tokens) == GROUP else 0
    for pick in range(0, whole, 3):
        _four_by_three(x, tokens, picks[pick : pick + 3], out[:, pick : pick + 3])
    for row, token in enumerate(tokens):
        for pick in range(whole, len(picks)):
            out[row, pick] = _product(x[token], x[picks[pick]])
    return out


@compiled()
def _before(scores: Floats, a: int, b: int) -> bool:
    return scores[a] > scores[b] or (scores[a] == scores[b] and a < b)


@compiled()
def _sink(heap: Longs, size: int, scores: Floats, place: int) -> None:
    token, below = heap[place], 2 * place + 1
    while below < size:
        if below + 1 < size and _before(scores, heap[below + 1], heap[below]):
            below += 1
        if not _before(scores, heap[below], token):
            break
        heap[place] = heap[below]
        place, below = below, 2 * below + 1
    heap[place] = token


@compiled()
def _greedy(
    x: Features,
    inverse: Features,
    scores: Floats,
    heap: Longs,
    order: Longs,
    exponent: float,
    least: float,
    multiply: bool,
    floor: float,
) -> None:
    """Fill `order` (K,) with picks among the tokens of `heap`; scores (N,) are updated in place, as far as needed.

    When no score is above `floor`, the scores of the tokens left are set back; a `floor` of -inf never sets them back.
    """
    size = len(heap)
    original = scores.copy()
    values = np.empty(len(order))
    effective = 0  # number of picks that had a positive score; they come first, and only they lower other scores
    known = np.zeros(len(scores), np.int64)  # number of these picks that each score already accounts for
    group, places = np.empty(GROUP, np.int64), np.empty(GROUP, np.int64)
    for place in range(size // 2 - 1, -1, -1):
        _sink(heap, size, scores, place)
    picked = 0
    rest = False  # whether no first score of the tokens left is above the floor: they come as they are
    while picked < len(order):
        first = heap[0]
        if known[first] == effective:
            # The exhaustion rule.
            if scores[first] <= floor and not rest:
                for place in range(size):
                    scores[heap[place]] = original[heap[place]]
                    known[heap[place]] = effective
                for place in range(size // 2 - 1, -1, -1):
                    _sink(heap, size, scores, place)
                first = heap[0]
                rest = scores[first] <= floor
            order[picked] = first
            picked += 1
            if scores[first] > 0 and not rest:
                values[effective] = scores[first]
                effective += 1
            size -= 1
            heap[0] = heap[size]
            _sink(heap, size, scores, 0)
            continue
        start, members, place = known[first], 0, 0
        while place < min(HIGH, size) and members < GROUP:
            if known[heap[place]] == start:
                group[members], places[members] = heap[place], place
                members += 1
            place += 1
        if members < GROUP:
            members = 1
        products = _products(x, group[:members], order[start:effective])
        for member, token in enumerate(group[:members]):
            for step in range(start, effective):
                cosine = products[member, step - start] * inverse[token] * inverse[order[step]]
                distance = 1.0 - cosine
                # The update rule, as in `Suppression.strengths` and `Suppression.suppress`.
                power = exponent * distance * distance if distance > least else 0.0
                if multiply:
                    scores[token] *= -math.expm1(power)
                else:
                    scores[token] -= values[step] * math.exp(power)
            known[token] = effective
        for member in range(members - 1, -1, -1):
            _sink(heap, size, scores, places[member])


def pick_compiled(
    x: Tensor,
    inverse: Tensor,
    scores: Tensor,
    dead: Tensor,
    counts: Tensor,
    gamma: Tensor,
    update: Update,
    restart: bool = False,
) -> Tensor:
    """Pick the tokens that `pick_in_rounds` picks.

    Parameters
    ----------
    x : Tensor
        float32 or float64 (B, N, D) on the CPU; dead tokens may hold any value.
    inverse : Tensor
        (B, N); 1 / |x|, 0 for zero vectors.
    scores : Tensor
        float64 (B, N).
    dead : Tensor
        bool (B, N); tokens that cannot be picked.
    counts : Tensor
        Long (B,); number of tokens to pick of each image, at most the number of tokens that are not dead.
    gamma : Tensor
        float64 (B,); sharpness of each image.
    update : {"subtract", "multiply"}
        As in `id_select`.
    restart : bool
        Whether the scores are set back when they have run out.

    Returns
    -------
    Tensor
        Long (B, K); the picks in order, -1 after the last pick of a shorter row.
    """
    order = np.full((len(x), int(counts.max())), -1)
    features, factors, now = x.contiguous().numpy(), inverse.contiguous().numpy(), scores.clone().numpy()
    exponents = finite_exponent(gamma, torch.float64).tolist()
    least, multiply, share = rounding(x.dtype), update == "multiply", exhausted_share(torch.float64)

    def fill(image: int) -> None:
        alive = (~dead[image]).nonzero()[:, 0].numpy()
        floor = share * now[image, alive].max() if restart else -math.inf
        picks = order[image, : counts[image]]
        _greedy(features[image], factors[image], now[image], alive, picks, exponents[image], least, multiply, floor)

    like = _first_alike(features, now, dead.numpy(), counts.numpy())
    first = sorted(set(like))
    threads = min(torch.get_num_threads(), len(first))
    if threads == 1:
        for image in first:
            fill(image)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, first))
    return torch.from_numpy(order[like])


def _first_alike(features: Features, scores: Floats, dead: npt.NDArray[np.bool_], counts: Longs) -> list[int]:
    """Return, for each image, the first one with the same features, scores and count: several questions ask of one."""
    known: dict[bytes, list[int]] = {}
    like = []
    for image, (count, alive) in enumerate(zip(counts, ~dead, strict=True)):
        # Dead tokens may hold any value, and scores of all others are finite.
        group = known.setdefault(scores[image].tobytes() + alive.tobytes() + count.tobytes(), [])
        same = (one for one in group if np.array_equal(features[one][alive], features[image][alive]))
        like.append(next(same, image))
        if like[-1] == image:
            group.append(image)
    return like
