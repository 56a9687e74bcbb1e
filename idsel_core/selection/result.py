"""The tokens that a method keeps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens that a method keeps of each image of a batch.

    Attributes
    ----------
    indices : Tensor
        Long (B, K); kept tokens in raster (ascending) order, -1 after the last token of a shorter row.
    order : Tensor
        Long (B, K); the same tokens in the order of the picks, padded in the same way.
    scores : Tensor
        float32 (B, N); the scores before the first pick, -inf at padding.
    counts : Tensor
        Long (B,); number of tokens kept of each row.
    requested : int or float
        The budget as it was given: a number of tokens, or a share of each row.
    features : Tensor or None
        (B, K, D); new features of the kept tokens, aligned with `indices`, if the method merges tokens.
    trace : Tensor or None
        float32 (B, K, N); the scores before each pick, -inf at padding and at tokens picked before.
    """

    indices: Tensor
    order: Tensor
    scores: Tensor
    counts: Tensor
    requested: int | float
    features: Tensor | None = None
    trace: Tensor | None = None

    @classmethod
    def from_order(
        cls, order: Tensor, scores: Tensor, requested: int | float, trace: Tensor | None = None
    ) -> Selection:
        """Build the selection from the picks in their order.

        Parameters
        ----------
        order : Tensor
            Long (B, K); picks of each row, -1 after the last pick of a shorter row.
        scores, requested, trace
            See the attributes of the same name.
        """
        behind_all = scores.shape[1]
        indices = order.masked_fill(order < 0, behind_all).sort(dim=1).values
        indices = indices.masked_fill(indices == behind_all, -1)
        return cls(indices, order, scores.float(), (order >= 0).sum(dim=1), requested, trace=trace)

    @classmethod
    def join(cls, parts: Sequence[tuple[Tensor, Selection]], requested: int | float) -> Selection:
        """Join the selections of the parts of a batch.

        Parameters
        ----------
        parts : sequence of tuple[Tensor, Selection]
            The rows of the batch that a part is, int64 (R,), and what was selected of them. Each row is in one part.
        requested
            See the attribute of the same name.

        Raises
        ------
        ValueError
            If some parts have merged features and others have none.
        """
        first, total = parts[0][1], sum(len(rows) for rows, _ in parts)
        widest = max(int(part.counts.max()) for _, part in parts)
        order = first.order.new_full((total, widest), -1)
        scores = first.scores.new_full((total, first.scores.shape[1]), -torch.inf)
        for rows, part in parts:
            order[rows, : part.order.shape[1]] = part.order[:, :widest]
            scores[rows] = part.scores
        joined = cls.from_order(order, scores, requested)
        merged = [(rows, part.features) for rows, part in parts if part.features is not None]
        if not merged:
            return joined
        if len(merged) < len(parts):
            raise ValueError(f"all parts must have features, or none; {len(merged)} of {len(parts)} have")
        dtype = functools.reduce(torch.promote_types, [features.dtype for _, features in merged])
        features = merged[0][1].new_zeros((total, widest, merged[0][1].shape[2]), dtype=dtype)
        for rows, values in merged:
            features[rows, : values.shape[1]] = values[:, :widest].to(dtype)
        return replace(joined, features=features)

    def __len__(self) -> int:
        """Return the number of rows (images)."""
        return self.indices.shape[0]

    def keep_mask(self, n: int) -> Tensor:
        """Return a bool mask (B, n) of the kept tokens, for rows of n tokens.

        Raises
        ------
        ValueError
            If a kept index is n or more.
        """
        if n <= (last := int(self.indices.max())):
            raise ValueError(f"n must be above the highest kept index {last}, not {n}")
        mask = self.indices.new_zeros((len(self), n + 1), dtype=torch.bool)
        return mask.scatter(1, self.indices.where(self.indices >= 0, n), True)[:, :n]

    def rows(self) -> list[Tensor]:
        """Return the kept indices of each row in raster order, without padding."""
        return [row[:count] for row, count in zip(self.indices, self.counts.tolist(), strict=True)]
