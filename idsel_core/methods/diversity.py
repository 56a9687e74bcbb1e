"""Control: diversity without importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from idsel_core.methods._shared.by_suppression import Greedy
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class DiversityOnly(Greedy):
    """Run ID-Selection on equal scores; the first pick is the first token."""

    name: ClassVar[str] = "diversity"
    label: ClassVar[str] = "diversity only"

    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        return self.pick(tokens, torch.ones(tokens.mask.shape, device=tokens.features.device))
