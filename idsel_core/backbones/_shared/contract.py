"""What a model family has to say, and what all families share."""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from idsel_core.backbones._shared.chat_template import ChatTemplate, processor_of, tokenizer_of
from idsel_core.backbones._shared.encoded import Encoded, constant_view
from idsel_core.backbones._shared.instruction import Instruction
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.prompts import (
    PER_TOKEN,
    Slots,
    drop_columns,
    kept_columns,
    locate_images,
    real_columns,
)
from idsel_core.backbones._shared.question_views import QuestionViews
from idsel_core.backbones.relevance.companion import Relevance
from idsel_core.visual_tokens import Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.methods import Method
    from idsel_core.selection.result import Selection

POSITIONS = ("compact", "keep")


_MISSING_VIEWS = {
    "cls_attention": "this vision tower has no [CLS] token",
    "received_attention": "no attention layer feeds the projector",
    "wide_cls_attention": "this vision tower has no [CLS] token",
    "cls_features": "this vision tower has no [CLS] token",
    "keys": "no attention layer feeds the projector",
    "image_key": "the pixels are not known",
}


class Backbone(ABC):
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

    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Arguments of the model that belong to the image and are consumed by `encode`."""
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """Those of them that hold pixels, or what stands for them."""
    features_input: ClassVar[str] = "mm_encoder_outputs"
    """Argument of the model without which this transformers is too old for the family."""
    position_axes: ClassVar[int] = 1
    """Axes of a token's position in the language model. Of several, no token can be numbered anew."""
    first_position: ClassVar[int] = 0
    """Position of the first token in a call of ``forward``; ``generate`` counts from 0."""
    text_looks_ahead: ClassVar[bool] = False
    """Whether words of a prompt attend to later words, where ``token_type_ids`` are 0."""
    joined_kinds: ClassVar[tuple[str, ...]] = ()
    """Of "image", "video" and "audio", those whose features the core takes as one tensor, not as a list."""
    prompt_windows: ClassVar[bool] = True
    """Whether layers of the language model that attend within a window do so while the prompt is read."""
    no_resize_reason: ClassVar[str] = "this model family does not resize images"
    """Why images cannot be resized to another grid."""
    missing_views: ClassVar[Mapping[str, str]] = {}
    """Why this family lacks views, by view, if the reason is not the usual one."""
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

    def joined(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the model's core in which what `shorten` gives is one tensor where the core expects one.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``forward``, with a list of features, one an image, of each kind in ``mm_encoder_outputs``.
        """
        outputs: dict[str, Any] = dict(inputs.get("mm_encoder_outputs") or {})
        for kind in self.joined_kinds:
            kept = getattr(outputs.get(kind), "pooler_output", None)
            if isinstance(kept, list):
                output: Any = BaseModelOutputWithPooling
                outputs[kind] = output(pooler_output=torch.cat(kept)[None])
        return {**inputs, "mm_encoder_outputs": outputs} if outputs else dict(inputs)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the model read what `shorten` gives, a list of features, also where its core expects one tensor."""

        def join(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, self.joined(kwargs)

        with ExitStack() as stack:
            if self.joined_kinds:
                stack.callback(self.core.register_forward_pre_hook(in_this_thread(join), with_kwargs=True).remove)
            yield

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

    def encoder_outputs(self, tokens: VisualTokens, selection: Selection) -> dict[str, Any]:
        """Wrap the kept features in the form of the model's ``mm_encoder_outputs``, new for one call."""
        output: Any = BaseModelOutputWithPooling
        kept = _kept_features(tokens, selection)
        video = [False] * len(tokens) if tokens.video is None else tokens.video.tolist()
        return {
            kind: output(
                pooler_output=[features for features, is_video in zip(kept, video, strict=True) if is_video is own]
            )
            for kind, own in (("image", False), ("video", True))
            if own in video
        }

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
        if bool((encoded.placeholders == encoded.mask.sum(1)).all()):
            sources["instruction_attention"] = asked.instruction_attention()
        else:
            reasons["instruction_attention"] = "the image was made smaller, so its tokens have no place in the prompt"
        if self.relevance is not None:
            sources |= asked.relevance(self.relevance)
        else:
            why = "no image-text companion was given; pass relevance=Companion(dual_encoder)"
            reasons |= {"relevance": why, "relevance_product": why}
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
        )

    def answer_mask(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Mark the tokens of a call of the model that are known to be of an answer, bool (B, L); None if none are.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``.
        """
        labels = inputs.get("labels")
        return None if labels is None else labels != PER_TOKEN["labels"]

    def shorten(
        self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection, positions: str | None = None
    ) -> dict[str, Any]:
        """Cut the tokens that were not selected out of a call of the model.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        tokens : VisualTokens
            Of the call's images.
        selection : Selection
            What a method chose from `tokens`.
        positions : {"compact", "keep"}, optional
            Number the remaining tokens anew, or leave gaps where tokens were. By default anew, where positions have
            one axis.

        Returns
        -------
        dict[str, Any]
            Shortened arguments with the kept features as ``mm_encoder_outputs``, good for one call.

        Raises
        ------
        ValueError
            If `positions` is unknown, or images, selection and placeholders do not agree.
        """
        positions = self.positions_of(positions)
        if len(selection) != len(tokens):
            raise ValueError(f"the selection has {len(selection)} rows for {len(tokens)} images")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if positions == "keep" and inputs.get("position_ids") is None:
            inputs["position_ids"] = self.full_positions(inputs)
        left_out = (*self.image_inputs, "question_mask")
        inputs = {name: value for name, value in inputs.items() if name not in left_out}
        keep, real = self.kept(inputs, tokens, selection)
        if positions == "compact" and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] - (real & ~keep).cumsum(1)
        pad_token_id = getattr(self.model.generation_config, "pad_token_id", None) or 0
        short = drop_columns(inputs, keep, real, pad_token_id)
        short["mm_encoder_outputs"] = self.encoder_outputs(tokens, selection)
        return short

    def kept(self, inputs: Mapping[str, Any], tokens: VisualTokens, selection: Selection) -> tuple[Tensor, Tensor]:
        """Return which columns of full prompts stay, and which are no padding, bool (B, L) each.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        tokens, selection
            As for `shorten`.
        """
        input_ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        slots, real = self.locate(input_ids, tokens.full_lengths, tokens.video, mask), real_columns(input_ids, mask)
        return kept_columns(slots, real, tokens.lengths, selection), real

    def positions_of(self, positions: str | None) -> str:
        """Return how the remaining tokens are numbered, "compact" or "keep", given what was asked for, if anything.

        Raises
        ------
        ValueError
            If the choice is unknown, or not one of this family.
        """
        if positions is None:
            return "compact" if self.position_axes == 1 else "keep"
        if positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
        if positions == "compact" and self.position_axes > 1:
            raise ValueError(
                f'positions="compact" cannot be had: positions of this model have {self.position_axes} axes, and '
                f"tokens keep theirs"
            )
        return positions

    def full_positions(self, inputs: Mapping[str, Any], generating: bool = True) -> Tensor:
        """Return position ids of the full prompts, as ``generate``, or else ``forward``, gives them.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``generate`` or ``forward``, with ``input_ids`` (B, L).
        generating : bool
            Of ``generate``.
        """
        input_ids: Tensor = inputs["input_ids"]
        if not generating:
            return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        positions: Tensor = self.model._prepare_position_ids_for_generation(input_ids, dict(inputs))
        return positions

    def next_positions(self, short: Mapping[str, Any], generating: bool) -> Tensor:
        """Return the position of a token that would follow each column of shortened prompts, int64 (1 or B, W).

        Parameters
        ----------
        short : Mapping[str, Any]
            What `shorten` returned last, with ``input_ids`` (B, W).
        generating : bool
            Whether it is a call of ``generate``. Positions are counted as there, from 0.
        """
        ids, mask, positions = (short.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        assert ids is not None
        real = real_columns(ids, mask)
        if positions is None:
            positions = real.cumsum(1) - 1 if generating else torch.arange(ids.shape[1], device=ids.device)[None]
        elif not generating:
            positions = positions - self.first_position
        positions = positions.expand(real.shape).masked_fill(~real, -1)
        ends: Tensor = positions.cummax(1).values + 1
        # Text stands where the full prompt has it, whatever was cut out before it.
        text = real[:, 1:] & ~self.placeholders(ids)[:, 1:]
        return torch.cat([positions[:, 1:].where(text, ends[:, :-1]), ends[:, -1:]], 1)

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


def _kept_features(tokens: VisualTokens, selection: Selection) -> list[Tensor]:
    kept = []
    for row, (picks, count) in enumerate(zip(selection.indices, selection.counts.tolist(), strict=True)):
        if selection.features is None:
            kept.append(tokens.features[row, picks[:count].to(tokens.features.device)])
        else:
            kept.append(selection.features[row, :count].to(tokens.features.dtype))
    return kept
