"""Audio clips of a user's own: what is read of a WAV file, and what is refused by its row before a model is loaded."""

import io
import json
import struct
import wave

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile
from transformers import WhisperFeatureExtractor

from idsel_core.study.dataset import read_data
from idsel_core.study.sources.clips import misfit, read_clip, resampled_length
from tests.support.hub_folders import tone

RATE = 16000


def content(samples, rate=RATE):
    written = io.BytesIO()
    wavfile.write(written, rate, samples)
    return written.getvalue()


def of_24_bits(samples):
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setparams((1, 3, RATE, 0, "NONE", ""))
        file.writeframes(b"".join(round(s * (2**23 - 1)).to_bytes(3, "little", signed=True) for s in samples))
    return written.getvalue()


SINE = tone(0.05, 440.0)
FORMS = {
    "8 bits": (content(np.round(SINE * 127 + 128).astype(np.uint8)), 1 / 100),
    "16 bits": (content(np.round(SINE * 32767).astype(np.int16)), 1e-4),
    "24 bits": (of_24_bits(SINE), 1e-6),
    "32 bits": (content(np.round(SINE * (2**31 - 1)).astype(np.int32)), 1e-6),
    "float": (content(SINE.astype(np.float32)), 1e-7),
    "double": (content(SINE), 1e-7),
    "two channels": (content(np.stack([SINE, SINE / 2], 1).astype(np.float32) / 0.75), 1e-6),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, tmp_path):
    written, near = FORMS[form]
    clip = read_clip(written)
    assert clip.rate == RATE and clip.samples.dtype == np.float32 and clip.samples.shape == SINE.shape
    assert np.abs(clip.samples - SINE).max() < near
    (tmp_path / "a.wav").write_bytes(written)
    assert np.array_equal(read_clip(tmp_path / "a.wav").samples, clip.samples)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 16001])
def test_a_clip_at_another_rate_is_the_same_sound(rate):
    found = read_clip(content(tone(0.1, 440.0, rate).astype(np.float32), rate)).at(RATE)
    assert len(found) == resampled_length(round(0.1 * rate), rate, RATE)
    middle = slice(len(found) // 4, 3 * len(found) // 4)
    assert np.abs(found - tone(1.0, 440.0)[: len(found)])[middle].max() < 5e-3


def test_what_the_new_rate_cannot_hold_does_not_come_back_as_another_tone():
    found = read_clip(content(tone(0.1, 15000.0, 44100).astype(np.float32), 44100)).at(RATE)
    assert np.abs(found)[200:-200].max() < 0.01


def header(tag=1, channels=1, rate=RATE, bits=16, data=b"\0" * 800, claimed=None):
    """Return a WAV file, written from its specification."""
    align = channels * bits // 8
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * align, align, bits)
    size = len(data) if claimed is None else claimed
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body) - len(data) + size) + body


