"""What a model family is: its model, its processor, and where the tokens of its images stand in a prompt."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from idsel_core.backbones._shared.chat_template import ChatTemplate
from idsel_core.backbones._shared.known_processors import processor_of, tokenizer_of
from idsel_core.backbones._shared.prompts import locate_images
from idsel_core.backbones.relevance.companion import Relevance
from idsel_core.visual_tokens import Slots


class Family:
    """One model family, its prompts and its placeholders.

    Parameters
    ----------
    model : PreTrainedModel
        With ``generate``, of this family.
    relevance : Relevance, optional
        Shared image-text space for the view ``relevance``.
    processor : ProcessorMixin or PreTrainedTokenizerBase, optional
        Processor or tokenizer of the prompts, whose chat template tells what the user says in them. By default the one
        that `load` gave, or that lies with the weights.

    Raises
    ------
    TypeError
        If `relevance` lacks ``project`` or ``embed_text``, or `processor` has no tokenizer.
    """

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Arguments of the model that belong to the image and are consumed by `encode`."""
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Those of them that hold pixels, or what stands for them."""
    features_input: ClassVar[str] = "mm_encoder_outputs"
    """Argument of the model without which this transformers is too old for the family."""
    encoder_decoder: ClassVar[bool] = False
    """Whether a decoder reads the tokens by cross-attention, so that they have no place in a prompt."""
    prompt_windows: ClassVar[bool] = True
    """Whether layers of the language model that attend within a window do so while the prompt is read."""
    has_chat_template: ClassVar[bool] = True
    """Whether prompts follow a chat template; all text in front of the answer is the question where they do not."""
    beside_images: ClassVar[tuple[str, ...]] = ()
    """Regular expressions of what the processor writes in front of an image, but for special tokens, without blanks."""

    def __init__(self, model: Any, relevance: Relevance | None = None, processor: Any = None) -> None:
        if relevance is not None and not isinstance(relevance, Relevance):
            raise TypeError(f"relevance must have project() and embed_text(), which {type(relevance).__name__} lacks")
        if processor is not None and not hasattr(tokenizer_of(processor), "all_special_ids"):
            raise TypeError(f"processor must be a processor or tokenizer, which {type(processor).__name__} is not")
        self.model = model
        self.relevance = relevance
        self._processor = processor
        self._warned: set[str] = set()

    @functools.cached_property
    def processor(self) -> Any:
        """Processor or tokenizer of the prompts; None where it is not known."""
        return processor_of(self.model) if self._processor is None else self._processor

    @functools.cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Chat template of the prompts; None where it is not known, or where prompts follow none."""
        if not self.has_chat_template or self.processor is None:
            return None
        return ChatTemplate.of(self.processor, self.beside_images)

    def warn_of_question(self, consequence: str) -> None:
        """Warn, once, of what follows from not knowing which words of a prompt are the question."""
        if consequence in self._warned:
            return
        self._warned.add(consequence)
        if self.processor is None:
            why = "the chat template of this model is not known"
        elif self.chat_template is None:
            why = f"{type(self.processor).__name__} has no chat template that marks what a user says"
        else:
            why = "a prompt does not follow the chat template of its processor"
        warnings.warn(
            f"{why}, so {consequence}: give prune(..., processor=processor), or mark the words that ask by "
            f"question_mask=mask, of the shape of input_ids, beside them",
            stacklevel=3,
        )

    @property
    def core(self) -> Any:
        """The model without its language-model head."""
        return self.model.base_model

    @property
    def language_model(self) -> Any:
        """The decoder that reads the embeddings."""
        return self.core.language_model

    @property
    def decoder_layers(self) -> int:
        """Layers of the language model."""
        return int(self.language_model.config.num_hidden_layers)

    def window(self, layer: int) -> int | None:
        """Return how many columns a layer of the language model attends to, itself and those before; None: all."""
        config = self.language_model.config
        kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
        return None if window is None or (kinds and kinds[layer] != "sliding_attention") else int(window)

    @property
    def image_token_id(self) -> int:
        """Token id of the image placeholder."""
        return int(self.model.config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """Token id of the video placeholder, None where the family reads no videos."""
        return None

    def placeholders(self, input_ids: Tensor) -> Tensor:
        """Mark the placeholders of images and videos, bool (B, L)."""
        marks = input_ids == self.image_token_id
        return marks if self.video_token_id is None else marks | (input_ids == self.video_token_id)

    def locate(
        self, input_ids: Tensor, placeholders: Tensor, video: Tensor | None, attention_mask: Tensor | None = None
    ) -> Slots:
        """Find the placeholders of each image and video; each kind fills its own in reading order.

        Parameters
        ----------
        input_ids : Tensor
            Prompts, int64 (B, L).
        placeholders : Tensor
            Placeholders that each image fills, int64 (I,).
        video : Tensor, optional
            True at rows that are videos, bool (I,).
        attention_mask : Tensor, optional
            1 at tokens, 0 at padding, (B, L).

        Raises
        ------
        ValueError
            As of `locate_images`.
        """
        if video is None or self.video_token_id is None:
            return locate_images(input_ids, self.image_token_id, placeholders, attention_mask)
        placeholders, video = placeholders.to(input_ids.device), video.to(input_ids.device)
        rows = torch.zeros_like(placeholders)
        columns = placeholders.new_full((len(placeholders), int(placeholders.max())), -1)
        for token_id, which in ((self.image_token_id, ~video), (self.video_token_id, video)):
            if bool(which.any()):
                slots = locate_images(input_ids, token_id, placeholders[which], attention_mask)
                rows[which] = slots.rows
                columns[which, : slots.columns.shape[1]] = slots.columns
        return Slots(rows, columns)

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``.
        """
        return {name: inputs[name] for name in self.image_inputs if inputs.get(name) is not None}
