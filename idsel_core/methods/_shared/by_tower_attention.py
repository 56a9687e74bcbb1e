"""Base of methods that read the attention of the vision tower."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.visual_tokens import VisualTokens

ATTENTION = ("cls", "received")


@dataclass(frozen=True)
class Attended(Method):
    """A method that reads the attention that the vision tower pays to the tokens.

    Parameters
    ----------
    attention : {"cls", "received"}
        Attention of the [CLS] token, as the authors use it, or the mean attention received, for towers without [CLS].
    """

    _: KW_ONLY
    attention: str = "cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}, not {self.attention!r}")

    def row(self, tokens: VisualTokens, depth: float | None = None) -> Tensor:
        """Return the attention to each token, float32 (B, N), -inf at padding.

        Parameters
        ----------
        tokens : VisualTokens
            B rows.
        depth : float, optional
            Share of the tower's layers, 0 to 1; by default the layer that feeds the projector.
        """
        name = f"{self.attention}_attention"
        attention: Tensor = getattr(tokens, name) if depth is None else tokens.at_depth(name, depth)
        return attention.float().masked_fill(~tokens.mask, -torch.inf)
