"""Run the greedy of several settings of ID-Selection together: they share the cosines of an image's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from idsel_core.methods import IDSelection
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.selection.scale import automatic_gamma
from idsel_core.selection.suppression import Suppression, products, score_dtype
from idsel_core.selection.torch_rounds import pick_in_rounds
from idsel_core.visual_tokens import VisualTokens

_LONGEST_TABLE = 4096
"""Most tokens of an image whose cosines are computed all at once, which are 64 MiB then."""


def alike_but_for_suppression(method: IDSelection) -> IDSelection:
    """Return what methods have in common that differ in budget, gamma and update alone."""
    return replace(method, budget=1, gamma=1.0, update="multiply")


@torch.no_grad()
def select_together(methods: Sequence[IDSelection], tokens: VisualTokens) -> list[Selection] | None:
    """Return what each method selects, all of them in one greedy over a common table of cosines.

    Rows that follow each other and have the same features, as those of several questions about one image, share the
    table as well. The picks are those of `id_select`, but for scores that differ by less than the rounding error.

    Parameters
    ----------
    methods : sequence of IDSelection
        They differ in budget, gamma and update alone.
    tokens : VisualTokens
        B images.

    Returns
    -------
    list of Selection or None
        One a method; None where this does not pay or the tokens are not fit: elsewhere than on a CPU, for one method,
        for more tokens than a table has room for, and for values that `id_select` refuses.
    """
    first = methods[0]
    features = tokens.features if first.features == "projector" else tokens.encoder_features
    if len(methods) < 2 or features.device.type != "cpu" or features.shape[1] > _LONGEST_TABLE:
        return None
    scores = first.scores(tokens).to(score_dtype(features.device))  # (B, N)
    real = scores.where(tokens.mask, 0)
    counts = [resolve_budget(method.budget, tokens.lengths) for method in methods]  # (B,) each
    if not bool(real.isfinite().all()) or bool((real < 0).any()) or not bool(tokens.mask.any(1).all()):
        return None
    orders = [torch.full((len(tokens), int(count.max())), -1) for count in counts]
    for rows in _runs_of_equal(features, tokens.mask):
        image = _Image.of(features[rows.start], tokens.mask[rows.start])
        if image is None:
            return None
        for update in ("subtract", "multiply"):
            asked = [place for place, method in enumerate(methods) if method.update == update]
            if not asked:
                continue
            gammas = torch.stack([image.gamma(methods[place]) for place in asked])
            most = max(int(counts[place][rows].max()) for place in asked)
            picks = image.pick(scores[rows], gammas, update, most, first.exhausted == "restart")  # (G, R, K)
            for place, order in zip(asked, picks, strict=True):
                own = order[:, : orders[place].shape[1]]
                behind = torch.arange(own.shape[1]) >= counts[place][rows, None]
                orders[place][rows, : own.shape[1]] = own.masked_fill(behind, -1)
    scores = scores.masked_fill(~tokens.mask, -torch.inf)
    return [Selection.from_order(order, scores, method.budget) for method, order in zip(methods, orders, strict=True)]


@dataclass(frozen=True, eq=False)
class _Image:
    """One image, and the cosines of all pairs of its tokens.

    Attributes
    ----------
    x, inverse, dead : Tensor
        (1, N, D), (1, N) and bool (1, N), as for `Suppression` and `pick_in_rounds`.
    cosines : Tensor
        (N, N).
    """

    x: Tensor
    inverse: Tensor
    dead: Tensor
    cosines: Tensor

    @classmethod
    def of(cls, features: Tensor, mask: Tensor) -> _Image | None:
        """Return an image with features (N, D) and mask (N,); None if a norm is not finite."""
        x = features.to(torch.promote_types(features.dtype, torch.float32))[None]
        norms = torch.linalg.vector_norm(x, dim=-1)
        if not bool(norms.where(mask, 0).isfinite().all()):
            return None
        inverse = norms.reciprocal().masked_fill_(norms == 0, 0)
        with full_precision(x.device):
            unit = x * inverse[..., None]
            return cls(x, inverse, ~mask[None], products(unit, x)[0].mul_(inverse))

    def gamma(self, method: IDSelection) -> Tensor:
        """Return the gamma that a method takes for this image, ()."""
        if method.gamma == "auto":
            return automatic_gamma(self.x, self.inverse, ~self.dead)[0]
        return torch.tensor(float(method.gamma), dtype=score_dtype(self.x.device))

    def pick(self, scores: Tensor, gammas: Tensor, update: str, most: int, restart: bool) -> Tensor:
        """Return `most` picks for each gamma (G,) and each row of scores (R, N), int64 (G, R, K)."""
        rows = len(gammas) * len(scores)
        dead = self.dead.expand(rows, -1)
        first = scores.repeat(len(gammas), 1).masked_fill(dead, -torch.inf)  # (G * R, N)
        suppression = _Tabled(self.x, self.inverse, gammas.repeat_interleave(len(scores)), update, cosines=self.cosines)
        picks = pick_in_rounds(suppression, first, dead, most, original=first if restart else None)
        return picks.view(len(gammas), len(scores), -1)


@dataclass(frozen=True)
class _Tabled(Suppression):
    """A suppression among the tokens of one image, B times with a gamma each, whose cosines are known."""

    cosines: Tensor

    def strengths_of(self, picks: Tensor) -> Tensor:
        """Return the strengths (B, T, N) at which tokens (B, T) suppress every token."""
        return self.strengths(self.cosines[picks])


def _runs_of_equal(features: Tensor, mask: Tensor) -> Iterator[slice]:
    """Yield the rows that follow each other and have the same features (B, N, D) and mask (B, N)."""
    start = 0
    for row in range(1, len(features) + 1):
        if row < len(features) and torch.equal(mask[row], mask[start]) and _same(features, row, start, mask[row]):
            continue
        yield slice(start, row)
        start = row


def _same(features: Tensor, row: int, other: int, mask: Tensor) -> bool:
    # What stands in padding does not matter.
    return torch.equal(features[row][mask], features[other][mask])
