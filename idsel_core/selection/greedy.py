"""ID-Selection's greedy: pick the best token, suppress the tokens that look like it, repeat.

Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9 (distance, weight, update).
"""

from __future__ import annotations

import math
import numbers
import os
from importlib.util import find_spec
from typing import Literal, NoReturn, cast, get_args

import torch
from torch import Tensor

from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.cpu_shortlist import lazy_greedy
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.selection.suppression import Suppression, Update, score_dtype
from idsel_core.selection.torch_rounds import greedy

Backend = Literal["auto", "lazy", "numba", "torch", "triton"]


@torch.no_grad()
def id_select(
    features: Tensor,
    scores: Tensor,
    budget: int | float,
    gamma: float = 20.0,
    update: Update = "subtract",
    mask: Tensor | None = None,
    trace: bool = False,
    backend: Backend | None = None,
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
        similarities, and by *triton* suppressions too, in float32 or, if the features are, float64.
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
    backend : {"auto", "lazy", "torch", "triton"}, optional
        How the same greedy is run; by default the environment variable IDSEL_BACKEND says, or else "auto". *torch*: a
        few kernels a round for the whole batch, on any device; the trace is always recorded by it. *numba*, on a CPU
        where numba is installed: only similarities that a pick depends on are computed; the first call on a machine
        compiles it, which takes seconds. *lazy*, on a CPU: the like by torch alone, a few times slower. *triton*, on a
        GPU where triton is installed: one kernel runs all rounds. *auto*: numba or else lazy on a CPU, triton where it
        can run, else torch.

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
    form = _form(backend, x.device, trace)
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=wide)
    counts = resolve_budget(budget, _checked_lengths(norms, s, valid))
    inverse = norms.reciprocal().masked_fill_(norms == 0, 0)
    dead = torch.zeros_like(s, dtype=torch.bool) if valid is None else ~valid
    if valid is not None:
        s = s.masked_fill(dead, -math.inf)
    steps: list[Tensor] = []
    with full_precision(x.device):
        if form == "triton":
            from idsel_core.selection.gpu_triton import triton_greedy

            order = triton_greedy(x, inverse, s, counts, gamma, update)
        elif form == "numba":
            from idsel_core.selection.cpu_numba import numba_greedy

            order = numba_greedy(x.to(wide), inverse, s, dead, counts, gamma, update)
        else:
            order = _by_torch(Suppression(x.to(wide), inverse, gamma, update), s, dead, counts, form, steps, trace)
    traced = torch.stack(steps, dim=1).masked_fill_((order < 0)[..., None], -math.inf) if trace else None
    return Selection.from_order(order, s, budget, traced)


def _form(backend: Backend | None, device: torch.device, trace: bool) -> Backend:
    """Choose how the greedy is run."""
    chosen = os.environ.get("IDSEL_BACKEND", "auto") if backend is None else backend
    if chosen not in get_args(Backend):
        name = "IDSEL_BACKEND" if backend is None else "backend"
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(Backend)))}, not {chosen!r}")
    if chosen in ("numba", "triton") and find_spec(chosen) is None:
        raise ValueError(f"backend {chosen!r} needs the package {chosen}, which is not installed; 'torch' does not")
    if chosen == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' needs tensors on a GPU or TRITON_INTERPRET=1, not {device.type} tensors")
    if chosen in ("lazy", "numba") and device.type != "cpu":
        raise ValueError(f"backend {chosen!r} needs tensors on the CPU, not on {device.type}")
    if trace:
        return "torch"
    if chosen != "auto":
        return cast(Backend, chosen)
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton"
    if device.type == "cpu":
        return "numba" if find_spec("numba") is not None else "lazy"
    return "torch"


def _by_torch(
    images: Suppression,
    scores: Tensor,
    dead: Tensor,
    counts: Tensor,
    form: Backend,
    steps: list[Tensor],
    trace: bool,
) -> Tensor:
    """Return the picks (B, K) in order, -1 after the last one of a shorter row."""
    most = int(counts.max())
    unused = torch.arange(most) >= counts[:, None]
    if form == "torch":
        picks = greedy(images, scores, dead, most, steps if trace else None)
        return picks.masked_fill_(unused.to(picks.device), -1)
    order = torch.full_like(unused, -1, dtype=torch.long)
    for row, count in enumerate(counts.tolist()):
        one = slice(row, row + 1)
        order[row, :count] = torch.tensor(lazy_greedy(images.of(row), scores[one], dead[one], count))
    return order


def _check_knobs(gamma: float, update: str) -> None:
    if isinstance(gamma, bool) or not isinstance(gamma, numbers.Real) or not gamma >= 0:
        raise ValueError(f"gamma must be a number from 0 to infinity, not {gamma!r}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(map(repr, get_args(Update)))}, not {update!r}")


def _as_batch(features: Tensor, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check types and shapes; return features, scores (as they are worked with) and mask with a batch axis."""
    for name, value in (("features", features), ("scores", scores)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a tensor of a float dtype, not {found}")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(f"features must be (B, N, D) or (N, D) without an empty axis, not {tuple(features.shape)}")
    expected = features.shape[:-1]
    if scores.shape != expected:
        raise ValueError(f"scores must be {tuple(expected)}, as features are, not {tuple(scores.shape)}")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor, not {found}")
        if mask.shape != expected:
            raise ValueError(f"mask must be {tuple(expected)}, as features are, not {tuple(mask.shape)}")
    devices = [value.device for value in (features, scores, mask) if value is not None]
    if len(set(devices)) > 1:
        raise ValueError(f"features, scores and mask must be on one device, not {', '.join(map(str, devices))}")
    batch = (-1, *features.shape[-2:])
    return (
        features.reshape(batch),
        scores.to(score_dtype(scores.device)).reshape(batch[:2]),
        None if mask is None else mask.reshape(batch[:2]),
    )


def _checked_lengths(norms: Tensor, scores: Tensor, valid: Tensor | None) -> Tensor:
    """Return the tokens of each row, on the CPU, after checking the values of all with one look from the host."""
    rows, n = scores.shape
    checked = (norms, scores) if valid is None else (norms.where(valid, 0), scores.where(valid, 0))
    extremes = [checked[0].amax(), *checked[1].aminmax()]
    look = torch.stack([value.to(scores.dtype) for value in extremes])
    if valid is not None:
        look = torch.cat([look, valid.sum(dim=1, dtype=scores.dtype)])
    norm, lowest, highest, *counted = look.tolist()
    lengths = torch.tensor(counted or [n] * rows, dtype=torch.long)
    # A NaN is among the extremes if it is anywhere, and fails every comparison.
    if not (norm < math.inf and lowest >= 0 and highest < math.inf and bool(lengths.all())):
        _name_fault(norms, scores, torch.ones_like(scores, dtype=torch.bool) if valid is None else valid)
    return lengths


def _name_fault(norms: Tensor, scores: Tensor, valid: Tensor) -> NoReturn:
    faults = (
        ("features must be finite, and so must their norms", norms, ~norms.isfinite() & valid),
        ("scores must be finite", scores, ~scores.isfinite() & valid),
        ("scores must be 0 or more", scores, (scores < 0) & valid),
        ("mask must be true on a token of every row", valid, ~valid.any(dim=1, keepdim=True).expand_as(valid)),
    )
    rule, values, broken = next(fault for fault in faults if fault[2].any())
    row, token = broken.nonzero()[0].tolist()
    raise ValueError(f"{rule}; row {row}, token {token} has {values[row, token].item()}")
