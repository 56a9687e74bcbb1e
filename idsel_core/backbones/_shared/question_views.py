"""Views of visual tokens that depend on the text that asks about their images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.prompts import Slots, of_images, of_prompts
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones.relevance.companion import Relevance
from idsel_core.scores import attention_rows, cosine_rows
from idsel_core.visual_tokens import QueryTokens, Unavailable

if TYPE_CHECKING:
    from idsel_core.backbones._shared.contract import Backbone


@dataclass(frozen=True, eq=False)
class QuestionViews:
    """I encoded images beside the B prompts that ask about them.

    Attributes
    ----------
    backbone : Backbone
        Of the model.
    encoded : Encoded
        The images.
    features : Tensor
        Their projector output, (I, N, D).
    slots : Slots
        Where their placeholders stand.
    input_ids, attention_mask : Tensor
        Full prompts, (B, L).
    position_ids : Tensor, optional
        Of the full prompts; the model's own by default.
    question : Tensor
        True at the text that asks about each image, bool (I, L).
    """

    backbone: Backbone
    encoded: Encoded
    features: Tensor
    slots: Slots
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    question: Tensor

    def instruction_attention(self) -> Callable[[int, QueryTokens], Tensor]:
        """Return the function that computes instruction attention (I, N) at a layer, of the last or of all words."""

        @functools.cache
        @torch.no_grad()
        def attend(layer: int, which: QueryTokens) -> tuple[Tensor, Tensor, float, float | None]:
            seen = self._read_layer(layer, which)
            query, key, scale = seen.tensors()
            return of_images(query, self.slots.rows), of_images(key, self.slots.rows), scale, seen.softcap

        def view(layer: int, which: QueryTokens) -> Tensor:
            self._check_that_text_follows("instruction_attention")
            query, key, scale, softcap = attend(layer, which)
            self._check_reach(layer)
            question, columns = self.question.to(query.device), self.slots.columns.to(query.device)
            row = attention_rows.instruction_row(query, key, scale, question, columns, which, softcap)  # (I, tokens)
            mask = self.encoded.mask
            return nn.functional.pad(row, (0, mask.shape[1] - row.shape[1])).to(mask.device)  # (I, N)

        return view

    def _read_layer(self, layer: int, which: QueryTokens) -> CapturedQK:
        """Run the language model on the full prompts up to a layer, and return that layer's queries and keys."""
        backbone, slots = self.backbone, self.slots
        layers: list[nn.Module] = attention_modules(backbone.language_model)
        if layer >= len(layers):
            raise ValueError(f"instruction layer {layer} does not exist; the language model has {len(layers)}")
        embeddings = backbone.core.get_input_embeddings()(self.input_ids)  # (B, L, D)
        tokens = slots.columns >= 0  # (I, N)
        places = (slots.rows[:, None].expand_as(slots.columns)[tokens], slots.columns[tokens])  # prompt, column: (T,)
        places = (places[0].to(embeddings.device), places[1].to(embeddings.device))
        embeddings = embeddings.index_put(places, self.features[self.encoded.mask].to(embeddings))
        positions = self.position_ids
        if positions is None:
            positions = backbone.encoded_positions(self.encoded, self.input_ids, self.attention_mask)
        asked = self.question if which == "mean" else attention_rows.last_token(self.question)  # (I, L)
        with capture_qk(layers[layer], of_prompts(asked, slots.rows, len(self.input_ids))) as seen:
            backbone.language_model(
                inputs_embeds=embeddings,
                attention_mask=backbone.decoder_mask(self.input_ids, embeddings, self.attention_mask, positions),
                position_ids=positions,
                use_cache=False,
                **backbone.beside_embeddings(self.encoded, self.input_ids, places),
            )
        return seen

    def _check_reach(self, layer: int) -> None:
        """Refuse a layer whose window is shorter than the way from an image's first token to the last word."""
        window = self.backbone.window(layer) if self.backbone.prompt_windows else None
        ends = (self.question * torch.arange(self.question.shape[1], device=self.question.device)).amax(1)
        reach = ends - self.slots.columns[:, 0]
        if window is not None and bool((reach >= window).any()):
            image = int((reach >= window).int().argmax())
            raise Unavailable(
                "instruction_attention",
                f"layer {layer} attends to {window} columns, and image {image} begins {int(reach[image])} before "
                f"the last word; choose a layer that attends to all",
            )

    def word_similarity(self) -> Callable[[], Tensor]:
        """Return the function that computes the cosines of visual tokens with the embeddings of words."""

        @torch.no_grad()
        def view() -> Tensor:
            ids, mask = self._words("word_similarity")
            words = self.backbone.core.get_input_embeddings()(ids)
            device = self.features.device
            return cosine_rows.word_cosines(self.features, words.to(device), mask.to(device))

        return view

    def relevance(self, space: Relevance) -> dict[str, Callable[[], Tensor]]:
        """Return the functions that compare visual tokens with the question in a shared image-text space."""

        @functools.cache
        @torch.no_grad()
        def embedded() -> tuple[Tensor, Tensor]:
            ids, mask = self._words("relevance")
            text = space.embed_text(ids * mask, mask.long())
            patches = space.project(self.backbone.patches_for_relevance(self.encoded))
            device = self.encoded.mask.device
            return patches.to(device), text.to(device)

        return {
            "relevance": lambda: cosine_rows.relevance_row(*embedded()),
            "relevance_product": lambda: cosine_rows.relevance_product(*embedded()),
        }

    def _words(self, view: str) -> tuple[Tensor, Tensor]:
        """Return token ids of the text that asks about each image, (I, T), and where they are no padding."""
        self._check_that_text_follows(view)
        width = int(self.question.sum(1).max())
        order = self.question.sort(dim=1, descending=True, stable=True).indices[:, :width]  # (I, T) columns
        return self.input_ids[self.slots.rows].gather(1, order), self.question.gather(1, order)

    def _check_that_text_follows(self, view: str) -> None:
        silent = (~self.question.any(1)).nonzero()[:, 0].tolist()
        if silent:
            raise Unavailable(view, f"no text follows image {silent[0]}")