def test_the_header_of_these_tests_is_a_wav_file():
    assert np.array_equal(read_clip(header()).samples, np.zeros(400))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"", "it is no WAV file; convert it, for example by `ffmpeg"),
        (b"ID3\4" + b"\0" * 99, "it is no WAV file"),
        (b"RIFF\0\0\0\0AVI " + b"\0" * 99, "it is no WAV file"),
        (b"RIFF\0\0\0\0WAVE", "damaged, or of a kind that is not read"),
        (FORMS["16 bits"][0][:-100], "damaged, or of a kind that is not read: Reached EOF prematurely"),
        (header(claimed=0xFFFFFF00), "damaged, or of a kind that is not read"),
        (header(tag=7, bits=8), "of a kind that is not read: Unknown wave file format: MULAW"),
        (header(channels=0), "damaged, or of a kind that is not read"),
        (header(rate=0), "it has 0 samples a second; 1000 to 768000 are allowed"),
        (header(rate=4_000_000), "it has 4000000 samples a second"),
        (header(data=b""), "it holds no samples"),
        (content(np.array([0.1, np.nan])), "it holds samples that are no numbers"),
        (content(SINE * 32767), r"it holds samples of 16383.5, and floating-point samples lie"),
    ],
)
def test_files_that_are_no_clip_are_refused_by_their_row(tmp_path, written, message):
    (tmp_path / "a.wav").write_bytes(written)
    (tmp_path / "m.csv").write_text("audio,question,answer\na.wav,Which?,yes\n")
    with pytest.raises(ValueError, match=rf"m.csv, line 2: .*a.wav cannot be read: .*{message}"):
        read_data(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.wav", "line 2: there is no audio clip .*no.wav; paths count from the folder of the table"),
        ("https://host/a.wav", "line 2: there is no audio clip .*; files are read from disk, so download it first"),
        ("sub", "line 2: .*sub cannot be read: .*directory"),
        ("", "line 2: audio is empty"),
    ],
)
def test_clips_that_are_not_there_are_refused_by_their_row(tmp_path, name, message):
    (tmp_path / "sub").mkdir()
    (tmp_path / "m.csv").write_text(f"audio,question,answer\n{name},Which?,yes\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_data(tmp_path / "m.csv")


ROWS = [
    {"audio": "a.wav", "question": "High?", "answer": "no"},
    {"audio": ["b.wav", "./a.wav"], "question": "The same?", "answer": "no"},
]


@pytest.fixture
def folder(tmp_path):
    """A folder with two clips."""
    for name, hertz, rate in (("a", 200.0, RATE), ("b", 800.0, 8000)):
        wavfile.write(tmp_path / f"{name}.wav", rate, (tone(0.5, hertz, rate) * 32767).astype(np.int16))
    return tmp_path


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_each_kind_of_table_gives_the_same_clips(folder, name):
    if name == "m.jsonl":
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif name == "m.csv":
        pd.DataFrame([{**row, "audio": json.dumps(row["audio"])} for row in ROWS[1:]]).to_csv(folder / name)
    else:
        rows = [{**row, "audio": np.atleast_1d(row["audio"]).tolist()} for row in ROWS]
        pd.DataFrame(rows).to_parquet(folder / name)
    split = read_data(folder / name)
    assert split.kind == "audio" and split.questions["image_ids"].iloc[-1] == ["b.wav", "a.wav"]
    sizes = split.images[["samples", "rate"]].sort_index()
    assert sizes.to_numpy().tolist() == [[8000, 16000], [4000, 8000]]
    for clip, hertz in (("a.wav", 200.0), ("b.wav", 800.0)):
        heard = split.clip(clip, RATE)
        assert len(heard) == 8000 and int(np.abs(np.fft.rfft(heard)).argmax()) == hertz / 2


@pytest.mark.parametrize("struct", [False, True])
def test_clips_inside_a_parquet_file(folder, struct):
    clips = [(folder / name).read_bytes() for name in ("a.wav", "b.wav", "a.wav")]
    cells = [{"bytes": one, "path": "x.wav"} for one in clips] if struct else clips
    table = pd.DataFrame({"audio": cells, "question": "High?", "answer": ["no", "yes", "no"]})
    table.to_parquet(folder / "m.parquet", row_group_size=2)
    split = read_data(folder / "m.parquet")
    assert split.kind == "audio" and len(split.images) == 2
    beside = read_data(_write(folder, "a.wav", "b.wav"))
    for inside, name in zip(split.images.index, ("a.wav", "b.wav"), strict=True):
        assert np.array_equal(split.clip(inside, RATE), beside.clip(name, RATE))
    table.assign(audio=[clips[0], b"x", clips[1]]).to_parquet(folder / "m.parquet")
    with pytest.raises(ValueError, match=r"row 2: the audio clip cannot be read: it is no WAV file"):
        read_data(folder / "m.parquet")
    table.assign(audio=[clips[0], clips[1], b""]).to_parquet(folder / "m.parquet")
    with pytest.raises(ValueError, match=r"row 3: audio is empty"):
        read_data(folder / "m.parquet")


def _write(folder, *names):
    pd.DataFrame({"audio": names, "question": "High?", "answer": "no"}).to_csv(folder / "n.csv")
    return folder / "n.csv"


def test_the_hash_follows_the_clips_and_nothing_else(folder):
    path = _write(folder, "a.wav", "b.wav")
    first = read_data(path).images_hash
    path.write_text(path.read_text().replace("High", "Low"))
    assert read_data(path).images_hash == first
    wavfile.write(folder / "b.wav", 8000, (tone(0.5, 801.0, 8000) * 32767).astype(np.int16))
    assert read_data(path).images_hash != first


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("audio,image,question,answer", "a column 'image' and a column 'audio', and no supported model takes both"),
        ("sound,question,answer", "no column 'image' and no column 'audio'; rename 'sound' if that is it"),
        ("Audio,question,answer", "no column 'image' and no column 'audio'; rename 'Audio' if that is it"),
    ],
)
def test_columns_that_do_not_tell_what_is_asked_about_are_refused(folder, columns, message):
    (folder / "m.csv").write_text(f"{columns}\n" + ",".join(["a.wav"] * (columns.count(",") + 1)) + "\n")
    with pytest.raises(ValueError, match=message):
        read_data(folder / "m.csv")


def test_a_clip_is_no_picture(folder):
    split = read_data(_write(folder, "a.wav"))
    with pytest.raises(ValueError, match="the questions of n are about audio clips, not images"):
        split.picture("a.wav")
    with pytest.raises(ValueError, match="the questions of scenes are about images, not audio clips"):
        read_data(split="validation", limit=1).clip("a", RATE)


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_clip_fits_if_the_extractor_cuts_nothing_off_and_it_has_a_token(seconds):
    extractor, window = WhisperFeatureExtractor(feature_size=8, chunk_length=seconds), seconds * RATE
    for samples in (1, 319, 320, 321, 322, 480, window - 1, window, window + 1):
        given = extractor(np.zeros(samples), sampling_rate=RATE, return_attention_mask=True, return_tensors="np")
        steps = int(given["attention_mask"].sum())
        tokens = ((steps - 1) // 2 + 1 - 2) // 2 + 1  # As Qwen2AudioProcessor counts them.
        why = misfit(samples, extractor)
        assert bool(why) == (tokens < 1 or samples > window), samples
        assert ("too short" in why) == (tokens < 1) and ("at most" in why) == (samples > window)
