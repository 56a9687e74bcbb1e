"""Sizes of models, and what follows from them: the language model, and the tower at work on one image."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prompt with one image or clip, by component; a multiply-add is 2.

    Matrix products and convolutions alone: norms, activations, softmax, biases, rotary and interpolated positions are
    left out, as they are by torch's counter.

    Attributes
    ----------
    patches : int
        Patch embedding; of sounds, the convolutions in front of the layers.
    tower : int
        All layers of the tower, also those behind the one that is read, and its pooling, as transformers runs
        them.
    projector : int
        Of all visual tokens, because a selection reads its output; with those of deepstack's planes.
    scores : int
        Importance scores.
    greedy : int
        Picking, with the similarities that it needs.
    projections, attention, mlp : int
        Language model: query, key, value and output projections; products of queries and keys and of weights and
        values; the three matrices of SwiGLU or GeGLU.
    head : int
        LM head.
    """

    patches: int = 0
    tower: int = 0
    projector: int = 0
    scores: int = 0
    greedy: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    head: int = 0

    @property
    def encode(self) -> int:
        """From pixels to the projector's output."""
        return self.patches + self.tower + self.projector

    @property
    def select(self) -> int:
        """Choosing tokens."""
        return self.scores + self.greedy

    @property
    def language_model(self) -> int:
        """Layers of the language model and its head."""
        return self.projections + self.attention + self.mlp + self.head

    @property
    def total(self) -> int:
        """All components."""
        return self.encode + self.select + self.language_model


