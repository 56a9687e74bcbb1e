"""PaliGemma: a plain ViT tower, and bidirectional attention within the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones.llava import Llava


class PaliGemma(Llava):
    """``PaliGemmaForConditionalGeneration``, PaliGemma and PaliGemma 2.

    In the language model the tokens of images and prompt attend to each other in both directions where
    ``token_type_ids`` are 0; kept tokens still do. There is no chat template: all text of a prompt in front of the
    suffix asks about its images, and no warning says so.
    """

    image_inputs = ("pixel_values",)
    joined_kinds = ("image",)
    first_position = 1
    text_looks_ahead = True
    prompt_windows = False
    has_chat_template = False

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model.

        Raises
        ------
        ValueError
            If the call has no ``token_type_ids``, because attention to later tokens would then depend on padding, or
            the suffix, where they are 1, holds an image, because nothing would be left in front of it to ask.
        """
        types = inputs.get("token_type_ids")
        if types is None:
            raise ValueError("PaliGemma needs token_type_ids, as its processor gives them: 0 at images and prompt")
        if bool(((types == 1) & self.placeholders(inputs["input_ids"])).any()):
            raise ValueError("token_type_ids must be 0 at images and prompt, as the processor of PaliGemma gives them")
        return super().image_arguments(inputs)

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return the position ids that ``generate``, or ``forward``, gives to the full prompts.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Whether they are those of ``generate``; those of ``forward`` are larger by 1.
        """
        return super().full_positions(inputs, generating) + (not generating) * self.first_position

    def answer_mask(self, inputs: Mapping[str, Any]) -> Tensor:
        """Mark the suffix, whose ``token_type_ids`` are 1, bool (B, L); labels on the prefix change nothing.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``.
        """
        suffix: Tensor = inputs["token_type_ids"] == 1
        return suffix

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Return zeros: all tokens of a prompt attend to each other."""
        return torch.zeros_like(input_ids)
