"""The visual tokens of a batch, with everything that a selection method may read of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

QueryTokens = Literal["words", "last"]
"""Query tokens of the instruction attention: the instruction's words, or the last token before the answer."""
INSTRUCTION: tuple[int, QueryTokens] = (0, "words")
"""Layer and query tokens of the instruction attention by default."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Placeholders of each image in a batch of prompts.

    Parameters
    ----------
    rows : Tensor
        Row of each image's prompt, int64 (I,).
    columns : Tensor
        Columns of each image's placeholders, int64 (I, P), -1 at padding.
    """

    rows: Tensor
    columns: Tensor

    def take(self, images: Tensor) -> Slots:
        """Return those of some images, by their numbers, int64."""
        images = images.to(self.rows.device)
        return Slots(self.rows[images], self.columns[images])


class Prompts(Protocol):
    """What is known of B prompts of L tokens."""

    @property
    def input_ids(self) -> Tensor:
        """The prompts, int64 (B, L)."""

    @property
    def text(self) -> Tensor:
        """Tokens that are no placeholders of images, bool (B, L)."""

    @property
    def words(self) -> Tensor:
        """The words that ask about the images, bool (B, L)."""

    @property
    def ends(self) -> Tensor:
        """The last token before the answer, one a prompt, bool (B, L)."""