def added(parts: Sequence[Flops]) -> Flops:
    """Return the sums of all components."""
    return Flops(*(sum(values) for values in zip(*(asdict(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Decoder:
    """A language model.

    Attributes
    ----------
    layers, hidden, intermediate, vocabulary : int
        How many layers; widths of states and of SwiGLU or GeGLU; words.
    query, key : int
        Widths of all query heads, and of all key heads, together.
    windows : tuple[int or None, ...]
        Tokens that each layer attends to, the token itself among them; None where there is no bound.
    later : {"none", "image", "prompt"}
        Which later tokens a token of the prompt attends to: none, those of its image, or all.
    every_logit : bool
        Whether the model reads all positions with its LM head, whatever is asked of it.
    """

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int
    windows: tuple[int | None, ...]
    later: Literal["none", "image", "prompt"]
    every_logit: bool

    def layer(self, tokens: int, pairs: int) -> Flops:
        """Return one layer's FLOPs for these tokens and these pairs of a query and a key."""
        return Flops(
            projections=4 * tokens * self.hidden * (self.query + self.key),
            attention=4 * pairs * self.query,
            mlp=6 * tokens * self.hidden * self.intermediate,
        )

    def pairs(self, layer: int, visual: int, text: int, attention: str) -> int:
        """Return the pairs of a query and a key that a layer multiplies in a prefill.

        Parameters
        ----------
        layer : int
            Its number.
        visual, text : int
            Tokens that it reads, those of one image and others.
        attention : {"full", "causal"}
            All pairs, or only those of which the query may see the key.
        """
        tokens = visual + text
        if attention == "full" or self.later == "prompt":
            return tokens**2
        far = max(0, tokens - (self.windows[layer] or tokens))
        ahead = visual * (visual - 1) // 2 if self.later == "image" else 0
        return tokens * (tokens + 1) // 2 - far * (far + 1) // 2 + ahead

    def held(self, layer: int, tokens: int) -> int:
        """Return how many of the tokens that a layer has read are in its cache; a window has a place for the next."""
        window = self.windows[layer]
        return tokens if window is None else min(tokens, window - 1)

    def head(self, positions: int) -> Flops:
        """Return the LM head's FLOPs."""
        return Flops(head=2 * positions * self.hidden * self.vocabulary)

    def reading(self, tokens: int, query_tokens: int) -> int:
        """Return the FLOPs of one layer's keys of tokens, and queries of those that ask."""
        return 2 * self.hidden * (tokens * self.key + query_tokens * self.query)


@dataclass(frozen=True)
class Tower:
    """A vision or audio tower at work on one image or clip, and the projector behind it.

    Attributes
    ----------
    pixels : tuple[int, ...]
        Shape of what the processor gives of the image.
    embedding : int
        FLOPs from pixels to patches.
    tokens : int
        Positions of all tiles together, those of [CLS] among them.
    visual : int
        Tokens that the language model reads.
    features : int
        Width of what enters the projector, for each of them.
    hidden, query, intermediate : int
        Widths of states, of all heads together, and of the MLP.
    matrices : int
        Of an MLP.
    pairs : tuple[int, ...]
        Pairs of a query and a key, one number a layer.
    rows : int
        Pairs that saliency reads: those of [CLS], or, without one, all of the last layer that sees whole images.
    pooling : int
        FLOPs behind the layers.
    projections : tuple[tuple[int, int, int], ...]
        Rows, and widths before and behind, of each matrix of the projector.
    beside : Mapping[str, list[list[int]]]
        What the processor gives beside the pixels.
    name : str
        What the model calls the pixels.
    """

    pixels: tuple[int, ...]
    embedding: int
    tokens: int
    visual: int
    features: int
    hidden: int
    query: int
    intermediate: int
    matrices: int
    pairs: tuple[int, ...]
    rows: int
    pooling: int
    projections: tuple[tuple[int, int, int], ...]
    beside: Mapping[str, list[list[int]]] = field(default_factory=dict)
    name: str = "pixel_values"

    def flops(self) -> Flops:
        """Return the FLOPs of encoding the image or clip."""
        layer = 2 * self.tokens * self.hidden * (4 * self.query + self.matrices * self.intermediate)
        return Flops(
            patches=self.embedding,
            tower=len(self.pairs) * layer + 4 * sum(self.pairs) * self.query + self.pooling,
            projector=sum(2 * prod(matrix) for matrix in self.projections),
        )


def check_type(what: str, found: str, known: Sequence[str]) -> None:
    """Raise ValueError unless a model type is one of those that are counted."""
    if found not in known:
        raise ValueError(f"{what} type {found!r} is not counted yet; counted are: {', '.join(known)}")


def pair(size: Any) -> tuple[int, int]:
    """Return a size as rows and columns.

    Raises
    ------
    ValueError
        If it is neither one number nor two.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"a size must be one number, or height and width, not {size!r}")
    return int(sizes[0]), int(sizes[1])


SIZE_HELP = "height and width of the image, or mel frames of the clip (default: the processor's, or the longest)"


def size_given(sizes: Sequence[int] | None) -> Size | None:
    """Return the size that a command line gives as one number or two, None if it gives none.

    Raises
    ------
    ValueError
        As of `pair`.
    """
    if not sizes:
        return None
    return sizes[0] if len(sizes) == 1 else pair(tuple(sizes))


def given_size(config: Any, size: tuple[int, int] | None, step: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return the size of an image, which must be of whole steps.

    Raises
    ------
    ValueError
        If it is not, or is None.
    """
    if size is None:
        raise ValueError(f"images of type {config.model_type!r} have no one size: give image_size")
    if min(size) < 1 or size[0] % step[0] or size[1] % step[1]:
        raise ValueError(
            f"image_size must be multiples of {step[0]} x {step[1]} pixels, as the processor gives images, not "
            f"{size[0]} x {size[1]}"
        )
    return size


def count(name: str, value: Any) -> int:
    """Return a number of tokens.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a number of tokens (int), not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return int(value)


def profile_of(visual_tokens: int | Sequence[int], layers: int, most: int | None = None) -> list[int]:
    """Return the visual tokens that each layer reads.

    Parameters
    ----------
    visual_tokens : int or sequence of int
        In all layers, or in each.
    layers : int
        Of the language model.
    most : int, optional
        Visual tokens that there are.

    Raises
    ------
    TypeError, ValueError
        If these are no numbers of tokens, too many, or not one for each layer.
    """
    if isinstance(visual_tokens, Sequence | np.ndarray):
        counts = [count(f"visual_tokens of layer {layer}", value) for layer, value in enumerate(visual_tokens)]
        if len(counts) != layers:
            raise ValueError(
                f"visual_tokens must be one number, or one for each of the {layers} layers, not {len(counts)}"
            )
    else:
        counts = [count("visual_tokens", visual_tokens)] * layers
    if most is not None and max(counts) > most:
        raise ValueError(f"visual_tokens must be at most the {most} that the vision tower gives, not {max(counts)}")
    return counts
