"""The update rule of ID-Selection: how a pick lowers the scores of the other tokens, and what follows exhaustion.

`Suppression.strengths` turns cosines into weights (Eq. 7 and 8 of arXiv 2604.05601), `Suppression.suppress` lowers the
scores by them (Eq. 9), and `restarted` begins a new sweep when they have run out. To change the rule, change
these and call ``id_select(..., backend="torch")``, which runs them as they stand. Two faster backends repeat the rule
in their inner loops, at the comments "The update rule" and "The exhaustion rule":

* `cpu_lazy`, in ``_lower``, ``_suppress`` and ``pick_lazily`` (it takes the weights from here);
* `gpu_triton`, in ``_rounds``.

``tests/selection`` fails until all three agree with the slow reference `follow` in ``tests/support/selections.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Update = Literal["subtract", "multiply"]
Exhausted = Literal["restart", "continue"]


def score_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of the scores on a device."""
    # In float32, 1 - 1e-9 is 1: scores that differ would be equal, and the lowest index would decide.
    return torch.float32 if device.type == "mps" else torch.float64


def rounding(dtype: torch.dtype) -> float:
    """Return the largest cosine distance at which tokens count as duplicates, for similarities of a dtype."""
    return 32 * torch.finfo(dtype).eps


def finite_exponent(gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """Return -gamma (B,) in a dtype, as finite numbers, because an infinite one times a distance of 0 is NaN."""
    return -gamma.clamp_max(torch.finfo(dtype).max).to(dtype)


def exhausted_share(dtype: torch.dtype) -> float:
    """Return the share of an image's highest score below which a score, in a dtype, counts as run out.

    Above 0, because sums of rounded numbers that cancel need not give 0.
    """
    return float(torch.finfo(dtype).eps ** 0.75)


@dataclass(frozen=True)
class Suppression:
    """Features of B images, and how strongly their tokens suppress each other.

    Parameters
    ----------
    x : Tensor
        float32 or float64 (B, N, D).
    inverse : Tensor
        (B, N); 1 / |x|, 0 for zero vectors.
    gamma : Tensor
        Sharpness of each image, (B,), 0 to infinity.
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    """

    x: Tensor
    inverse: Tensor
    gamma: Tensor
    update: Update

    def of(self, image: int) -> Suppression:
        """Return the part that belongs to one image (B = 1)."""
        one = slice(image, image + 1)
        return Suppression(self.x[one], self.inverse[one], self.gamma[one], self.update)

    def unit(self, tokens: Tensor) -> Tensor:
        """Return the unit features (B, T, D) of tokens (B, T)."""
        flat = (tokens + self._starts).flatten()  # (B * T,) rows of x as (B * N, D)
        rows = self.x.flatten(0, 1).index_select(0, flat)
        return rows.mul_(self.inverse.flatten()[flat, None]).view(*tokens.shape, -1)

    @cached_property
    def _starts(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)[:, None] * self.x.shape[1]

    @cached_property
    def _exponents(self) -> Tensor:
        return finite_exponent(self.gamma, score_dtype(self.x.device))[:, None, None]  # (B, 1, 1)

    @cached_property
    def _one(self) -> Tensor:
        return torch.ones_like(self._exponents)

    def strengths_of(self, picks: Tensor) -> Tensor:
        """Return the strengths (B, T, N) at which tokens (B, T) suppress every token."""
        return self.strengths(products(self.unit(picks), self.x).mul_(self.inverse[:, None]))

    def strengths_among(self, tokens: Tensor) -> Tensor:
        """Return the strengths (B, T, T) at which tokens (B, T) suppress each other."""
        unit = self.unit(tokens)
        return self.strengths(products(unit, unit))

    def strengths(self, cosines: Tensor) -> Tensor:
        """Return the weights w = exp(-gamma d^2) of cosines, or 1 - w for *multiply*, exact near w = 1 too.

        Distances d = 1 - cos below the rounding error of the cosines count as 0.
        """
        distance = self._one - cosines
        torch.nn.functional.threshold_(distance, rounding(cosines.dtype), 0.0)
        exponent = distance.square_().mul_(self._exponents)
        return exponent.exp_() if self.update == "subtract" else exponent.expm1_().neg_()

    def suppress(self, scores: Tensor, dead: Tensor, strengths: Tensor, values: Tensor) -> Tensor:
        """Return scores (B, N) lowered by T picks, whose strengths are (B, T, N) and whose scores were `values` (B, T).

        *subtract*: S_j - sum_t max(values_t, 0) strengths_tj. *multiply*: S_j prod_t strengths_tj. -inf where `dead`.
        """
        if self.update == "subtract":
            lowered = torch.baddbmm(scores[:, None], values[:, None].relu(), strengths, alpha=-1)[:, 0]
        else:
            lowered = scores * strengths.prod(dim=1)
        return lowered.masked_fill_(dead, -torch.inf)


def restarted(scores: Tensor, dead: Tensor, original: Tensor, floor: Tensor) -> Tensor:
    """Return scores (B, N) with those of exhausted images set back to the `original` ones (B, N), -inf where `dead`.

    An image is exhausted if no score of its tokens that are left is above its `floor` (B, 1), see `floors`.
    """
    spent = scores.amax(dim=1, keepdim=True) <= floor
    return torch.where(spent, original.masked_fill(dead, -torch.inf), scores)


def floors(original: Tensor) -> Tensor:
    """Return the score (B, 1) at and below which scores count as run out, given the first scores (B, N) of B images."""
    return original.amax(dim=1, keepdim=True) * exhausted_share(original.dtype)


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (..., T, N) of the rows of (..., T, D) and (..., N, D)."""
    return a @ b.mT