class Unavailable(ValueError):
    """Raised for a view that this model, or this call, does not have.

    Parameters
    ----------
    name : str
        Name of the view.
    why : str
        The reason, and the remedy if there is one.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} is not available: {why}")
        self.name = name
        self.why = why


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of a batch of images, with lazily computed views.

    A row is one image together with one question. A view is computed when it is first read, and kept: several methods
    share it, and a method pays only for what it reads.

    Rows of different lengths are padded to the longest. Padding may hold any value in `features` and in every view,
    NaN included: mask with `mask` before a sum, mean, sort or product over tokens.

    Parameters
    ----------
    features : Tensor
        Projector output, as the language model reads it, (B, N, D), any float dtype.
    mask : Tensor
        bool (B, N); True at tokens, False at padding.
    grid : Tensor
        Row and column of each token, int64 (B, N, 2); -1 at padding and at tokens off the grid.
    sources : Mapping[str, Callable]
        The function that computes each available view. That of ``instruction_attention`` takes the layer and the query
        tokens, ``projector`` takes encoder features, the others take nothing. Views of other layers of the tower are
        named ``view@depth``.
    reasons : Mapping[str, str]
        Why the other views are not available.
    placeholders : Tensor, optional
        Number of placeholders in the prompt for each row, int64 (B,). It exceeds the number of tokens if the image was
        made smaller. By default the number of tokens.
    video : Tensor, optional
        bool (B,); True at rows that are videos. By default no row is.
    instruction : tuple[int, str]
        Layer of the language model and query tokens ("words" or "last") of ``instruction_attention``; see
        `with_instruction`.
    decoder_layers : int, optional
        Number of layers of the language model.
    prompts : Prompts, optional
        The prompts that ask about the images.
    slots : Slots, optional
        Where the images' placeholders stand in these prompts.

    Raises
    ------
    ValueError
        If the shapes do not fit together.
    """

    features: Tensor
    mask: Tensor
    grid: Tensor
    sources: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    placeholders: Tensor | None = None
    video: Tensor | None = None
    instruction: tuple[int, QueryTokens] = INSTRUCTION
    decoder_layers: int | None = None
    prompts: Prompts | None = None
    slots: Slots | None = None
    _cache: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"features must be (B, N, D), not {tuple(self.features.shape)}")
        shape = self.features.shape[:2]
        if self.mask.shape != shape or self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool {tuple(shape)}, not {self.mask.dtype} {tuple(self.mask.shape)}")
        if self.grid.shape != (*shape, 2):
            raise ValueError(f"grid must be {(*shape, 2)}, not {tuple(self.grid.shape)}")
        if self.slots is not None and len(self.slots.rows) != shape[0]:
            raise ValueError(f"slots must be of {shape[0]} images, not of {len(self.slots.rows)}")
        if self.placeholders is None:
            object.__setattr__(self, "placeholders", self.lengths)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Number of tokens of each row, int64 (B,)."""
        return self.mask.sum(1)

    @cached_property
    def padded(self) -> bool:
        """Whether any row is padded; where none is, nothing needs a mask."""
        return not bool(self.mask.all())

    @property
    def full_lengths(self) -> Tensor:
        """Number of placeholders in the prompt for each row, int64 (B,); more than tokens of an image made smaller."""
        assert self.placeholders is not None
        return self.placeholders

    @property
    def computed(self) -> frozenset[str]:
        """Names of the views that have been computed."""
        return frozenset(key[0] for key in self._cache)

    @property
    def encoder_features(self) -> Tensor:
        """Input of the projector, (B, N, Dv)."""
        return self._view("encoder_features")

    @property
    def cls_attention(self) -> Tensor:
        """Attention of [CLS] to each token in the tower layer that feeds the projector, float32 (B, N)."""
        return self._view("cls_attention")

    @property
    def received_attention(self) -> Tensor:
        """Mean attention that each token receives in the tower layer that feeds the projector, float32 (B, N)."""
        return self._view("received_attention")

    @property
    def saliency(self) -> Tensor:
        """`cls_attention` if the tower has a [CLS] token, else `received_attention`, float32 (B, N)."""
        return self.cls_attention if "cls_attention" in self.sources else self.received_attention

    @property
    def instruction_attention(self) -> Tensor:
        """Attention of the instruction to each token in one layer of the language model, float32 (B, N).

        See `with_instruction` for who asks.
        """
        return self._view("instruction_attention", *self.instruction)

    @property
    def relevance(self) -> Tensor:
        """Cosine of each token with the words that ask in the shared image-text space, float32 (B, N)."""
        return self._view("relevance")

    @property
    def relevance_product(self) -> Tensor:
        """Inner product of each token with the words that ask in the shared image-text space, float32 (B, N)."""
        return self._view("relevance_product")

    @property
    def keys(self) -> Tensor:
        """Keys of the tower layer that feeds the projector, (B, N, heads, d)."""
        return self._view("keys")

    @property
    def cls_features(self) -> Tensor:
        """Encoder features of the [CLS] token, in the form in which tokens enter the projector, (B, Dv)."""
        return self._view("cls_features", axes=1)

    @property
    def word_similarity(self) -> Tensor:
        """Cosine of each token with each word that asks, in the language model's input space, float32 (B, N, T).

        Rows with fewer words hold -inf after the last word.
        """
        return self._view("word_similarity")

    @property
    def crops(self) -> Tensor:
        """Row and column of the crop that each token belongs to, int64 (B, N, 2); -1 for tokens of the thumbnail.

        `grid` then counts rows and columns within each crop.
        """
        return self._view("crops")

    @property
    def frames(self) -> Tensor:
        """Video frame of each token, from 0, int64 (B, N); -1 at tokens of images in a batch with videos."""
        return self._view("frames")

    def at_depth(self, name: str, depth: float) -> Tensor:
        """Return a view of another layer of the vision tower.

        Parameters
        ----------
        name : str
            "cls_attention", "received_attention", "keys", or "wide_cls_attention", which is the attention of [CLS]
            with all heads concatenated to one.
        depth : float
            Share of the tower's layers, 0 (first layer) to 1 (last layer). It must be among the ``tower_depths`` that
            the images were encoded with; `prune` passes those of the method.

        Raises
        ------
        Unavailable
            If the images were not encoded with this depth, or the tower has no [CLS] token.
        """
        place = f"{name}@{depth:g}"
        if place in self.sources:
            return self._view(place)
        if f"received_attention@{depth:g}" in self.sources and name in self.reasons:
            raise Unavailable(place, self.reasons[name])
        raise Unavailable(place, f"encode the images with it: encode(..., tower_depths=({depth:g},))")

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector to encoder features, (B, K, Dv) to (B, K, D).

        Raises
        ------
        Unavailable
            If there is no projector.
        """
        if "projector" not in self.sources:
            raise Unavailable("projector", self.reasons.get("projector", "these tokens were built without it"))
        return self.sources["projector"](encoder_features)

    @property
    def image_key(self) -> Tensor:
        """A number that depends on the pixels of the image only, int64 (B,)."""
        return self._view("image_key")

    def with_instruction(self, layer: int = INSTRUCTION[0], which: QueryTokens = INSTRUCTION[1]) -> VisualTokens:
        """Return the same tokens with `instruction_attention` of another layer or other query tokens.

        The two share all views that have been computed.

        Parameters
        ----------
        layer : int
            Layer of the language model; 0 is the first layer.
        which : {"words", "last"}
            Query tokens: the mean over the instruction's words, or the last token of the prompt before the answer.

        Raises
        ------
        ValueError
            If `layer` is negative, `which` is unknown, or the two cannot depend on the question.
        """
        check_instruction(layer, which)
        return replace(self, instruction=(layer, which))

    def take(self, rows: Tensor) -> VisualTokens:
        """Return some rows; a view is computed for the whole batch, once for all parts of it.

        Parameters
        ----------
        rows : Tensor
            Numbers of the rows, int64 (R,), on any device.
        """
        rows = rows.to(self.mask.device)

        def part(name: str) -> Callable[..., Tensor]:
            return lambda *arguments: self._view(name, *arguments, axes=1)[rows]

        sources = {name: source if name == "projector" else part(name) for name, source in self.sources.items()}
        return replace(
            self,
            features=self.features[rows],
            mask=self.mask[rows],
            grid=self.grid[rows],
            sources=sources,
            placeholders=self.full_lengths.to(rows.device)[rows],
            video=None if self.video is None else self.video.to(rows.device)[rows],
            slots=None if self.slots is None else self.slots.take(rows),
            _cache={},
        )

    def _view(self, name: str, *arguments: Any, axes: int = 2) -> Tensor:
        key = (name, *arguments)
        if key not in self._cache:
            if name not in self.sources:
                raise Unavailable(name, self.reasons.get(name, "these tokens were built without it"))
            view = self.sources[name](*arguments)
            axes = min(view.ndim, axes)
            if view.shape[:axes] != self.mask.shape[:axes]:
                raise ValueError(
                    f"the shape of {name} must begin with {tuple(self.mask.shape[:axes])}, not {tuple(view.shape)}"
                )
            self._cache[key] = view
        return self._cache[key]


def check_instruction(layer: int, which: str) -> None:
    """Raise ValueError unless this is a layer with query tokens of ``instruction_attention`` that read the question."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"instruction layer must be an int, 0 or more, not {layer!r}")
    if which not in get_args(QueryTokens):
        raise ValueError(f"instruction tokens must be one of {', '.join(get_args(QueryTokens))}, not {which!r}")
    if which == "last" and layer == 0:
        raise ValueError(
            "the last token of the prompt has read nothing of the question at layer 0: choose instruction_layer 1 or "
            "more, or instruction_tokens 'words'"
        )
