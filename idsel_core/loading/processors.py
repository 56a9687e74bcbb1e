"""Load a processor, also where torchvision is missing, which its part for videos needs."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.video_processing_utils import VideoProcessorMixin


class NoVideos(VideoProcessorMixin):  # type: ignore[misc]
    """Stands in a processor for the part that reads videos, and refuses them."""

    def __init__(self, **_: Any) -> None:
        # What processors look up even where no video is given.
        self.merge_size = self.temporal_patch_size = self.num_frames = self.fps = 1

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse a video.

        Raises
        ------
        ImportError
            Always.
        """
        raise ImportError("reading videos needs torchvision: pip install torchvision")


def load_processor(name: str | Path, source: Mapping[str, Any]) -> Any:
    """Load the processor of a checkpoint.

    Where torchvision is missing, images are prepared with Pillow, as transformers does by itself, and videos are
    refused when they are given; a warning says so.

    Parameters
    ----------
    name : str or Path
        Hub id or folder.
    source : Mapping[str, Any]
        ``revision`` and ``local_files_only``.

    Raises
    ------
    ImportError
        If another package is missing.
    OSError, ValueError
        If the processor cannot be read.
    """
    read: Any = AutoProcessor.from_pretrained
    try:
        return read(name, trust_remote_code=False, **source)
    except (ImportError, ValueError) as error:
        # transformers raises one or the other, as the checkpoint names the class of the part for videos or not.
        lacks = "torchvision" in str(error).lower() and importlib.util.find_spec("torchvision") is None
        made = _without_videos(name, source) if lacks else None
        if made is None:
            raise
    warnings.warn(
        f"torchvision is not installed, so the processor of {name} prepares images with Pillow (resized pixels differ "
        "by rounding from those of torchvision) and refuses videos",
        stacklevel=4,
    )
    return made


def _without_videos(name: str | Path, source: Mapping[str, Any]) -> Any:
    """Build the processor with `NoVideos` in place of its part for videos; None if it has no such part."""
    config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False, **source)
    kind: Any = PROCESSOR_MAPPING[type(config)]
    if "video_processor" not in kind.get_attributes():
        return None
    parts = {
        "tokenizer": lambda: AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source),
        "image_processor": lambda: AutoImageProcessor.from_pretrained(
            name, trust_remote_code=False, backend="pil", **source
        ),
        "video_processor": NoVideos,
    }
    stored, _ = kind.get_processor_dict(name, **source)
    return assemble(kind, [parts[part]() for part in kind.get_attributes()], stored)


def assemble(kind: Any, parts: Sequence[Any], settings: Mapping[str, Any]) -> Any:
    """Return a processor of a class from its parts, in their order, of which `NoVideos` may be one."""

    # Without torchvision, transformers does not know the class that a part for videos is to be of.
    def check(self: Any, name: str, part: Any) -> None:
        if not isinstance(part, NoVideos):
            kind.check_argument_for_proper_class(self, name, part)

    unchecked: Any = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check})
    made = unchecked.from_args_and_dict(list(parts), dict(settings))
    made.__class__ = kind
    return made
