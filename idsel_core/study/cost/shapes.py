"""Sizes of a language model and of a tower that encodes one image, and the FLOPs that follow from them."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

Size = int | tuple[int, int] | tuple[int, int, int]
"""Mel frames of a clip, height and width of an image, or frames, height and width of a video."""


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prompt with one image or clip, by component; a multiply-add is 2.

    Only matrix products and convolutions count, as in torch's counter: norms, activations, softmax, biases, rotary and
    interpolated positions do not.

    Attributes
    ----------
    patches : int
        Patch embedding; for audio, the convolutions in front of the layers.
    tower : int
        All layers of the tower and its pooling, as transformers runs them: also those behind the one that is read.
    projector : int
        Projector on all visual tokens, because selection comes after it; with the projectors of deepstack.
    scores : int
        Importance scores.
    greedy : int
        Picking tokens, with the similarities that it needs.
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
        """FLOPs from pixels to the projector's output."""
        return self.patches + self.tower + self.projector

    @property
    def select(self) -> int:
        """FLOPs of choosing tokens."""
        return self.scores + self.greedy

    @property
    def language_model(self) -> int:
        """FLOPs of the language model's layers and head."""
        return self.projections + self.attention + self.mlp + self.head

    @property
    def total(self) -> int:
        """FLOPs of all components."""
        return self.encode + self.select + self.language_model


def add(parts: Sequence[Flops]) -> Flops:
    """Add FLOPs, component by component."""
    return Flops(*(sum(values) for values in zip(*(asdict(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Decoder:
    """The sizes of a language model.

    Attributes
    ----------
    layers, hidden, intermediate, vocabulary : int
        Number of layers; widths of hidden states and of the MLP; size of the vocabulary.
    query, key : int
        Width of all query heads together, and of all key heads together.
    windows : tuple[int or None, ...]
        Size of each layer's attention window, the token itself included; None without a window.
    later : {"none", "image", "prompt"}
        Which later tokens a token of the prompt attends to: none, those of its image, or all.
    every_logit : bool
        Whether the LM head always computes the logits of all positions.
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
        """Return one layer's FLOPs for a number of tokens and of query-key pairs."""
        return Flops(
            projections=4 * tokens * self.hidden * (self.query + self.key),
            attention=4 * pairs * self.query,
            mlp=6 * tokens * self.hidden * self.intermediate,
        )

    def pairs(self, layer: int, visual: int, text: int, attention: str) -> int:
        """Return the number of query-key pairs that a layer multiplies in a prefill.

        Parameters
        ----------
        layer : int
            Index of the layer.
        visual, text : int
            Visual tokens and other tokens that it reads.
        attention : {"full", "causal"}
            All pairs, or only those where the query may attend to the key.
        """
        tokens = visual + text
        if attention == "full" or self.later == "prompt":
            return tokens**2
        far = max(0, tokens - (self.windows[layer] or tokens))
        ahead = visual * (visual - 1) // 2 if self.later == "image" else 0
        return tokens * (tokens + 1) // 2 - far * (far + 1) // 2 + ahead

    def held(self, layer: int, tokens: int) -> int:
        """Return how many of the tokens that a layer has read stay in its cache; a window leaves room for the next."""
        window = self.windows[layer]
        return tokens if window is None else min(tokens, window - 1)

    def head(self, positions: int) -> Flops:
        """Return the LM head's FLOPs."""
        return Flops(head=2 * positions * self.hidden * self.vocabulary)

    def keys_and_queries(self, tokens: int, query_tokens: int) -> int:
        """Return the FLOPs of one layer's keys of all tokens and queries of the query tokens."""
        return 2 * self.hidden * (tokens * self.key + query_tokens * self.query)


@dataclass(frozen=True)
class Tower:
    """The sizes of a vision or audio tower on one image or clip, and of the projector behind it.

    Attributes
    ----------
    pixels : tuple[int, ...]
        Shape of the processor's output for the image.
    embedding : int
        FLOPs of the patch embedding.
    tokens : int
        Positions of all tiles together, [CLS] included.
    visual : int
        Tokens that the language model reads.
    features : int
        Width of the projector's input.
    hidden, query, intermediate : int
        Widths of hidden states, of all heads together, and of the MLP.
    matrices : int
        Matrices of an MLP.
    pairs : tuple[int, ...]
        Query-key pairs of each layer.
    rows : int
        Query-key pairs that saliency reads: those of [CLS] or, without one, all of the last global layer.
    pooling : int
        FLOPs of pooling behind the layers.
    projections : tuple[tuple[int, int, int], ...]
        Rows, input width and output width of each matrix of the projector.
    beside : Mapping[str, list[list[int]]]
        Other arguments that the processor gives with the pixels.
    name : str
        Name of the model's argument for the pixels.
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
    """Raise ValueError unless a model type is counted."""
    if found not in known:
        raise ValueError(f"{what} type {found!r} is not counted yet; counted are: {', '.join(known)}")


def pair(size: Any) -> tuple[int, int]:
    """Return a size, one number or two, as rows and columns; raises ValueError if it is neither."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) != 2:
        raise ValueError(f"a size must be one number, or height and width, not {size!r}")
    return int(sizes[0]), int(sizes[1])


SIZE_HELP = "height and width of the image, or mel frames of the clip (default: the processor's, or the longest)"


def size_given(sizes: Sequence[int] | None) -> Size | None:
    """Return the size of a command line: one number, two, or None if none was given; raises as `pair`."""
    if not sizes:
        return None
    return sizes[0] if len(sizes) == 1 else pair(tuple(sizes))


def checked_size(config: Any, size: tuple[int, int] | None, step: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return an image size; raises ValueError if it is None or no multiple of `step`."""
    if size is None:
        raise ValueError(f"images of type {config.model_type!r} have no fixed size: give image_size")
    if min(size) < 1 or size[0] % step[0] or size[1] % step[1]:
        raise ValueError(
            f"image_size must be multiples of {step[0]} x {step[1]} pixels, as the processor gives images, not "
            f"{size[0]} x {size[1]}"
        )
    return size


def count(name: str, value: Any) -> int:
    """Return a number of tokens as an int; raises TypeError or ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a number of tokens (int), not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return int(value)


def profile_of(visual_tokens: int | Sequence[int], layers: int, most: int | None = None) -> list[int]:
    """Return the visual tokens that each of the layers reads, given one number for all or one for each.

    Raises TypeError or ValueError if they are no numbers of tokens, more than `most`, or not one for each layer.
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
