"""What a model family has to say, and what all families share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from idsel_core.backbones._shared.encoded import Encoded, constant_view
from idsel_core.backbones._shared.instruction import Instruction
from idsel_core.backbones._shared.prompts import real_columns
from idsel_core.backbones._shared.question_views import QuestionViews
from idsel_core.backbones._shared.short_prompts import ShortPrompts
from idsel_core.visual_tokens import Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.methods import Method

_MISSING_VIEWS = {
    "cls_attention": "this vision tower has no [CLS] token",
    "received_attention": "no attention layer feeds the projector",
    "wide_cls_attention": "this vision tower has no [CLS] token",
    "cls_features": "this vision tower has no [CLS] token",
    "keys": "no attention layer feeds the projector",
    "image_key": "the pixels are not known",
}


class Backbone(ShortPrompts, ABC):
    """One model family: where its visual tokens come from, and how its prompts are shortened.

    The order of use is `encode` (a tower pass, once an image), `visual_tokens` (once a question), a method's
    ``select``, `shorten` (once a call of the model).

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

    text_looks_ahead: ClassVar[bool] = False
    """Whether words of a prompt attend to later words, where ``token_type_ids`` are 0."""
    no_resize_reason: ClassVar[str] = "this model family does not resize images"
    """Why images cannot be resized to another grid."""
    missing_views: ClassVar[Mapping[str, str]] = {}
    """Why this family lacks views, by view, if the reason is not the usual one."""

    def target_grid(self, method: Method, **image_inputs: Any) -> tuple[int, int] | None:
        """Return the grid of tokens that a method wants of images, None for the one that they have.

        Parameters
        ----------
        method : Method
            Of any kind.
        image_inputs
            Some of `image_inputs`.

        Raises
        ------
        Unavailable
            If the method acts on pixels, and this family's images cannot be made smaller.
        """
        if not method.acts_on_pixels:
            return None
        raise Unavailable("a smaller image", self.no_resize_reason)

    @abstractmethod
    def encode(
        self,
        pixel_values: Tensor,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the vision tower once.

        Parameters
        ----------
        pixel_values : Tensor
            Images as the family's processor gives them.
        grid : tuple[int, int], optional
            Rows and columns of tokens to get, by resizing the images; as they are by default. A method's
            ``target_grid`` tells.
        tower_depths : Iterable[float]
            Further depths of the tower, 0 to 1, at which views are wanted. A method's ``tower_depths`` tells.
        image_inputs
            Others of `image_inputs`.
        """

    @abstractmethod
    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D)."""

    def visual_tokens(
        self,
        encoded: Encoded,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        answer: Tensor | None = None,
        answered: bool = False,
    ) -> VisualTokens:
        """Join encodings with the prompts that ask of them.

        Parameters
        ----------
        encoded : Encoded
            I images, in the order in which the prompts name them.
        input_ids, attention_mask : Tensor
            Full prompts with all placeholders, (B, L).
        position_ids : Tensor, optional
            Of the full prompts; the model's own by default.
        question_mask, answer : Tensor, optional
            True at the words that ask, and at tokens of the answer, (B, L); see `Instruction`.
        answered : bool
            Whether an answer may stand behind the prompts, where `answer` does not tell.

        Returns
        -------
        VisualTokens
            I rows, one an image.

        Raises
        ------
        ValueError
            If images and placeholders do not agree.
        """
        features = self.project(encoded.encoder_features) if encoded.features is None else encoded.features
        slots = self.locate(input_ids, encoded.placeholders, encoded.video, attention_mask)
        real = real_columns(input_ids, attention_mask)
        instruction = Instruction(self, input_ids, real, slots, question_mask, answer, answered)
        asked = QuestionViews(self, encoded, features, slots, input_ids, attention_mask, position_ids, instruction)
        sources: dict[str, Callable[..., Tensor]] = {
            "encoder_features": constant_view(encoded.encoder_features),
            "projector": self.project,
            "word_similarity": asked.word_similarity(),
            **encoded.views,
        }
        reasons = {name: f"{why}, or the encoding was stored without this view" for name, why in _MISSING_VIEWS.items()}
        reasons |= {"frames": "the images are not frames of a video", "crops": "the images are not cut into crops"}
        reasons |= self.missing_views
        if torch.equal(encoded.placeholders, encoded.mask.sum(1)):
            sources["instruction_attention"] = asked.instruction_attention()
        else:
            reasons["instruction_attention"] = "the image was made smaller, so its tokens have no place in the prompt"
        if self.relevance is not None:
            sources |= asked.relevance(self.relevance)
        else:
            why = "no image-text companion was given; pass relevance=Companion(dual_encoder)"
            reasons = {"relevance": why, "relevance_product": why} | reasons
        return VisualTokens(
            features,
            encoded.mask,
            encoded.grid,
            sources,
            reasons,
            placeholders=encoded.placeholders,
            video=encoded.video,
            decoder_layers=self.decoder_layers,
            prompts=instruction,
            slots=slots,
        )

    def patches_for_relevance(self, encoded: Encoded) -> Tensor:
        """Return what a shared image-text space reads of each token, (I, N, Dv)."""
        return encoded.encoder_features

    def encoded_positions(self, encoded: Encoded, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return position ids of full prompts around these images."""
        return self.full_positions({"input_ids": input_ids, "attention_mask": attention_mask})

    def decoder_mask(
        self, input_ids: Tensor, embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor
    ) -> Any:
        """Return what the language model takes as mask of full prompts."""
        types = self.token_types(input_ids)
        if types is None:
            return attention_mask
        # Without a cache, by position, because its name differs between versions.
        return self.model.create_masks_for_generate(
            self.model.config, embeddings, attention_mask, None, position_ids, token_type_ids=types
        )

    def token_types(self, input_ids: Tensor) -> Tensor | None:
        """Return the ``token_type_ids`` of full prompts that decide which tokens attend to later ones, if any do."""
        return None

    def beside_embeddings(self, encoded: Encoded, input_ids: Tensor, places: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Return what else of the images the language model reads, whose tokens stand at rows and columns `places`."""
        return {}
