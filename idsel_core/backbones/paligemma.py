"""PaliGemma: a plain ViT tower, and a prompt whose tokens all attend to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones.llava import Llava


class PaliGemma(Llava):
    """``PaliGemmaForConditionalGeneration``, PaliGemma and PaliGemma 2.

    In the language model images and prompt attend to each other, earlier and later tokens, where ``token_type_ids``
    are 0; those that are kept go on to. ``instruction_attention`` is that of prompts without a suffix.
    """

    image_inputs = ("pixel_values",)
    joined_kinds = ("image",)
    prompt_windows = False

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model.

        Raises
        ------
        ValueError
            If the call has no ``token_type_ids``: then padding would decide whether tokens attend to later ones.
        """
        if inputs.get("token_type_ids") is None:
            raise ValueError("PaliGemma needs token_type_ids, as its processor gives them: 0 at images and prompt")
        return super().image_arguments(inputs)

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return position ids of the full prompts, as ``generate``, or else ``forward``, gives them.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Of ``generate``, which moves them on by the one that ``forward`` begins with.
        """
        return super().full_positions(inputs, generating) + (not generating)

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Return zeros: all tokens of a prompt attend to each other."""
        return torch.zeros_like(input_ids)
