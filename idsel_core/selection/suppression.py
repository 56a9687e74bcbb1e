"""How picked tokens suppress the tokens that look like them, for id_select's ways to run the greedy.

Source: "ID-Selection", arXiv 2604.05601, Eq. 7-9.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Update = Literal["subtract", "multiply"]


def score_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which scores are computed on a device."""
    # In float32 equal scores stay equal after 1 - 1e-9, and the choice would fall to the tokens' places.
    return torch.float32 if device.type == "mps" else torch.float64


def rounding(dtype: torch.dtype) -> float:
    """Return the distance up to which tokens count as duplicates, in similarities of a dtype."""
    return 32 * torch.finfo(dtype).eps


def finite_exponent(gamma: float, dtype: torch.dtype) -> float:
    """Return the factor -gamma on squared distances, which infinity would make NaN of where they are 0."""
    return -min(gamma, torch.finfo(dtype).max)


@dataclass(frozen=True)
class Suppression:
    """Features of B images, and how much a token of theirs suppresses another.

    Parameters
    ----------
    x : Tensor
        float32 or float64 (B, N, D).
    inverse : Tensor
        (B, N); 1 / |x|, 0 for zero vectors.
    gamma : float
        Sharpness.
    update : {"subtract", "multiply"}
        How a pick lowers the other scores.
    """

    x: Tensor
    inverse: Tensor
    gamma: float
    update: Update

    def of(self, image: int) -> Suppression:
        """Return the same of one image (B = 1)."""
        one = slice(image, image + 1)
        return Suppression(self.x[one], self.inverse[one], self.gamma, self.update)

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
        return self.strengths(products(self.unit(picks), self.x).mul_(self.inverse[:, None]))

    def strengths_among(self, tokens: Tensor) -> Tensor:
        """Return the strengths (B, T, T) at which tokens (B, T) suppress each other."""
        unit = self.unit(tokens)
        return self.strengths(products(unit, unit))

    def strengths(self, cosines: Tensor) -> Tensor:
        """Return w = exp(-gamma d^2), or for *multiply* 1 - w, without the loss of digits near w = 1."""
        distance = 1 - cosines.to(score_dtype(cosines.device))
        distance = torch.nn.functional.threshold(distance, rounding(cosines.dtype), 0.0)
        exponent = distance.square_().mul_(finite_exponent(self.gamma, distance.dtype))
        return exponent.exp_() if self.update == "subtract" else exponent.expm1_().neg_()

    def suppress(self, scores: Tensor, dead: Tensor, strengths: Tensor, values: Tensor) -> Tensor:
        """Lower scores (B, N) by T picks of strengths (B, T, N) that had the scores `values` (B, T)."""
        if self.update == "subtract":
            lowered = torch.baddbmm(scores[:, None], values[:, None].relu(), strengths, alpha=-1)[:, 0]
        else:
            lowered = scores * strengths.prod(dim=1)
        return lowered.masked_fill_(dead, -torch.inf)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (B, T, N) of the rows of (B, T, D) and (B, N, D)."""
    one_image = len(a) == 1 < a.shape[1]
    if one_image and a.device.type == "cpu" and a.dtype == torch.float32 and _has_onednn():
        # oneDNN, which torch has for float32 matrices if asked, takes half the time of its default on some processors.
        return torch.nn.functional.linear(a[0].to_mkldnn(), b[0]).to_dense()[None]
    return a @ b.mT
