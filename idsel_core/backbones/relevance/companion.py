"""Relevance to the question from an image-text companion of the vision tower."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from idsel_core.backbones._shared.tensors import as_weights


@runtime_checkable
class Relevance(Protocol):
    """A shared space of image patches and text."""

    def project(self, encoder_features: Tensor) -> Tensor:
        """Map encoder features, (I, N, Dv), to the shared space, (I, N, Dp)."""

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map questions, int64 (I, T) padded at the end, to the shared space, (I, Dp)."""


class Companion:
    """A ``VisionTextDualEncoderModel`` that was tuned on the LVLM's own vision tower and vocabulary.

    Its vision tower is not run: the patches of the LVLM's tower go through ``visual_projection`` only.

    Parameters
    ----------
    dual_encoder : VisionTextDualEncoderModel
        The companion, in evaluation mode.

    Raises
    ------
    TypeError
        If it has no ``visual_projection`` or ``get_text_features``.
    """

    def __init__(self, dual_encoder: Any) -> None:
        for name in ("visual_projection", "get_text_features"):
            if not hasattr(dual_encoder, name):
                raise TypeError(f"a companion needs {name}, which {type(dual_encoder).__name__} lacks")
        self.dual_encoder = dual_encoder

    def project(self, encoder_features: Tensor) -> Tensor:
        """Map patches, (I, N, Dv), to the shared space, (I, N, Dp).

        Raises
        ------
        ValueError
            If the companion's tower has another width.
        """
        projection = self.dual_encoder.visual_projection
        if encoder_features.shape[-1] != projection.in_features:
            raise ValueError(
                f"the companion projects features of width {projection.in_features}, the vision tower gives "
                f"{encoder_features.shape[-1]}"
            )
        projected: Tensor = projection(as_weights(encoder_features, projection))
        return projected

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map questions, int64 (I, T) padded at the end, to the shared space, (I, Dp)."""
        device = self.dual_encoder.device
        output = self.dual_encoder.get_text_features(input_ids.to(device), attention_mask=attention_mask.to(device))
        embedded: Tensor = output.pooler_output
        return embedded
