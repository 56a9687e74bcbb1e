"""The sentences, the reader of CTranslate2's files, and what is said where wheels are missing."""

from __future__ import annotations

import csv
import itertools
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from data.speech.assemble import check_wheels
from data.speech.whisper import read_tensors
from tests.support.project import PROJECT

SPEECH = PROJECT / "data/speech"


def text(value: str) -> bytes:
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def test_tensors_are_read_as_they_were_written():
    halves, whole = np.arange(6, dtype="<f2").reshape(2, 3), np.array([7], dtype="<i4")
    data = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, 2)
    for name, array, code in (("encoder/weight", halves, 4), ("decoder/heads", whole, 3)):
        data += text(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", code, array.nbytes) + array.tobytes()
    found = read_tensors(data)
    assert torch.equal(found["encoder/weight"], torch.arange(6, dtype=torch.float16).reshape(2, 3))
    assert found["decoder/heads"].tolist() == [7]
    with pytest.raises(ValueError, match="expected a WhisperSpec of version 6, not a LlamaSpec of version 6"):
        read_tensors(struct.pack("<I", 6) + text("LlamaSpec"))


def test_a_missing_or_other_wheel_is_named(tmp_path):
    (tmp_path / "espeakng_loader-0.2.4-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"lacks the pinned wheel of espeakng-loader==0\.2\.4: run `make speech`"):
        check_wheels(tmp_path)
    command = [sys.executable, "-m", "data.speech.assemble", "--wheels", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and not (tmp_path / "out").exists()


def test_all_wheels_are_pinned_by_hash():
    lines = (SPEECH / "wheels.txt").read_text().splitlines()
    assert lines and all(len(line.partition("==")[2].partition(" --hash=sha256:")[2]) == 64 for line in lines)


def test_sentences_are_plain_and_different():
    sentences = (SPEECH / "sentences.txt").read_text().splitlines()
    assert len(set(sentences)) == len(sentences) == 48
    assert all(line[0].isupper() and line[-1] in ".?" and 5 <= len(line.split()) <= 20 for line in sentences)


def test_pieces_of_the_reading_follow_each_other():
    with (SPEECH / "reading.csv").open(newline="") as table:
        pieces = list(csv.DictReader(table))
    assert pieces[0]["start"] == "0.00"
    assert all(one["end"] == other["start"] for one, other in itertools.pairwise(pieces))
    assert all(0 < float(piece["end"]) - float(piece["start"]) < 30 and piece["text"] for piece in pieces)
