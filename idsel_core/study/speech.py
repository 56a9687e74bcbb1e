"""Transcribe clips with an encoder-decoder, whose decoder reads the selected tokens alone."""

from __future__ import annotations

import hashlib
import math
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from idsel_core.backbones import adapter_for
from idsel_core.backbones._shared.own_calls import calling
from idsel_core.backbones.whisper import Whisper
from idsel_core.loading import load
from idsel_core.methods import Method, UniformGrid
from idsel_core.pruning.cross_attention import CrossAttention
from idsel_core.study.dataset import FULL
from idsel_core.study.knobs import knob_columns
from idsel_core.study.metrics.word_errors import normalised_words, word_errors
from idsel_core.study.open_backbone import weights_hash
from idsel_core.study.paths import PROJECT
from idsel_core.study.store.provenance import installed, sha256
from idsel_core.study.store.resume import ResumableRows

SPEECH = PROJECT / "data/speech/assembled"
THINNED = "thinned"
_REMEDY = "run `make speech`, which fetches about 240 MB of models and speech; all else works without them"


@dataclass(frozen=True)
class Setting:
    """What is transcribed with: a method, or all tokens, and what happens to the silence behind a clip."""

    method: Method | str
    silence: str = THINNED

    @property
    def acting(self) -> Method:
        """The method that selects; all tokens are a method too."""
        return UniformGrid(1.0) if isinstance(self.method, str) else self.method


def read_clips(folder: Path = SPEECH / "clips") -> pd.DataFrame:
    """Return the clips of a folder: clip_id, source, voice, speed, seconds, sha256, text, path.

    Parameters
    ----------
    folder : Path
        With clips.csv and a WAV file of 16 kHz for each clip.

    Raises
    ------
    FileNotFoundError
        If there is no clips.csv.
    """
    table = folder / "clips.csv"
    if not table.exists():
        raise FileNotFoundError(f"no clips in {folder}: {_REMEDY}")
    clips = pd.read_csv(table, dtype={"voice": str}, keep_default_na=False)
    return clips.assign(path=[str(folder / f"{name}.wav") for name in clips["clip_id"]])


