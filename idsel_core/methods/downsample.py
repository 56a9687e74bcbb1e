"""Control: a smaller image instead of fewer tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.base import Method
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Downsample(Method):
    """Resize the image so that the number of its tokens is near the budget K and never above it.

    A square image gets floor(sqrt(K)) by floor(sqrt(K)) tokens; others keep their shape as nearly as whole tokens
    allow. ``counts`` of the selection holds the resulting numbers.
    """

    name: ClassVar[str] = "downsample"
    label: ClassVar[str] = "smaller image"

    def target_grid(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the token grid of the resized image."""
        count = int(resolve_budget(self.budget, torch.tensor([rows * columns])))
        high = max(1, math.isqrt(count * rows // columns))
        return high, max(1, min(math.isqrt(count * columns // rows), count // high))

    def select(self, tokens: VisualTokens) -> Selection:
        """Keep all tokens of images that were resized.

        Raises
        ------
        ValueError
            If an image has more tokens than the budget, because it was not resized.
        """
        full = tokens.full_lengths
        counts = resolve_budget(self.budget, full)
        if bool((tokens.lengths > counts).any()):
            raise ValueError(
                f"downsample acts on the image: encode it on the grid that target_grid() gives; "
                f"got {tokens.lengths.tolist()} tokens for a budget of {counts.tolist()}"
            )
        equal_scores = tokens.mask.float().log()
        place = torch.arange(tokens.mask.shape[1], device=tokens.mask.device).expand(tokens.mask.shape)
        return Selection.from_order(place.masked_fill(~tokens.mask, -1), equal_scores, self.budget)
