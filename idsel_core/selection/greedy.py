"""`id_select`: pick the token of highest score, suppress the tokens that look like it, repeat.

Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9. This file checks the input and chooses a backend; the update rule is
in `idsel_core.selection.suppression`.
"""

from __future__ import annotations

import math
import numbers
import os
from importlib.util import find_spec
from typing import Literal, NoReturn, get_args

import torch
from torch import Tensor

from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.selection.scale import automatic_gamma
from idsel_core.selection.suppression import Exhausted, Suppression, Update, score_dtype
from idsel_core.selection.torch_rounds import pick_in_rounds

Backend = Literal["auto", "torch", "lazy", "triton"]


@torch.no_grad()
def id_select(
    features: Tensor,
    scores: Tensor,
    budget: int | float,
    gamma: float | Literal["auto"] = "auto",
    update: Update = "multiply",
    mask: Tensor | None = None,
    trace: bool = False,
    backend: Backend = "auto",
    exhausted: Exhausted = "restart",
) -> Selection:
    """Select visual tokens by importance and diversity, as ID-Selection does.

    Each round picks the token i of highest score S_i (ties go to the lowest index) and lowers the score of every other
    token j by its similarity to i. With d = max(0, 1 - cos) and w = exp(-gamma d^2), *subtract* sets
    S_j -= w_ij max(S_i, 0) and *multiply* sets S_j *= 1 - w_ij. Once no score is positive, a new sweep begins: the
    tokens that are left get their first scores back, and the same rule goes on among them.

    Parameters
    ----------
    features : Tensor
        (B, N, D) or (N, D), any float dtype. A zero vector is at distance 1 from every token.
    scores : Tensor
        (B, N) or (N,), any float dtype, 0 or more. Scores are updated in float64 (float32 on MPS, which has no
        float64). Similarities, and the weights of *triton*, are computed in float32, or float64 if the features are.
    budget : int or float
        Number or share of tokens to keep of each row, see `resolve_budget`.
    gamma : float
        Sharpness of the suppression, 0 to infinity. At 0 a pick suppresses all tokens equally; at infinity it
        suppresses duplicates only, which is top-K by score if there are none. "auto" takes the gamma of each image at
        which a token at the image's mean distance has w = 0.01, see `automatic_gamma`; it follows the scale of the
        distances, so that one setting serves features of any kind.
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    mask : Tensor, optional
        bool, shaped like `scores`; True at tokens, False at padding. Padding may hold any value, NaN included.
    trace : bool
        Whether to record the scores before each pick. A trace is always computed by *torch*.
    backend : {"auto", "torch", "lazy", "triton"}
        Implementation; all of them pick the same tokens. *torch* runs a few kernels a round for the whole batch, on any
        device. *lazy* runs on a CPU, image by image, and computes the similarities that picks are likely to depend on.
        *triton* runs on a GPU with triton, all rounds in one kernel. *auto* takes lazy on a CPU, and triton on a GPU
        where it is installed, else torch.
    exhausted : {"restart", "continue"}
        What follows when no score of the tokens left is above 0, or above the rounding error of the row's highest
        score. *restart* begins a new sweep, so that importance goes on to decide. *continue* leaves the scores as they
        are, so that the least suppressed token is next, which with *subtract* is a token of the background. If the
        first scores of the tokens left have run out too, they come by score, then by index.

    Returns
    -------
    Selection
        Always batched: B = 1 for unbatched input.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type, shape or value; the message names it.

    Notes
    -----
    Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9. Tokens whose scores differ by less than the rounding error may
    be picked in either order; so may duplicates of equal score once a pick has suppressed them.
    """
    check_knobs(gamma, update, exhausted)
    x, s, valid = _as_batch(features, scores, mask)
    chosen = _choose_backend(backend, x.device, trace)
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=wide)
    counts = resolve_budget(budget, _checked_lengths(norms, s, valid))
    inverse = norms.reciprocal().nan_to_num_(0.0, posinf=0.0)
    dead = torch.zeros_like(s, dtype=torch.bool) if valid is None else ~valid
    if valid is not None:
        s = s.masked_fill(dead, -math.inf)
    steps: list[Tensor] = []
    restart = exhausted == "restart"
    sharpness = automatic_gamma(x, inverse, valid) if gamma == "auto" else torch.full_like(s[:, 0], float(gamma))
    with full_precision(x.device):
        if chosen == "triton":
            from idsel_core.selection.gpu_triton import pick_on_gpu

            order = pick_on_gpu(x, inverse, s, counts, sharpness, update, restart)
        else:
            images = Suppression(x.to(wide), inverse, sharpness, update)
            order = _pick_with_torch(images, s, dead, counts, chosen, restart, steps if trace else None)
    traced = torch.stack(steps, dim=1).masked_fill_((order < 0)[..., None], -math.inf) if trace else None
    return Selection.from_order(order, s, budget, traced)