def open_whisper(folder: Path) -> tuple[Whisper, Any]:
    """Load a Whisper model and its processor from a folder, in float32.

    Raises
    ------
    FileNotFoundError
        If the folder is missing.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no model in {folder}: {_REMEDY}")
    model, processor = load(folder, dtype="float32", local_files_only=True)
    backbone = adapter_for(model, processor=processor)
    if not isinstance(backbone, Whisper):
        raise ValueError(f"{folder} holds a {model.config.model_type}, not a whisper")
    return backbone, processor


@torch.no_grad()
def transcribe(
    folder: Path, clips: pd.DataFrame, settings: Sequence[Setting], batch: int = 8, resume: Path | None = None
) -> pd.DataFrame:
    """Transcribe clips greedily with each setting.

    A clip may have 6 tokens of text for each second and 10 more: what a model repeats without end is cut there, and
    counts as wrong up to there.

    Parameters
    ----------
    folder : Path
        Of the model.
    clips : DataFrame
        As of `read_clips`.
    settings : sequence of Setting
        What to transcribe with.
    batch : int
        Clips at a time; they are encoded once for all settings.
    resume : Path, optional
        Folder where rows are kept as they come; a killed run goes on there.

    Returns
    -------
    DataFrame
        One row a clip and setting, ready for `Results.write`; `correct` is the share of words that are right, 0 where
        errors outnumber words.
    """
    backbone, processor = open_whisper(folder)
    key = {
        "settings": [repr(setting) for setting in settings],
        "model": [folder.name, weights_hash(backbone.model)],
        "clips": hashlib.sha256(clips[["clip_id", "sha256", "text"]].to_json().encode()).hexdigest(),
        "batch": batch,
        "code": {path.name: sha256(path) for path in _code()},
        "packages": installed(),
    }
    kept = ResumableRows(resume, {} if resume is None else key)
    groups = [clips.iloc[start : start + batch] for start in range(0, len(clips), batch)]
    with tqdm(total=len(groups), desc=f"transcribe with {folder.name}", initial=kept.done, mininterval=5) as bar:
        for group in groups[kept.done :]:
            kept.add(_rows_of(backbone, processor, folder.name, group, settings))
            bar.update()
    return kept.rows()


def _code() -> Iterator[Path]:
    package = Path(__file__).parents[1]
    for name in ("backbones/whisper.py", "pruning/cross_attention.py", "study/speech.py"):
        yield package / name
    for part in ("methods", "selection", "scores"):
        yield from sorted((package / part).rglob("*.py"))


def _rows_of(
    backbone: Whisper, processor: Any, name: str, clips: pd.DataFrame, settings: Sequence[Setting]
) -> pd.DataFrame:
    waves = [_read_wave(path) for path in clips["path"]]
    inputs = processor(waves, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    inputs = {name: inputs[name] for name in backbone.image_inputs}
    limits = [math.ceil(6 * seconds) + 10 for seconds in clips["seconds"]]
    encoded = backbone.encode(**inputs)
    before = encoded.placeholders.tolist()
    rows = []
    for setting in settings:
        backbone.silence = setting.silence  # type: ignore[assignment]
        crossing = CrossAttention(backbone, setting.acting, encoded, inputs["input_features"])
        with calling(backbone.model), crossing.reading():
            said = _generate(backbone.model, inputs, max(limits))
        assert crossing.selection is not None
        texts = processor.batch_decode(
            [row[:limit] for row, limit in zip(said, limits, strict=True)], skip_special_tokens=True
        )
        counts = crossing.selection.counts.tolist()
        method = setting.method
        columns = knob_columns(method)
        if setting.silence != THINNED:
            columns["knobs"] = f"silence={setting.silence!r}"
        errors = [word_errors(answer, text) for answer, text in zip(clips["text"], texts, strict=True)]
        words = [len(normalised_words(answer).split()) for answer in clips["text"]]
        rows.append(
            pd.DataFrame(
                {
                    "backbone": name,
                    "revision": None,
                    "dtype": "float32",
                    "template": None,
                    "dataset": "speech",
                    "split": clips["source"].to_numpy(),
                    "question_id": clips["clip_id"].to_numpy(),
                    "image_id": clips["clip_id"].to_numpy(),
                    "question_type": clips["source"].to_numpy(),
                    "method": method if isinstance(method, str) else method.name,
                    **columns,
                    "positions": "keep",
                    "budget": 1.0 if isinstance(method, str) else float(method.budget),
                    "conversation": None,
                    "tokens_before": before,
                    "tokens_kept": counts,
                    "tokens_average": [float(count) for count in counts],
                    "prefill_gflops": np.nan,
                    "scoring_gflops": np.nan,
                    "on_objects": np.nan,
                    "prompt": None,
                    "metric": "word_accuracy",
                    "prediction": [text.strip() for text in texts],
                    "answer": clips["text"].to_numpy(),
                    "correct": [max(0.0, 1 - wrong / count) for wrong, count in zip(errors, words, strict=True)],
                    "chance": 0.0,
                }
            )
        )
    backbone.silence = "thinned"
    return pd.concat(rows, ignore_index=True)


def _generate(model: Any, inputs: dict[str, Tensor], limit: int) -> list[list[int]]:
    languages = getattr(model.generation_config, "is_multilingual", False)
    options = {"language": "en", "task": "transcribe"} if languages else {}
    output = model.generate(**inputs, **options, max_new_tokens=limit, do_sample=False, num_beams=1)
    return output.tolist()


def _read_wave(path: str) -> NDArray[np.float32]:
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16000, 1, 2):
            raise ValueError(f"{path} must have 16 kHz, one channel and 16 bits")
        return (np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768).astype(np.float32)


__all__ = ["FULL", "SPEECH", "Setting", "open_whisper", "read_clips", "transcribe"]
