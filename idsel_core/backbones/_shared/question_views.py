"""Views of visual tokens that depend on the text that asks about their images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.instruction import Instruction
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import unpadded_rows
from idsel_core.backbones.relevance.companion import Relevance
from idsel_core.scores import attention_rows, cosine_rows
from idsel_core.visual_tokens import QueryTokens, Slots, Unavailable

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
    instruction : Instruction
        Who asks about the images of each prompt.
    """

    backbone: Backbone
    encoded: Encoded
    features: Tensor
    slots: Slots
    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    instruction: Instruction

    def instruction_attention(self) -> Callable[[int, QueryTokens], Tensor]:
        """Return the function that computes instruction attention (I, N) at a layer, of the words or of the end.

        Words in front of an image ask like those behind it: the score of a query is a softmax over the image's keys
        alone, without the causal mask.
        """

        @functools.cache
        @torch.no_grad()
        def attend(layer: int, which: QueryTokens) -> tuple[Tensor, Tensor, Tensor, float, float | None]:
            asking = self._query_tokens(which)
            seen = self._read_layer(layer, asking)
            query, key, scale = seen.tensors()
            return asking, query, key, scale, seen.softcap

        def view(layer: int, which: QueryTokens) -> Tensor:
            asking, query, key, scale, softcap = attend(layer, which)
            self._check_reach(layer, asking)
            rows, columns = self.slots.rows.to(query.device), self.slots.columns.to(query.device)
            asking = asking.to(query.device)[rows]  # (I, L)
            row = attention_rows.instruction_row(query, key, scale, asking, columns, softcap, rows=rows)  # (I, tokens)
            mask = self.encoded.mask
            return nn.functional.pad(row, (0, mask.shape[1] - row.shape[1])).to(mask.device)  # (I, N)

        return view

    def _query_tokens(self, which: QueryTokens) -> Tensor:
        """Return a mask of the query tokens of each prompt, bool (B, L)."""
        if which == "words":
            return self._words("instruction_attention")
        ends = self.instruction.ends
        closed = (ends & self.backbone.placeholders(self.input_ids)).any(1)[self.slots.rows].nonzero()[:, 0].tolist()
        if closed:
            raise Unavailable("instruction_attention", f"the prompt of image {closed[0]} ends in an image")
        return ends

    def _read_layer(self, layer: int, asking: Tensor) -> CapturedQK:
        """Run the language model on the full prompts up to a layer, and return that layer's queries and keys.

        Text behind the end of a prompt, such as its answer, is hidden.
        """
        backbone, slots = self.backbone, self.slots
        layers: list[nn.Module] = attention_modules(backbone.language_model)
        if layer >= len(layers):
            raise ValueError(f"instruction layer {layer} does not exist; the language model has {len(layers)}")
        embeddings = backbone.core.get_input_embeddings()(self.input_ids)  # (B, L, D)
        padded = self.encoded.padded
        filled = slots.columns >= 0 if padded else None  # (I, N)
        at = (slots.rows[:, None].expand_as(slots.columns), slots.columns)
        row, column = (unpadded_rows(each, filled).to(embeddings.device) for each in at)  # (T,) each
        tokens = unpadded_rows(self.features, self.encoded.mask if padded else None)  # (T, D)
        embeddings.index_put_((row, column), tokens.to(embeddings))
        positions = self.position_ids
        if positions is None:
            positions = backbone.encoded_positions(self.encoded, self.input_ids, self.attention_mask)
        mask, behind = self.attention_mask, self.instruction.behind
        if bool(behind.any()):
            mask = (torch.ones_like(behind) if mask is None else mask.bool()) & ~behind
            mask = mask.to(self.input_ids.dtype)
        with capture_qk(layers[layer], asking) as seen:
            backbone.language_model(
                inputs_embeds=embeddings,
                attention_mask=backbone.decoder_mask(self.input_ids, embeddings, mask, positions),
                position_ids=positions,
                use_cache=False,
                **backbone.beside_embeddings(self.encoded, self.input_ids, (row, column)),
            )
        return seen

    def _check_reach(self, layer: int, asking: Tensor) -> None:
        """Refuse a layer whose window is shorter than the way between an image and the words that ask."""
        window = self.backbone.window(layer) if self.backbone.prompt_windows else None
        if window is None:
            return
        place, asking, columns = (
            torch.arange(asking.shape[1], device=asking.device),
            asking[self.slots.rows],
            self.slots.columns,
        )
        last, first = (place * asking).amax(1), place.where(asking, asking.shape[1]).amin(1)
        reach = (last - columns[:, 0]).maximum(columns.amax(1) - first)
        if bool((reach >= window).any()):
            image = int((reach >= window).int().argmax())
            raise Unavailable(
                "instruction_attention",
                f"layer {layer} attends to {window} columns, and image {image} and the words that ask are "
                f"{int(reach[image])} apart; choose a layer that attends to all",
            )

    def word_similarity(self) -> Callable[[], Tensor]:
        """Return the function that computes the cosines of visual tokens with the embeddings of words."""

        @torch.no_grad()
        def view() -> Tensor:
            ids, mask = self._question("word_similarity")
            words = self.backbone.core.get_input_embeddings()(ids)
            device = self.features.device
            return cosine_rows.word_cosines(self.features, words.to(device), mask.to(device))

        return view

    def relevance(self, space: Relevance) -> dict[str, Callable[[], Tensor]]:
        """Return the functions that compare visual tokens with the question in a shared image-text space."""

        @functools.cache
        @torch.no_grad()
        def embedded() -> tuple[Tensor, Tensor]:
            ids, mask = self._question("relevance")
            text = space.embed_text(ids * mask, mask.long())
            patches = space.project(self.backbone.patches_for_relevance(self.encoded))
            device = self.encoded.mask.device
            return patches.to(device), text.to(device)

        return {
            "relevance": lambda: cosine_rows.relevance_row(*embedded()),
            "relevance_product": lambda: cosine_rows.relevance_product(*embedded()),
        }

    def _question(self, view: str) -> tuple[Tensor, Tensor]:
        """Return token ids of the words that ask about each image, (I, T), and where they are no padding."""
        words = self._words(view)[self.slots.rows]
        order = words.sort(dim=1, descending=True, stable=True).indices[:, : int(words.sum(1).max())]  # (I, T) columns
        return self.input_ids[self.slots.rows].gather(1, order), words.gather(1, order)

    def _words(self, view: str) -> Tensor:
        """Return a mask of the words that ask in each prompt, bool (B, L)."""
        words = self.instruction.words
        asked = words.any(1)[self.slots.rows].tolist()
        if not all(asked):
            why = f"no words ask about image {asked.index(False)}: its prompt has no text of a user"
            raise Unavailable(view, why)
        return words