def _choose_backend(backend: Backend, device: torch.device, trace: bool) -> Backend:
    """Return the backend to use; raise ValueError if the one asked for cannot run here."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, not {backend!r}")
    if backend == "triton" and find_spec("triton") is None:
        raise ValueError("backend 'triton' needs the package triton, which is not installed; 'torch' does not")
    # Triton reads this variable itself: it then interprets kernels on a CPU, for tests.
    if backend == "triton" and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' needs tensors on a GPU or TRITON_INTERPRET=1, not {device.type} tensors")
    if backend == "lazy" and device.type != "cpu":
        raise ValueError(f"backend 'lazy' needs tensors on the CPU, not on {device.type}")
    if trace:
        return "torch"
    if backend != "auto":
        return backend
    if device.type == "cuda" and find_spec("triton") is not None:
        return "triton"
    return "lazy" if device.type == "cpu" else "torch"


def _pick_with_torch(
    images: Suppression,
    scores: Tensor,
    dead: Tensor,
    counts: Tensor,
    backend: Backend,
    restart: bool,
    steps: list[Tensor] | None,
) -> Tensor:
    """Return the picks (B, K) in order, -1 after the last pick of a shorter row."""
    if backend == "torch":
        most = int(counts.max())
        picks = pick_in_rounds(images, scores, dead, most, steps, scores if restart else None)
        unused = torch.arange(most) >= counts[:, None]  # (B, K)
        return picks.masked_fill_(unused.to(picks.device), -1)
    from idsel_core.selection.cpu_lazy import pick_lazily

    order = []
    for row, count in enumerate(counts.tolist()):
        one = slice(row, row + 1)
        order.append(torch.tensor(pick_lazily(images.of(row), scores[one], dead[one], count, restart)))
    return torch.nn.utils.rnn.pad_sequence(order, batch_first=True, padding_value=-1)


def check_knobs(gamma: float | str, update: str, exhausted: str) -> None:
    """Raise ValueError unless `id_select` takes these."""
    if gamma != "auto" and (isinstance(gamma, bool) or not isinstance(gamma, numbers.Real) or not gamma >= 0):
        raise ValueError(f"gamma must be a number from 0 to infinity or 'auto', not {gamma!r}")
    if exhausted not in get_args(Exhausted):
        raise ValueError(f"exhausted must be one of {', '.join(map(repr, get_args(Exhausted)))}, not {exhausted!r}")
    if update not in get_args(Update):
        raise ValueError(f"update must be one of {', '.join(map(repr, get_args(Update)))}, not {update!r}")


def _as_batch(features: Tensor, scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check types and shapes; return features (B, N, D), scores (B, N) in `score_dtype`, and mask (B, N) or None."""
    for name, value in (("features", features), ("scores", scores)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name} must be a tensor of a float dtype, not {found}")
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(f"features must be (B, N, D) or (N, D) without an empty axis, not {tuple(features.shape)}")
    expected = features.shape[:-1]
    if scores.shape != expected:
        raise ValueError(f"scores must be {tuple(expected)}, like features, not {tuple(scores.shape)}")
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor, not {found}")
        if mask.shape != expected:
            raise ValueError(f"mask must be {tuple(expected)}, like features, not {tuple(mask.shape)}")
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
    """Check all values with one synchronisation, and return the tokens of each row, int64 (B,) on the CPU."""
    rows, n = scores.shape
    checked = (norms, scores) if valid is None else (norms.where(valid, 0), scores.where(valid, 0))
    extremes = [checked[0].amax(), *checked[1].aminmax()]
    look = torch.stack([value.to(scores.dtype) for value in extremes])
    if valid is not None:
        look = torch.cat([look, valid.sum(dim=1, dtype=scores.dtype)])
    norm, lowest, highest, *counted = look.tolist()
    # aminmax passes a NaN on, and a NaN fails every comparison.
    if not (norm < math.inf and lowest >= 0 and highest < math.inf and all(counted)):
        _name_fault(norms, scores, torch.ones_like(scores, dtype=torch.bool) if valid is None else valid)
    return torch.tensor(counted or [n] * rows, dtype=torch.long)


def _name_fault(norms: Tensor, scores: Tensor, valid: Tensor) -> NoReturn:
    """Raise the ValueError that names the first bad value."""
    faults = (
        ("features must be finite, and so must their norms", norms, ~norms.isfinite() & valid),
        ("scores must be finite", scores, ~scores.isfinite() & valid),
        ("scores must be 0 or more", scores, (scores < 0) & valid),
        ("mask must be True at a token of every row", valid, ~valid.any(dim=1, keepdim=True).expand_as(valid)),
    )
    rule, values, broken = next(fault for fault in faults if fault[2].any())
    row, token = broken.nonzero()[0].tolist()
    raise ValueError(f"{rule}; row {row}, token {token} has {values[row, token].item()}")
