"""Control: random tokens."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import torch

from idsel_core.methods._shared.base import Method, take_best
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class Random(Method):
    """Keep random tokens, all with the same probability.

    The draw depends on `seed` and the pixels of the image only. So an image keeps the same tokens in every batch, and a
    larger budget keeps all tokens of a smaller one.

    Parameters
    ----------
    seed : int
        Seed of the draw, 0 or more.
    """

    name: ClassVar[str] = "random"
    label: ClassVar[str] = "random"

    _: KW_ONLY
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed must be an int, 0 or more, not {self.seed!r}")

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        scores = torch.zeros(tokens.mask.shape)
        for row, (key, length) in enumerate(zip(tokens.image_key.tolist(), tokens.lengths.tolist(), strict=True)):
            draw = np.random.default_rng([self.seed, key % 2**64]).random(length, dtype=np.float32)
            scores[row, tokens.mask[row].cpu()] = torch.from_numpy(draw)
        return take_best(scores.to(tokens.mask.device), tokens, self.budget)
