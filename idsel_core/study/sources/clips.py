"""Read audio clips whole, so that one that cannot be used is found before any model is loaded."""

from __future__ import annotations

import io
import math
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idsel_core.study.sources.missing import hint

RATES = (1000, 768_000)
"""Least and most samples a second."""
_LOUDEST = 10.0
"""Floating-point samples lie from -1 to 1; recordings go a little beyond, integers that were not scaled far beyond."""
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    NameError,
    ArithmeticError,
    MemoryError,
    struct.error,
    UserWarning,
)
"""What scipy raises on files that are no WAV, or whose header is wrong."""


@dataclass(frozen=True, eq=False)
class Clip:
    """One audio clip.

    Attributes
    ----------
    samples : ndarray
        Mean of its channels, float32 (T,), full scale at -1 and 1.
    rate : int
        Samples a second.
    """

    samples: NDArray[np.float32]
    rate: int

    def at(self, rate: int) -> NDArray[np.float32]:
        """Return the samples at another rate, float32 (T',), as `resampled_length` counts them."""
        if rate == self.rate:
            return self.samples
        from scipy.signal import resample_poly

        common = math.gcd(rate, self.rate)
        found = resample_poly(self.samples.astype(np.float64), rate // common, self.rate // common)
        return found.astype(np.float32)


def resampled_length(samples: int, rate: int, wanted: int) -> int:
    """Return how many samples a clip has at another rate."""
    return -(-samples * wanted // rate)


def read_clip(source: Path | bytes) -> Clip:
    """Read a WAV file of integers or floating-point numbers, with any rate and number of channels.

    Parameters
    ----------
    source : Path or bytes
        A file, or its content.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is no such file, or it is cut short or empty, or its samples are no numbers or far beyond full scale.
    """
    from scipy.io import wavfile

    content = source.read_bytes() if isinstance(source, Path) else source
    if content[:4] not in (b"RIFF", b"RIFX", b"RF64") or content[8:12] != b"WAVE":
        raise ValueError("it is no WAV file; convert it, for example by `ffmpeg -i IN OUT.wav`")
    try:
        with warnings.catch_warnings():
            # Chunks that are not known are left out; of a file that is cut short, scipy returns what is there.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF prematurely", wavfile.WavFileWarning)
            rate, given = wavfile.read(io.BytesIO(content))
    except _BROKEN as error:
        raise ValueError(f"as a WAV file it is damaged, or of a kind that is not read: {error}") from error
    values: NDArray[Any] = np.asarray(given)
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"it has {rate} samples a second; {RATES[0]} to {RATES[1]} are allowed")
    if not values.size:
        raise ValueError("it holds no samples")
    scaled = _scaled(values)
    if not np.isfinite(scaled).all():
        raise ValueError("it holds samples that are no numbers")
    loudest = float(np.abs(scaled).max())
    if loudest > _LOUDEST:
        raise ValueError(
            f"it holds samples of {loudest:g}, and floating-point samples lie between -1 and 1; scale them"
        )
    mono = scaled if scaled.ndim == 1 else scaled.mean(1)
    return Clip(mono.astype(np.float32), int(rate))


def _scaled(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return samples as numbers with full scale at -1 and 1; those of 8 bits have their zero at 128."""
    scaled = values.astype(np.float64)
    if values.dtype.kind == "u":
        return (scaled - 128) / 128
    return scaled / (float(np.iinfo(values.dtype).max) + 1) if values.dtype.kind == "i" else scaled


def check_clip(source: Path | bytes, where: str) -> Clip:
    """Read a clip, and refuse one that cannot be used by its row.

    Parameters
    ----------
    source : Path or bytes
        A file, or its content.
    where : str
        How the message calls the row.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be used.
    """
    name = str(source) if isinstance(source, Path) else "the audio clip"
    try:
        return read_clip(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: there is no audio clip {name}{hint(source)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {name} cannot be read: {error}") from error


def misfit(samples: int, extractor: Any) -> str:
    """Return why a model cannot take a clip; "" if it can.

    A token stands for two frames of the tower, and so for more than two steps of the spectrum.

    Parameters
    ----------
    samples : int
        Length of the clip at the model's rate.
    extractor : WhisperFeatureExtractor
        Of the model's processor. It cuts off what is behind its window without a word.
    """
    rate, window, step = (int(getattr(extractor, name)) for name in ("sampling_rate", "n_samples", "hop_length"))
    if samples > window:
        return f"lasts {samples / rate:.8g} s, and this model takes {window / rate:g} s at most: cut it into several"
    if samples <= 2 * step:
        return f"lasts {samples / rate:.4f} s, which is too short for a token: it must be above {2 * step / rate:g} s"
    return ""
