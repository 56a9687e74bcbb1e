"""The one way from images and prompts to a shorter call of a model: encode, read, select, shorten, run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from idsel_core.backbones import Backbone, Encoded
from idsel_core.backbones.in_llm.hooks import dropping
from idsel_core.backbones.in_llm.passage import Passage
from idsel_core.methods import Method
from idsel_core.pruning.budget_scope import Scope, select_by_tile
from idsel_core.pruning.small_images import select_from_larger
from idsel_core.selection import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True, eq=False)
class ShortCall:
    """A call of a model whose prompts hold the selected visual tokens alone.

    Attributes
    ----------
    backbone : Backbone
        Of the model.
    method : Method
        What selected.
    tokens : VisualTokens
        Of the call's images, one row an image.
    selection : Selection
        The tokens that enter the language model.
    inputs : dict[str, Any]
        Shortened arguments of ``generate`` or ``forward``, good for one call.
    """

    backbone: Backbone
    method: Method
    tokens: VisualTokens
    selection: Selection
    inputs: dict[str, Any]

    @contextmanager
    def running(self) -> Iterator[Passage]:
        """Let the model read `inputs` in the block, and drop tokens between its layers if the method does.

        Yields
        ------
        Passage
            What each layer reads; complete once the prompt was read.
        """
        with (
            self.backbone.reading(),
            dropping(self.backbone, self.method, self.tokens, self.selection, self.inputs) as passage,
        ):
            yield passage


def encode_images(backbone: Backbone, method: Method, inputs: Mapping[str, Any]) -> Encoded:
    """Run the vision tower once, as a method needs it.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    method : Method
        What will select; it may want smaller images, or other layers of the tower.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward`` with the images.

    Raises
    ------
    Unavailable
        If the method acts on pixels, and this family's images cannot be made smaller.
    """
    images = backbone.image_arguments(inputs)
    grid = backbone.target_grid(method, **images)
    return backbone.encode(grid=grid, tower_depths=method.tower_depths, **images)


def read_tokens(
    backbone: Backbone, encoded: Encoded, inputs: Mapping[str, Any], answered: bool = False
) -> VisualTokens:
    """Join encoded images with the prompts that ask about them; raises as `Backbone.visual_tokens`.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    encoded : Encoded
        The images.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward`` with the prompts, and ``question_mask`` if the caller marks the words
        that ask.
    answered : bool
        Whether an answer may stand behind the prompts, as in ``forward``.
    """
    return backbone.visual_tokens(
        encoded,
        inputs["input_ids"],
        inputs.get("attention_mask"),
        inputs.get("position_ids"),
        inputs.get("question_mask"),
        backbone.answer_mask(inputs),
        answered,
    )


def shorten_call(
    backbone: Backbone,
    method: Method,
    tokens: VisualTokens,
    selection: Selection,
    inputs: Mapping[str, Any],
    positions: str | None = None,
) -> ShortCall:
    """Cut the tokens that were not selected out of a call; arguments and errors as of `Backbone.shorten`."""
    return ShortCall(backbone, method, tokens, selection, backbone.shorten(inputs, tokens, selection, positions))


def select_tokens(method: Method, tokens: VisualTokens, budget_scope: Scope = "image") -> Selection:
    """Let a method select from each image, or from each tile of an image by itself."""
    return (select_by_tile if budget_scope == "tile" else select_from_larger)(method, tokens)
