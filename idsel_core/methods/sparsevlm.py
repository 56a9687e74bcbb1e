"""SparseVLM: attention of the words that match the image, and merging of dropped tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.checks import check_flag, check_share
from idsel_core.methods._shared.density import peak_scores
from idsel_core.methods._shared.drop_plan import check_layers, resolve_layers
from idsel_core.methods._shared.in_llm import Choice, InLLM, LayerTokens, Positions
from idsel_core.methods._shared.ragged import argsort_by, cosines, gather_tokens, sort_indices, to_mask, truncate
from idsel_core.selection.budget import is_above, resolve_budget

AUTHORS_COUNTS: Mapping[int, tuple[int, ...]] = {
    192: (300, 200, 110),
    128: (303, 110, 36),
    96: (238, 48, 26),
    64: (66, 30, 17),
}
"""Tokens of 576 that the authors keep after each drop, without merged ones, by their name of the setting."""

PER_CLUSTER = 10
"""Number of recycled tokens for each merged token beyond the first."""


@dataclass(frozen=True)
class SparseVLM(InLLM):
    """Drop tokens in stages by the attention of the words that match the image, and merge the best dropped tokens.

    The query tokens are chosen once: each visual token distributes a softmax over the user's words after the image, by
    inner products of input embeddings, and the words that receive more than the mean are the query tokens. The authors
    take all text after the image for its words, the chat template's too. Of the tokens that
    a stage drops, the share `recycle` of highest attention, and one more, is clustered by density peaks. The mean of
    each cluster, one for every ten tokens and one more, follows the kept tokens. Every stage multiplies the number of
    tokens, merged ones included, by the same factor, which follows from the budget. Positions are numbered anew at each
    stage. The authors' clustering breaks ties at random; here ties go to the first token.

    Source: SparseVLM, arXiv 2410.04417, version 1.

    Parameters
    ----------
    layers : tuple of int or float
        Layers after which tokens are dropped, from 0, or their shares of the depth; by default 2, 6 and 15 of 32.
    recycle : float
        Share of the dropped tokens that is clustered and merged; 0 merges none.
    faithful : bool
        Keep the authors' numbers of tokens after each of three drops, which they give for budgets of 192, 128, 96 and
        64 of 576 tokens, under either convention. The mean over layers is then 206.5, 145.4, 114.1 and 82.3.
    """

    name: ClassVar[str] = "sparsevlm"
    label: ClassVar[str] = "SparseVLM"
    positions: ClassVar[Positions] = "compact"
    reads_words: ClassVar[bool] = True

    _: KW_ONLY
    layers: tuple[int | float, ...] = (2 / 32, 6 / 32, 15 / 32)
    recycle: float = 0.3
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_layers("layers", self.layers)
        check_share("recycle", self.recycle)
        check_flag("faithful", self.faithful)

    def drop_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the drop layers."""
        return resolve_layers(self.layers, num_layers, after=True)

    def recycled(self, dropped: int) -> int:
        """Return how many of `dropped` tokens are clustered."""
        return min(math.floor(self.recycle * dropped) + 1, dropped) if self.recycle else 0

    def clusters(self, dropped: int) -> int:
        """Return how many merged tokens replace `dropped` tokens."""
        recycled = self.recycled(dropped)
        return recycled // PER_CLUSTER + 1 if recycled else 0

    def least(self, count: int) -> int:
        """Return the fewest tokens that a drop can leave of `count`: one kept token and the merged ones."""
        return min(1 + self.clusters(count - 1), count)

    def counts(self, full: Tensor, entering: Tensor, depth: int) -> Tensor:
        """Return the number of tokens of each image after each drop, int64 (I, drops).

        Raises
        ------
        ValueError
            If the budget cannot be reached, or `faithful` and the authors give no numbers for it.
        """
        if not self.faithful:
            return super().counts(full, entering, depth)
        budgets, drops = resolve_budget(self.budget, full), len(self.drop_layers(depth))
        whole = is_above(self.budget, full)
        given = torch.stack([budgets, full, entering], 1)[~whole].tolist()
        if given and (drops != 3 or any(b not in AUTHORS_COUNTS or n != 576 or k != 576 for b, n, k in given)):
            raise ValueError(
                f"SparseVLM's authors drop tokens three times and give numbers for "
                f"{', '.join(map(str, AUTHORS_COUNTS))} of 576 tokens; got {drops} drops and {budgets.tolist()} of "
                f"{entering.tolist()}"
            )
        counts = entering[:, None].repeat(1, drops)
        for row in (~whole).nonzero()[:, 0].tolist():
            left = [576]
            for kept in AUTHORS_COUNTS[int(budgets[row])]:
                left.append(kept + self.clusters(left[-1] - kept))
            counts[row] = counts.new_tensor(left[1:])
        return counts

    def query_tokens(self, prompt: LayerTokens) -> Tensor:
        """Return a mask of the words that match the image, bool (I, L).

        Raises
        ------
        ValueError
            If no word of the question follows an image: words in front of it do not attend to it.
        """
        asking = prompt.text if prompt.words is None else prompt.text & prompt.words
        words = asking.sum(1)
        if bool((words == 0).any()):
            raise ValueError(
                f"sparsevlm needs the question after the image, but no word of it follows image {int(words.argmin())}"
            )
        places = truncate(argsort_by((asking,), torch.ones_like(asking)), words)  # (I, T), columns
        present = places >= 0
        products = cosines(prompt.visual(prompt.states).float(), gather_tokens(prompt.states, places).float())
        spread = products.masked_fill(~present[:, None], -torch.inf).softmax(-1)
        # (I, T): mean over visual tokens of the softmax over words, (I, N, T).
        share = spread.masked_fill(~prompt.mask[..., None], 0).sum(1) / prompt.lengths[:, None]
        rating = present & (share > 1 / words[:, None])
        rating = torch.where(rating.any(1, keepdim=True), rating, present)
        return to_mask(places.masked_fill(~rating, -1), prompt.text.shape[1])

    def choose(self, tokens: LayerTokens, counts: Tensor) -> Choice:
        """Keep the most attended tokens, and merge some of the others."""
        mask = tokens.mask
        scores = tokens.attention.masked_fill(~mask, -torch.inf)
        pairs = list(zip(tokens.lengths.tolist(), counts.tolist(), strict=True))
        kept = counts.new_tensor([self.kept(length, count) for length, count in pairs])
        ranking = argsort_by((scores,), mask)
        merged_counts = counts - kept
        if not bool(merged_counts.any()):
            return Choice(truncate(ranking, kept), scores)
        recycled = counts.new_tensor([self.recycled(n) for n in (tokens.lengths - kept).tolist()])
        rank = torch.arange(mask.shape[1], device=mask.device)
        again = (rank >= kept[:, None]) & (rank < (kept + recycled)[:, None])
        again = truncate(sort_indices(ranking.masked_fill(~again, -1), mask.shape[1]), recycled)
        merged = density_peaks(gather_tokens(tokens.visual(tokens.states), again), again >= 0, merged_counts)
        return Choice(truncate(ranking, kept), scores, merged, merged_counts)

    def kept(self, length: int, count: int) -> int:
        """Return how many tokens are kept, without merged ones, if a drop leaves `count` of `length` tokens."""
        if count >= length:
            return length
        return next(kept for kept in range(count, -1, -1) if kept + self.clusters(length - kept) <= count)


