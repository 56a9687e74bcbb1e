"""Look at the headers of images, so that one that cannot be used is found before any model is loaded."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from idsel_core.study.sources.missing import hint

_CLIPPED = ("I", "F")
"""Modes of more than 8 bits, which a conversion to RGB would clip."""


def check_picture(source: Path | bytes, where: str) -> None:
    """Refuse an image that is missing, is not one, is huge or has more than 8 bits a channel.

    Parameters
    ----------
    source : Path or bytes
        A file, or its content; only the header is read.
    where : str
        How the message calls the row.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be used.
    """
    name = str(source) if isinstance(source, Path) else "the image"
    most = Image.MAX_IMAGE_PIXELS or float("inf")
    try:
        # A warning tells of sizes between the limit and twice that; the check below refuses them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
                (width, height), mode = image.size, image.mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: there is no image {name}{hint(source)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{where}: {name} is too large ({error}); make it smaller") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{where}: {name} is no image that can be read") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{where}: {name} cannot be read: {error}") from error
    if width * height > most:
        raise ValueError(f"{where}: {name} has {width} x {height} pixels; at most {most} are allowed: make it smaller")
    if mode.partition(";")[0] in _CLIPPED:
        raise ValueError(f"{where}: {name} has more than 8 bits a channel (mode {mode}); save it with 8")
