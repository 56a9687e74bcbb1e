"""What one pass of the vision tower gives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Encoded:
    """What one pass of the vision tower gives; it does not depend on the question.

    Encode an image once and share this between all methods, budgets and questions. `tensors` and `from_tensors` carry
    it through a safetensors file.

    Parameters
    ----------
    encoder_features : Tensor
        What enters the projector, (I, N, Dv).
    mask : Tensor
        True at tokens, bool (I, N).
    grid : Tensor
        Row and column of each token, int64 (I, N, 2), -1 at padding and off the grid.
    placeholders : Tensor
        Image tokens that a prompt holds for each image, int64 (I,).
    views : Mapping[str, Callable[[], Tensor]]
        Further views of `VisualTokens` that depend on the image alone, computed when called.
    features : Tensor, optional
        Projector output, (I, N, D), where the pass gave it; it can be computed from `encoder_features`.
    video : Tensor, optional
        True at rows that are videos, bool (I,); none is by default.
    """

    encoder_features: Tensor
    mask: Tensor
    grid: Tensor
    placeholders: Tensor
    views: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    features: Tensor | None = None
    video: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", {name: functools.cache(view) for name, view in self.views.items()})

    def __len__(self) -> int:
        return self.mask.shape[0]

    @functools.cached_property
    def padded(self) -> bool:
        """Whether any row is padded."""
        return not bool(self.mask.all())

    def tensors(self, views: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Return plain tensors to store, with all views or those named; without the projector output."""
        names = self.views if views is None else views
        stored = {name: getattr(self, name) for name in _STORED} | {name: self.views[name]() for name in names}
        if self.video is not None:
            stored["video"] = self.video
        return {name: tensor.contiguous() for name, tensor in stored.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Encoded:
        """Rebuild from what `tensors` returned.

        Raises
        ------
        ValueError
            If a tensor is missing.
        """
        missing = [name for name in _STORED if name not in tensors]
        if missing:
            raise ValueError(f"a stored encoding needs {', '.join(_STORED)}; missing: {', '.join(missing)}")
        views = {name: constant_view(tensor) for name, tensor in tensors.items() if name not in (*_STORED, "video")}
        return cls(**{name: tensors[name] for name in _STORED}, views=views, video=tensors.get("video"))

    def take(self, images: Tensor) -> Encoded:
        """Return the encodings of these images, int64 (R,), with repetition where several questions ask of one."""
        stored = {name: getattr(self, name)[images] for name in _STORED}
        views = {name: _taken(view, images) for name, view in self.views.items()}
        features, video = (None if given is None else given[images] for given in (self.features, self.video))
        return Encoded(**stored, views=views, features=features, video=video)


_STORED = ("encoder_features", "mask", "grid", "placeholders")


def constant_view(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _taken(view: Callable[[], Tensor], images: Tensor) -> Callable[[], Tensor]:
    return lambda: view()[images]
