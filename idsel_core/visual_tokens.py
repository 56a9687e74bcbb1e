"""What a selection method may look at, computed when it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Which = Literal["last", "mean"]


class Unavailable(ValueError):
    """A view that this model, or this call, cannot give.

    Parameters
    ----------
    name : str
        The view that was asked for.
    why : str
        The reason, in words for the user.
    """

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} is not available: {why}")
        self.name = name
        self.why = why


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """The visual tokens of a batch of images, with lazily computed views.

    A row is one image beside one question. A view is computed when it is first read and kept, so that several methods
    share it and a method pays for nothing that it does not read.

    Parameters
    ----------
    features : Tensor
        Projector output, which the language model reads, (B, N, D), any float dtype.
    mask : Tensor
        True at tokens, False at padding, bool (B, N).
    grid : Tensor
        Row and column of each token, int64 (B, N, 2); -1 at padding and at tokens that lie on no grid.
    sources : Mapping[str, Callable]
        For each view that can be had, the function that computes it. That of ``instruction_attention`` takes
        ``(layer, which)``, ``projector`` takes features, the others take nothing. Views of other layers of the tower
        are named ``view@depth``.
    reasons : Mapping[str, str]
        For views that cannot be had, why.
    placeholders : Tensor, optional
        Image tokens that the prompt holds for each row, int64 (B,). More than the row has tokens where the image was
        made smaller. By default the number of tokens.
    video : Tensor, optional
        True at rows that are videos, bool (B,); none is by default.
    instruction : tuple[int, str]
        Layer of the language model and query tokens ("last" or "mean") of ``instruction_attention``; change it with
        `with_instruction`.
    decoder_layers : int, optional
        Layers of the language model that is to read the tokens.

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
    instruction: tuple[int, Which] = (0, "last")
    decoder_layers: int | None = None
    _cache: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"features must be (B, N, D), not {tuple(self.features.shape)}")
        shape = self.features.shape[:2]
        if self.mask.shape != shape or self.mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool {tuple(shape)}, not {self.mask.dtype} {tuple(self.mask.shape)}")
        if self.grid.shape != (*shape, 2):
            raise ValueError(f"grid must be {(*shape, 2)}, not {tuple(self.grid.shape)}")
        if self.placeholders is None:
            object.__setattr__(self, "placeholders", self.lengths)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64 (B,)."""
        return self.mask.sum(1)

    @property
    def computed(self) -> frozenset[str]:
        """Names of the views that were computed so far."""
        return frozenset(key[0] for key in self._cache)

    @property
    def encoder_features(self) -> Tensor:
        """What enters the projector, (B, N, Dv)."""
        return self._view("encoder_features")

    @property
    def cls_attention(self) -> Tensor:
        """Attention of [CLS] to the tokens in the tower's layer that feeds the projector, float32 (B, N)."""
        return self._view("cls_attention")

    @property
    def received_attention(self) -> Tensor:
        """Mean attention that the tokens receive in the tower's layer that feeds the projector, float32 (B, N)."""
        return self._view("received_attention")

    @property
    def saliency(self) -> Tensor:
        """`cls_attention` where the tower has a [CLS] token, else `received_attention`, float32 (B, N)."""
        return self.cls_attention if "cls_attention" in self.sources else self.received_attention

    @property
    def instruction_attention(self) -> Tensor:
        """Attention of the instruction to the tokens in a layer of the language model, float32 (B, N)."""
        return self._view("instruction_attention", *self.instruction)

    @property
    def relevance(self) -> Tensor:
        """Cosine of each token with the question in a shared image-text space, float32 (B, N)."""
        return self._view("relevance")

    @property
    def relevance_product(self) -> Tensor:
        """Inner product of each token with the question in a shared image-text space, float32 (B, N)."""
        return self._view("relevance_product")

    @property
    def keys(self) -> Tensor:
        """Keys of the tower's layer that feeds the projector, (B, N, heads, d)."""
        return self._view("keys")

    @property
    def cls_features(self) -> Tensor:
        """What the [CLS] token would enter the projector with, (B, Dv)."""
        return self._view("cls_features", axes=1)

    @property
    def word_similarity(self) -> Tensor:
        """Cosine of each token with each word of the question, as the language model reads them, float32 (B, N, T).

        Rows with fewer words hold -inf after the last one.
        """
        return self._view("word_similarity")

    @property
    def crops(self) -> Tensor:
        """Row and column, in the layout of an image's crops, of the crop that each token is of, int64 (B, N, 2).

        -1, -1 where a token is of the thumbnail. The grid of such images is counted within each crop.
        """
        return self._view("crops")

    @property
    def frames(self) -> Tensor:
        """Video frame of each token, from 0, int64 (B, N); -1 at tokens of an image beside videos."""
        return self._view("frames")

    def at_depth(self, name: str, depth: float) -> Tensor:
        """Return a view of another layer of the vision tower than the one that feeds the projector.

        Parameters
        ----------
        name : str
            "cls_attention", "received_attention", "keys", or "wide_cls_attention", which is the attention of [CLS]
            with all heads taken as one.
        depth : float
            Share of the tower's layers, 0 (the first layer) to 1 (the last one). `Backbone.encode` has to be asked for
            it, as `prune` does for the ``tower_depths`` of a method.

        Raises
        ------
        Unavailable
            If the tower's attention at this depth was not kept, or it has no [CLS] token.
        """
        place = f"{name}@{depth:g}"
        if place in self.sources:
            return self._view(place)
        if f"received_attention@{depth:g}" in self.sources and name in self.reasons:
            raise Unavailable(place, self.reasons[name])
        raise Unavailable(place, f"the images were not encoded with it; call encode(..., tower_depths=({depth:g},))")

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector to merged encoder features, (B, K, Dv) to (B, K, D).

        Raises
        ------
        Unavailable
            If no projector is at hand.
        """
        if "projector" not in self.sources:
            raise Unavailable("projector", self.reasons.get("projector", "nothing here computes it"))
        return self.sources["projector"](encoder_features)

    @property
    def image_key(self) -> Tensor:
        """A number that depends on the image's pixels alone, int64 (B,)."""
        return self._view("image_key")

    def with_instruction(self, layer: int = 0, which: Which = "last") -> VisualTokens:
        """Return these tokens with `instruction_attention` read elsewhere; computed views stay shared.

        Parameters
        ----------
        layer : int
            Layer of the language model, 0 is the input layer.
        which : {"last", "mean"}
            The last token of the prompt asks, or the mean over all text tokens after the image.

        Raises
        ------
        ValueError
            If `layer` is negative or `which` is unknown.
        """
        check_instruction(layer, which)
        return replace(self, instruction=(layer, which))

    def _view(self, name: str, *arguments: Any, axes: int = 2) -> Tensor:
        key = (name, *arguments)
        if key not in self._cache:
            if name not in self.sources:
                raise Unavailable(name, self.reasons.get(name, "nothing here computes it"))
            view = self.sources[name](*arguments)
            axes = min(view.ndim, axes)
            if view.shape[:axes] != self.mask.shape[:axes]:
                raise ValueError(f"{name} must begin with {tuple(self.mask.shape[:axes])}, not {tuple(view.shape)}")
            self._cache[key] = view
        return self._cache[key]


def check_instruction(layer: int, which: str) -> None:
    """Raise ValueError unless ``instruction_attention`` can be read like this."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"instruction layer must be an int, 0 or more, not {layer!r}")
    if which not in get_args(Which):
        raise ValueError(f"instruction tokens must be one of {', '.join(get_args(Which))}, not {which!r}")
