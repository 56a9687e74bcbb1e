"""Backend "triton": picks on a GPU with one matrix product, then one kernel for all rounds of all images.

Each program of the kernel runs the rounds of one image and keeps its scores in registers. A round reads one row of the
similarities, so its time hardly depends on the number of tokens, and no round waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from idsel_core.selection.suppression import Update, finite_exponent, floors, rounding

WORKSPACE = 2**30
"""Most bytes of similarities (B, N, N) at a time; more images than fit are done one group after the other."""


@triton.jit  # type: ignore[untyped-decorator]
def _rounds(
    similarity: tl.tensor,
    inverse: tl.tensor,
    scores: tl.tensor,
    counts: tl.tensor,
    exponent: tl.tensor,
    floors: tl.tensor,
    order: tl.tensor,
    n: tl.tensor,
    most: tl.tensor,
    LEAST: tl.constexpr,
    MULTIPLY: tl.constexpr,
    RESTART: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    image = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < n
    now = tl.load(scores + image * n + token, mask=inside, other=float("-inf"))
    own = tl.load(inverse + image * n + token, mask=inside, other=0.0)
    table = similarity + image * n * n
    count = tl.load(counts + image)
    factor = tl.load(exponent + image)
    floor = tl.load(floors + image)
    original = now
    for step in range(count):
        value, pick = tl.max(now, axis=0, return_indices=True, return_indices_tie_break_left=True)
        if RESTART:  # noqa: SIM102 - the first is known when the kernel is compiled, the second is not
            # The exhaustion rule.
            if value <= floor:
                now = tl.where(now == float("-inf"), float("-inf"), original)
                value, pick = tl.max(now, axis=0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(order + image * most + step, pick.to(tl.int64))
        row = tl.load(table + pick.to(tl.int64) * n + token, mask=inside, other=0.0)
        # The update rule, as in `Suppression.strengths` and `Suppression.suppress`. The weight has the dtype of the
        # similarities: most GPUs have few float64 units, and only one multiprocessor works on an image.
        distance = 1.0 - row * tl.load(inverse + image * n + pick) * own
        distance = tl.where(distance > LEAST, distance, 0.0)
        power = distance * distance * factor
        weight = tl.exp(power)
        if MULTIPLY:
            # Near w = 1 the difference 1 - w loses digits; Kahan's formula computes it from log w instead.
            near = weight > 0.5
            below = near & (weight < 1.0)
            rest = tl.where(below, (1.0 - weight) * power / tl.log(tl.where(below, weight, 0.5)), -power)
            lowered = now * tl.where(near, rest.to(now.dtype), 1.0 - weight.to(now.dtype))
        else:
            lowered = now - weight.to(now.dtype) * tl.maximum(value, 0.0)
        now = tl.where((token == pick) | (now == float("-inf")), float("-inf"), lowered)


def pick_on_gpu(
    x: Tensor,
    inverse: Tensor,
    scores: Tensor,
    counts: Tensor,
    gamma: Tensor,
    update: Update,
    restart: bool = False,
) -> Tensor:
    """Pick the tokens that `pick_in_rounds` picks.

    Parameters
    ----------
    x : Tensor
        (B, N, D), any float dtype; padding may hold any value.
    inverse : Tensor
        float32 or float64 (B, N); 1 / |x|, 0 for zero vectors.
    scores : Tensor
        float64 (B, N), -inf at padding.
    counts : Tensor
        Long (B,), on any device; number of tokens to pick of each image, at most the tokens that are no padding.
    gamma : Tensor
        (B,); sharpness of each image.
    update : {"subtract", "multiply"}
        As in `id_select`.
    restart : bool
        Whether the scores are set back when they have run out.

    Returns
    -------
    Tensor
        Long (B, K); the picks in order, -1 after the last pick of a shorter row.
    """
    images, n = scores.shape
    most = int(counts.max())
    order = torch.full((images, most), -1, dtype=torch.long, device=x.device)
    counts = counts.to(x.device, non_blocking=True)
    # Tensors, because plain numbers would reach the kernel as float32.
    exponent, floor = finite_exponent(gamma, inverse.dtype), floors(scores)[:, 0]
    block = triton.next_power_of_2(n)
    at_once = max(1, WORKSPACE // (n * n * inverse.element_size()))
    for start in range(0, images, at_once):
        part = slice(start, start + at_once)
        table, factors = _similarities(x[part], inverse[part])
        _rounds[(len(table),)](
            table,
            factors,
            scores[part].contiguous(),
            counts[part],
            exponent[part],
            floor[part],
            order[part],
            n,
            most,
            LEAST=rounding(inverse.dtype),
            MULTIPLY=update == "multiply",
            RESTART=restart,
            BLOCK=block,
            num_warps=min(32, max(4, block // 256)),
        )
    return order


def _similarities(x: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return inner products (B, N, N) in float32 or float64, and factors (B, N) that turn them into cosines."""
    if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16) and hasattr(torch.ops.aten.bmm, "dtype"):
        # Tensor cores multiply halves exactly and add them in float32. Products of bfloat16 may leave its range, so
        # rows are first scaled to norms near 1 by powers of two, which is exact.
        scale = torch.ones_like(inverse) if x.dtype == torch.float16 else inverse.log2().floor().exp2()
        scaled = x if x.dtype == torch.float16 else x * scale[..., None].to(x.dtype)
        return torch.bmm(scaled, scaled.mT, out_dtype=torch.float32), (inverse / scale).nan_to_num_(nan=0.0)
    unit = x.to(inverse.dtype) * inverse[..., None]
    return unit @ unit.mT, torch.ones_like(inverse)
