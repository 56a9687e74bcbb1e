"""Gemma 3: images of one size, pooled patches, and bidirectional attention between the tokens of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.pooled_patches import PooledPatches


class Gemma3(PooledPatches):
    """``Gemma3ForConditionalGeneration``.

    A crop that the processor adds to an image (pan and scan) is an image of its own. A token is the projection of the
    mean of some patches, and `Encoded.encoder_features` are this mean. In the language model the tokens of an image
    attend to each other in both directions if ``token_type_ids`` mark them; kept tokens still do.
    ``instruction_attention`` is that of calls with ``token_type_ids``.

    Most layers of the language model attend within a window. Tokens can keep their positions only while prompt and
    answer fit into the window, because a window counts columns, of which there are then fewer than positions.
    """

    joined_kinds = ("image",)
    no_resize_reason = "this model takes one image size only"
    beside_images = (
        "Hereistheoriginalimage",
        "andherearesomecropstohelpyouseebetter",
    )

    @property
    def projector(self) -> Any:
        """The norm of the projector, which reads one row for each visual token."""
        return self.core.multi_modal_projector.mm_soft_emb_norm

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D)."""
        weight = self.core.multi_modal_projector.mm_input_projection_weight
        projected: Tensor = self.projector(encoder_features.to(weight)) @ weight
        return projected

    def members(self) -> Tensor:
        """Return the patches of an image that each token is made of, int64 (N, patches)."""
        size = self.core.multi_modal_projector.kernel_size
        numbers = torch.arange(self.side**2).view(self.side, self.side)
        return numbers.unfold(0, size, size).unfold(1, size, size).flatten(0, 1).flatten(1)

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Mark image tokens, which attend to each other both ways."""
        return self.placeholders(input_ids).long()
