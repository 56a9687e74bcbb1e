"""Checks of the knobs of methods."""

from __future__ import annotations

import numbers

from torch import Tensor

from idsel_core.visual_tokens import Unavailable, VisualTokens


def check_share(knob: str, value: float) -> None:
    """Raise ValueError unless the value of a knob is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"{knob} must be a number from 0 to 1, not {value!r}")


def check_above_zero(knob: str, value: float) -> None:
    """Raise ValueError unless the value of a knob is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < float("inf"):
        raise ValueError(f"{knob} must be a number above 0, not {value!r}")


def check_count(knob: str, value: int) -> None:
    """Raise ValueError unless the value of a knob is an int, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{knob} must be an int, 1 or more, not {value!r}")


def check_flag(knob: str, value: bool) -> None:
    """Raise ValueError unless the value of a knob is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{knob} must be True or False, not {value!r}")


def frames_of_videos(tokens: VisualTokens, label: str) -> Tensor:
    """Return the video frame of each token, int64 (B, N), -1 at padding, for a method that serves videos alone.

    Parameters
    ----------
    tokens : VisualTokens
        B rows.
    label : str
        What the message calls the method.

    Raises
    ------
    Unavailable
        If a row is an image, alone or beside videos.
    """
    frames = tokens.frames.where(tokens.mask, -1)
    if bool((images := frames.amax(1) < 0).any()):
        which = int(images.nonzero()[0])
        raise Unavailable("frames", f"input {which} is an image, and {label} compares the frames of a video")
    return frames
