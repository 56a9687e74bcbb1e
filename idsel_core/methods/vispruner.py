"""VisPruner: the most attended tokens, and of the others those without a similar one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.by_tower_attention import Attended
from idsel_core.methods._shared.checks import check_flag, check_share
from idsel_core.methods._shared.ragged import argsort_by, cosines, gather_tokens, to_mask, truncate, unit_vectors
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

REMOVED_AT_ONCE = 8


@dataclass(frozen=True)
class VisPruner(Attended):
    """Keep the most attended tokens, and remove similar tokens from the others.

    The others form a list by falling attention. Each round compares the tokens at even places of the list with those at
    odd places and removes up to 8 even tokens that are most similar to an odd one. The remaining even tokens, by
    falling similarity, are then listed before the odd ones.

    The picks depend on the last digits of the features: similarities that differ by rounding order the list, and the
    order decides which tokens are compared for the rest of the run. Relative noise of 1e-6 on features and attention
    changes the kept tokens of 111 of 200 random images (of FasterVLM: none). So accuracies differ between processors,
    by up to several points of a question type at a few hundred questions. Rounding the similarities first, to 0.01,
    removes most of this but gives other tokens than the method.

    Source: VisPruner, arXiv 2412.01818.

    Parameters
    ----------
    important : float
        Share of the budget for the most attended tokens.
    faithful : bool
        Refuse lists of an odd number of tokens, on which the authors' code fails.
    """

    name: ClassVar[str] = "vispruner"
    label: ClassVar[str] = "VisPruner"

    _: KW_ONLY
    important: float = 0.5
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("important", self.important)
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            If `faithful` and the list of an image has an odd number of tokens.
        """
        scores, counts = self.row(tokens), resolve_budget(self.budget, tokens.lengths)
        ranking = argsort_by((scores,), tokens.mask)
        first = (counts.double() * self.important).floor().long()
        sizes = tokens.lengths - first
        if self.faithful and bool((sizes % 2).any()):
            raise ValueError(
                f"VisPruner's code pairs the tokens that are not kept for their attention, so their number must be "
                f"even; got {sizes.tolist()}"
            )
        x = gather_tokens(unit_vectors(tokens.encoder_features, tokens.mask), ranking)  # (B, N, Dv), by attention
        ranks = torch.arange(ranking.shape[1], device=ranking.device)
        rest = truncate(ranks + first[:, None], sizes)
        keep = (ranks < first[:, None]) | to_mask(_thinned(cosines(x, x), rest, sizes, counts - first), len(ranks))
        return Selection.from_order(
            truncate(ranking.gather(1, argsort_by((keep,), tokens.mask)), counts), scores, self.budget
        )


def _thinned(similarity: Tensor, listed: Tensor, sizes: Tensor, goals: Tensor) -> Tensor:
    """Remove tokens from lists (B, M) of `sizes` (B,) tokens until `goals` (B,) are left, giving (B, max goal)."""
    rows = torch.arange(len(listed), device=listed.device)[:, None, None]
    left, wanted = sizes.tolist(), goals.tolist()
    while left != wanted:
        # Counted on the host and on the device, so that the host does not wait for the device.
        left = [n - min(REMOVED_AT_ONCE, n - goal, (n + 1) // 2) for n, goal in zip(left, wanted, strict=True)]
        gone = torch.minimum(sizes - goals, (sizes + 1) // 2).clamp_max(REMOVED_AT_ONCE)
        sizes = sizes - gone
        even, odd = listed[:, ::2], listed[:, 1::2]  # (B, E), (B, O)
        alike = similarity[rows, even[:, :, None], odd[:, None, :]].masked_fill((odd < 0)[:, None, :], -torch.inf)
        # (B, E): similarity to the most similar odd token; padded, because a list of one token has no odd place.
        nearest = torch.nn.functional.pad(alike, (0, 1), value=-torch.inf).amax(2)
        falling = even.gather(1, argsort_by((nearest,), even >= 0))
        rank = torch.arange(even.shape[1], device=listed.device)
        listed = torch.cat([falling.masked_fill(rank < gone[:, None], -1), odd], 1)
        stays = argsort_by((listed >= 0,), torch.ones_like(listed, dtype=torch.bool))
        listed = listed.gather(1, stays)[:, : max(left)]
    return listed