def density_peaks(states: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
    """Cluster tokens by density peaks, and return the mean of each cluster, (I, max count, D).

    The density of a token is exp(-m), where m is the mean squared distance to its `counts` nearest tokens, itself
    included. Centres are the tokens of largest density times distance to the nearest denser token. Every token belongs
    to the cluster of the nearest centre. Clusters come in the order of their centres, best first.

    Parameters
    ----------
    states : Tensor
        (I, T, D), any float dtype.
    mask : Tensor
        bool (I, T); True at tokens.
    counts : Tensor
        Number of clusters of each image, int64 (I,), at most its number of tokens.
    """
    x = states.float().masked_fill(~mask[..., None], 0)
    scores, distance = peak_scores(x, mask, counts)
    centres = truncate(argsort_by((scores,), mask), counts)
    # (I, T): cluster of each token, from distances (I, C, T) to the centres; a centre belongs to its own cluster.
    owner = gather_tokens(distance, centres).masked_fill((centres < 0)[..., None], torch.inf).argmin(1)
    image, cluster = (centres >= 0).nonzero(as_tuple=True)
    owner[image, centres[image, cluster]] = cluster
    # (I, T, C)
    member = torch.nn.functional.one_hot(owner, centres.shape[1]).masked_fill(~mask[..., None], 0).to(x)
    sums = cosines(member.mT, x.mT)  # (I, C, D)
    return (sums / member.sum(1)[..., None].clamp_min(1)).to(states.dtype)
