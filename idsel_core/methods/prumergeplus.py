"""PruMerge+: attended and evenly spaced tokens with their neighbours merged in, and the sum of all others."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_count, check_flag
from idsel_core.methods._shared.published_counts import is_share
from idsel_core.methods._shared.ragged import (
    argsort_by,
    cosines,
    drop_repeats,
    gather_tokens,
    move_padding_last,
    to_mask,
    truncate,
    unit_vectors,
    with_merged_features,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

LAST_LAYER = 1.0


@dataclass(frozen=True)
class PruMergePlus(Method):
    """Keep the most attended and as many evenly spaced tokens, and add to each the tokens most similar to it.

    Attention and keys are those of the last tower layer, with all heads concatenated to one. Tokens are added with
    their attention as weight, without normalisation. The last token is the weighted sum of all tokens that are not
    kept; it takes the place of the most attended of them, which ends the ``order`` of the selection. The language model
    reads the attended tokens by falling attention, then the spaced tokens, then the sum.

    Source: LLaVA-PruMerge, arXiv 2403.15388, the variant with spatial tokens. The number of tokens is the budget, not
    adaptive: half of it are attended, one is the sum, and the rest are evenly spaced among the other tokens.

    Parameters
    ----------
    neighbours : int
        Number of tokens that are added to each kept token; all others if there are fewer.
    faithful : bool
        As the authors' code does, keep as many attended tokens as the budget, as many tokens at an even step over the
        image without its last token, and the sum: twice the budget and one. A share is rounded down, and so is the
        step. A spaced token that is attended too is then read twice, the second time in the place of one of the most
        attended tokens that are not kept. It is also twice among the candidates for a merge, where it is its own
        neighbour; and as many of the first tokens, in raster order, that are not kept are left out of every merge and
        of the sum.
    """

    name: ClassVar[str] = "prumergeplus"
    label: ClassVar[str] = "PruMerge+"

    _: KW_ONLY
    neighbours: int = 32
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("neighbours", self.neighbours)
        check_flag("faithful", self.faithful)

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the method reads, other than the layer that feeds the projector."""
        return (LAST_LAYER,)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image.

        Raises
        ------
        ValueError
            If `faithful` and the authors' code would fail, or read more tokens than an image has.
        """
        mask, size = tokens.mask, tokens.mask.shape[1]
        attention = tokens.at_depth("wide_cls_attention", LAST_LAYER).float()
        scores, weights = attention.masked_fill(~mask, -torch.inf), attention.masked_fill(~mask, 0)
        ranking = argsort_by((scores,), mask)
        centres = self._as_published(ranking, tokens.lengths) if self.faithful else self._centres(ranking, mask)
        counts = (centres >= 0).sum(1) + 1
        others = mask & ~to_mask(centres, size)
        place = torch.arange(size, device=mask.device)
        candidates = place.expand(mask.shape).masked_fill(~mask, -1)
        left, itself = others, centres[..., None] == place
        if self.faithful:
            candidates = _with_repeats(centres, others)
            left = (candidates >= 0) & (place >= counts[:, None] - 1)
            itself = place == torch.arange(centres.shape[1], device=mask.device)[:, None]
        unnamed = truncate(argsort_by((others, scores), mask), others.sum(1))
        order = truncate(move_padding_last(torch.cat([drop_repeats(centres), unnamed], 1)), counts)
        keys = unit_vectors(tokens.at_depth("keys", LAST_LAYER).flatten(2), mask)
        likeness = cosines(gather_tokens(keys, centres), gather_tokens(keys, candidates))  # (B, C, N)
        likeness = likeness.masked_fill_((candidates < 0)[:, None] | itself, -torch.inf)
        near = torch.cat([_highest(likeness, min(self.neighbours, size)), left[:, None]], 1)
        states = tokens.encoder_features.float()
        sums = _weighted_sums(states, weights, near, candidates)
        merged = torch.nn.functional.pad(gather_tokens(states, centres), (0, 0, 0, 1)) + sums
        merged[torch.arange(len(mask), device=mask.device), counts - 1] = sums[:, -1]
        return with_merged_features(Selection.from_order(order, scores, self.budget), tokens, merged)

    def _centres(self, ranking: Tensor, mask: Tensor) -> Tensor:
        """Return attended, then spaced tokens, one less than the budget, (B, C)."""
        counts = resolve_budget(self.budget, mask.sum(1))
        attended, spaced = truncate(ranking, counts // 2), (counts - 1) // 2
        rest = mask & ~to_mask(attended, mask.shape[1])
        nth = torch.arange(int(spaced.max()), device=mask.device)
        # (B, spaced): the middle of each of as many equal stretches of the tokens that are not attended.
        ranks = (2 * nth + 1) * rest.sum(1, keepdim=True) // (2 * spaced.clamp_min(1))[:, None]
        places = argsort_by((rest,), mask).gather(1, ranks.clamp_max(mask.shape[1] - 1))
        return move_padding_last(torch.cat([attended, truncate(places, spaced)], 1))

    def _as_published(self, ranking: Tensor, lengths: Tensor) -> Tensor:
        """Return attended, then spaced tokens, as many of each as the budget, with repeats, (B, C)."""
        counts = resolve_budget(self.budget, lengths)
        spaced = []
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            attended, step = count, length // count
            if is_share(self.budget):
                attended, step = int(length * float(self.budget)), int(1 / float(self.budget))
            spaced.append(torch.arange(step // 2, max(length - 1, step // 2), step, device=ranking.device))
            if len(spaced[-1]) != attended or 2 * attended + 1 > length:
                raise ValueError(
                    f"PruMerge+'s code needs as many evenly spaced tokens as attended ones, and room for their sum; "
                    f"a budget of {self.budget} gives {len(spaced[-1])} and {attended} of {length} tokens"
                )
        places = torch.nn.utils.rnn.pad_sequence(spaced, batch_first=True, padding_value=-1)
        return move_padding_last(torch.cat([truncate(ranking, (places >= 0).sum(1)), places], 1))


def _highest(scores: Tensor, count: int) -> Tensor:
    """Return a mask of the `count` highest finite scores of each row (B, M, N); ties go to the lowest index."""
    least = scores.topk(count, dim=2).values[..., -1:]
    above, level = scores > least, scores == least
    spare = count - above.sum(2, keepdim=True)
    return (above | level & (level.cumsum(2) <= spare)) & (scores > -torch.inf)


def _with_repeats(centres: Tensor, others: Tensor) -> Tensor:
    """Return the authors' list of candidates (B, N): `centres` with repeats, then the other tokens in raster order.

    A repeat costs the list its first other token, so that it has as many entries as the image has tokens.
    """
    size = others.shape[1]
    again = (centres >= 0).sum(1) - to_mask(centres, size).sum(1)
    stays = others & (others.cumsum(1) > again[:, None])
    rest = truncate(argsort_by((stays,), torch.ones_like(stays)), stays.sum(1))
    listed = move_padding_last(torch.cat([centres, rest], 1))
    return torch.nn.functional.pad(listed, (0, max(0, size - listed.shape[1])), value=-1)[:, :size]


def _weighted_sums(values: Tensor, weights: Tensor, chosen: Tensor, candidates: Tensor) -> Tensor:
    """Return sums (B, M, D) of values (B, N, D) times weights (B, N) over the chosen of N candidates.

    `chosen` is bool (B, M, N); `candidates` (B, N) holds their token indices.
    """
    image, _, entry = chosen.nonzero(as_tuple=True)
    token = candidates[image, entry]
    numbers = chosen.sum(2).flatten()
    sums = torch.nn.functional.embedding_bag(
        image * chosen.shape[2] + token,
        values.flatten(0, 1),
        numbers.cumsum(0) - numbers,
        mode="sum",
        per_sample_weights=weights[image, token],
    )
    return sums.view(*chosen.shape[:2], -1)
