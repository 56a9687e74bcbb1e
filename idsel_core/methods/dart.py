"""DART: pivot tokens of large keys, and the tokens least similar to them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.checks import check_count, check_flag
from idsel_core.methods._shared.drop_plan import check_layer, resolve_layers
from idsel_core.methods._shared.in_llm import Choice, InLLM, LayerTokens, Positions
from idsel_core.methods._shared.published_counts import is_share, share_rounded_down
from idsel_core.methods._shared.ragged import argsort_by, cosines, gather_tokens, to_mask, truncate, unit_vectors
from idsel_core.selection.budget import is_above


@dataclass(frozen=True)
class DART(InLLM):
    """Drop tokens once: keep pivots, and for each pivot in turn the tokens least similar to it.

    Pivots are the tokens of the image, and of the text after it, whose keys in the layer before the drop have the
    largest L1 norm over all heads. The image's pivots are kept. Then every pivot, larger before smaller and image
    before text, takes an equal share of the remaining budget: the tokens of lowest cosine with it, between hidden
    states after the last norm of the language model. No attention is read. Kept tokens keep their positions.

    Source: DART, arXiv 2502.11494.

    Parameters
    ----------
    layer : int or float
        Drop layer, the first that reads fewer tokens, or its share of the depth; by default layer 2 of 32.
    image_pivots, text_pivots : int
        Number of pivots of each kind; fewer if there are fewer tokens.
    faithful : bool
        As the authors' code does, give each pivot the budget divided by the number of pivots, rounded down, and keep
        the image's pivots in addition: 132 tokens for a budget of 128, and 124 for 0.222 of 576 tokens, because the
        share is not rounded before it is divided. Pivots then take turns in the order of a Python set of their
        positions. The authors' budget is the number of tokens after the drop: ``budget_convention="final"``.
    """

    name: ClassVar[str] = "dart"
    label: ClassVar[str] = "DART"
    positions: ClassVar[Positions] = "keep"

    _: KW_ONLY
    layer: int | float = 2 / 32
    image_pivots: int = 4
    text_pivots: int = 4
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layer("layer", self.layer)
        check_count("image_pivots", self.image_pivots)
        check_count("text_pivots", self.text_pivots)
        check_flag("faithful", self.faithful)

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layer."""
        return resolve_layers((self.layer,), num_layers)

    def counts(self, full: Tensor, entering: Tensor, num_layers: int) -> Tensor:
        """Return the number of tokens of each image after the drop, int64 (I, 1); above the budget if `faithful`."""
        counts = super().counts(full, entering, num_layers)
        if not self.faithful:
            return counts
        pivots = self.image_pivots + self.text_pivots
        if is_share(self.budget) and self.budget_convention == "final":
            counts = share_rounded_down(self.budget, full)[:, None]
        room = (entering[:, None] - self.image_pivots).clamp_min(0)
        published = (counts.minimum(room) // pivots * pivots + self.image_pivots).minimum(entering[:, None])
        return published.where(~is_above(self.budget, full)[:, None], entering[:, None])

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep pivots and the tokens least similar to them; the scores are the L1 norms of the keys."""
        mask, place = tokens.mask, torch.arange(tokens.columns.shape[1], device=counts.device)
        size = tokens.read()[1].float().abs().sum((1, 3))  # (I, L): L1 norm of the keys over heads
        scores = size.gather(1, tokens.columns.clamp_min(0)).masked_fill(~mask, -torch.inf)
        own = counts.clamp_max(self.image_pivots)
        image = truncate(argsort_by((scores,), mask), own)  # (I, image pivots), token indices
        words = tokens.text.sum(1).clamp_max(self.text_pivots)
        text = truncate(argsort_by((size,), tokens.text), words)  # (I, text pivots), columns
        # (I, P): columns of all pivots in the prompt, -1 at the end.
        pivots = torch.cat([tokens.columns.gather(1, image.clamp_min(0)).masked_fill(image < 0, -1), text], 1)
        pivots = pivots.gather(1, argsort_by((pivots >= 0,), torch.ones_like(pivots, dtype=torch.bool)))
        if self.faithful:
            pivots = _as_a_set(pivots, tokens.real.int().argmax(1))
        x = unit_vectors(tokens.norm(tokens.states), torch.ones_like(tokens.real))
        alike = cosines(gather_tokens(x, pivots), tokens.visual(x))  # (I, P, N)
        quota = (counts - self.image_pivots).clamp_min(0) // (self.image_pivots + self.text_pivots)
        quota = counts.where(is_above(self.budget, tokens.lengths), quota)
        pool, left, order = mask & ~to_mask(image, mask.shape[1]), counts - own, [image]
        turns = (pivots >= 0).sum(1)
        for turn in range(pivots.shape[1]):
            share = quota if self.faithful else (left + turns - turn - 1) // (turns - turn).clamp_min(1)
            share = share.minimum(pool.sum(1)).minimum(left).where(turn < turns, 0)
            taken = argsort_by((-alike[:, turn],), pool).masked_fill(place >= share[:, None], -1)
            order.append(taken)
            pool, left = pool & ~to_mask(taken, mask.shape[1]), left - share
        picks = torch.cat(order, 1)
        picks = picks.gather(1, argsort_by((picks >= 0,), torch.ones_like(picks, dtype=torch.bool)))
        return Choice(truncate(picks, (picks >= 0).sum(1)), scores)


def _as_a_set(pivots: Tensor, first: Tensor) -> Tensor:
    """Order pivots (I, P), -1 at padding, as Python iterates over a set of their positions in the prompt."""
    rows = []
    for row, start in zip(pivots.tolist(), first.tolist(), strict=True):
        places = list({place - start for place in row if place >= 0})
        rows.append([place + start for place in places] + [-1] * (len(row) - len(places)))
    return pivots.new_tensor(rows)
