"""The questions and images, or audio clips, of one split of a data set, whatever they were read from."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from idsel_core.study.sources.clips import read_clip
from idsel_core.study.store.provenance import sha256

Kind = Literal["image", "audio"]
"""What questions are about."""
PLURAL: Final = {"image": "images", "audio": "audio clips"}
"""What messages call them."""

ImageSource = bytes | Path | Callable[[], Image.Image | bytes]
"""Where one image or audio clip comes from: its encoded bytes, a file, or a function that fetches it or its bytes."""


def joined(names: Sequence[str]) -> str:
    """Return the name of one image or clip as it is, and those of several as a JSON list."""
    return names[0] if len(names) == 1 else json.dumps(list(names), ensure_ascii=False)


@dataclass(frozen=True)
class Split:
    """Questions and images of one split of a data set; an audio clip takes the place of an image.

    Attributes
    ----------
    name : str
        Name of the split.
    questions : DataFrame
        One row a question:

        - question_id : str, unique
        - image_ids : list of str, the images that it shows, in order; image_id : str, these in one text, as of `joined`
        - question_type : str, the groups over which shares of full performance are averaged
        - question : str, the text that the model is asked, options included
        - choices : list of str, the allowed answers; empty where any answer is allowed
        - answers : list of str, the right ones; answer : str, the first of the most frequent among them
        - metric : str, one of `idsel_core.study.metrics.METRICS`
    images : DataFrame
        One row an image, indexed by image_id: image (an `ImageSource`), and in a data set with boxes objects (boxes in
        pixels); of audio clips also samples, their number in each channel, and rate, samples a second.
    files : tuple[Path, ...]
        Where they were read from: tables of questions first, then files that hold images. Images that are files of
        their own are not among them.
    dataset : str
        What the results call the data set.
    new_tokens : int or None
        Most tokens of an answer; None: as many as the longest right answer.
    version : str
        What tells the images from those of another version, where their names and files do not.
    kind : {"image", "audio"}
        What the questions are about.
    """

    name: str
    questions: pd.DataFrame
    images: pd.DataFrame
    files: tuple[Path, ...]
    dataset: str = "scenes"
    new_tokens: int | None = None
    version: str = ""
    kind: Kind = "image"

    @property
    def has_boxes(self) -> bool:
        """Whether it is known where in the images objects are."""
        return "objects" in self.images

    def picture(self, image_id: str) -> Image.Image:
        """Return one image, upright and in RGB.

        Raises
        ------
        ValueError
            If it cannot be read, or is an audio clip; names it.
        """
        try:
            source = self._source(image_id, "image")
            image = source if isinstance(source, Image.Image) else Image.open(_file(source))
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"image {image_id!r} of {self.dataset} cannot be read: {error}") from error

    def clip(self, image_id: str, rate: int) -> NDArray[np.float32]:
        """Return the samples of one audio clip, float32 (T,), at so many a second.

        Raises
        ------
        ValueError
            If it cannot be read, or is an image; names it.
        """
        source = self._source(image_id, "audio")
        assert isinstance(source, bytes | Path)
        try:
            return read_clip(source).at(rate)
        except (OSError, ValueError) as error:
            raise ValueError(f"audio clip {image_id!r} of {self.dataset} cannot be read: {error}") from error

    def _source(self, image_id: str, wanted: Kind) -> bytes | Path | Image.Image:
        if self.kind != wanted:
            raise ValueError(f"the questions of {self.dataset} are about {PLURAL[self.kind]}, not {PLURAL[wanted]}")
        source = cast(ImageSource, self.images.at[image_id, "image"])
        return source() if callable(source) else source

    def largest(self) -> str | None:
        """Return the image, or clip, that is likely to have most tokens; None if that takes reading them."""
        sources = self.images["image"]
        if self.kind == "audio":
            return str((self.images["samples"] / self.images["rate"]).idxmax())
        if not all(isinstance(source, Path) for source in sources):
            return None
        areas = {}
        for name, path in sources.items():
            with Image.open(path) as image:
                areas[str(name)] = image.width * image.height
        return max(areas, key=lambda name: areas[name])

    @functools.cached_property
    def images_hash(self) -> str:
        """A hash of the images, or of what they were read from."""
        if self.has_boxes:
            return sha256(self.files[1])
        whole = hashlib.sha256(self.version.encode())
        for name, source in self.images["image"].items():
            whole.update(f"{name} ".encode())
            whole.update(sha256(source).encode() if isinstance(source, Path) else b"")
        return whole.hexdigest()


def _file(source: bytes | Path) -> io.BytesIO | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def first_of_each_type(questions: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Return about `limit` questions, the first ones of each question type; all for 0."""
    if not limit:
        return questions
    each = -(-limit // questions["question_type"].nunique())
    return questions.groupby("question_type", sort=False).head(each).reset_index(drop=True)


def check_limit(limit: int) -> None:
    """Refuse what is no number of questions.

    Raises
    ------
    ValueError
        If it is negative or no int.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"limit must be a number of questions, or 0 for all, not {limit!r}")
