"""Word errors, their rates and intervals, transcripts by a tiny model, and what was published of Whisper."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from idsel_core import IDSelection, UniformGrid
from idsel_core.study.dataset import FULL
from idsel_core.study.metrics.word_errors import word_errors
from idsel_core.study.report import speech
from idsel_core.study.speech import Setting, open_whisper, read_clips, transcribe
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from tests.support import tiny_whisper
from tests.support.project import PROJECT

SENTENCES = [("espeak-ng", "One or two."), ("espeak-ng", "Not so."), ("reading", "All of it.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("speech")
    tiny_whisper.write_folder(made, SENTENCES)
    return made


def edits(reference: list[str], said: list[str]) -> int:
    """Return the least number of words to substitute, leave out or put in, by the recurrence of Levenshtein."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(reference, 1):
        before, row = row, [i]
        for j, other in enumerate(said, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (word != other)))
    return row[-1]


def test_word_errors_equal_the_recurrence():
    drawn = np.random.default_rng(0)
    for _ in range(50):
        words, said = (drawn.choice(list("bcdfg"), size=drawn.integers(1, 9)).tolist() for _ in range(2))
        assert word_errors(" ".join(words), " ".join(said)) == edits(words, said)


@pytest.mark.parametrize(
    ("reference", "said", "errors"),
    [
        ("He has twenty three birds.", "he has 23 birds", 0),
        ("I don't know, do you?", "I do not know; do you", 0),
        ("The cat ran away.", "", 4),
        ("Stop.", "stop stop stop", 2),
    ],
)
def test_words_are_normalised_before_they_are_compared(reference, said, errors):
    assert word_errors(reference, said) == errors


def test_a_reference_without_words_is_refused():
    with pytest.raises(ValueError, match=r"the reference .\?!. has no word"):
        word_errors("?!", "a")


def made_up() -> pd.DataFrame:
    """Return rows of three clips and three settings, of which the uniform grid makes 0, 1 and 4 errors."""
    texts = [("one day", "one day"), ("a b c d", "a b c"), ("x y", "u v w z")]
    lines = []
    for number, (answer, said) in enumerate(texts):
        for method, prediction in ((FULL, answer), ("uniform", said), ("topk", said if number else "day")):
            shared = {"backbone": "m", "split": "espeak-ng", "question_id": f"clip-{number}", "knobs": None}
            lines.append({**shared, "method": method, "budget": 0.5, "answer": answer, "prediction": prediction})
    return pd.DataFrame(lines)


def test_a_rate_is_errors_over_words_and_differences_are_paired():
    rates = speech.word_error_rates(made_up(), resamples=400).set_index("method")
    assert rates["rate"].to_dict() == {FULL: 0.0, "uniform": 5 / 8, "topk": 6 / 8}
    assert rates.loc["topk", "gap"] == pytest.approx(1 / 8) and np.isnan(rates.loc["uniform", "gap"])
    assert set(rates["words"]) == {8} and set(rates["clips"]) == {3}
    draw = np.random.default_rng(0).integers(3, size=(400, 3))
    errors, words = np.array([[0, 1, 4], [1, 1, 4]]), np.array([2, 4, 2])
    drawn = errors[:, draw].sum(2) / words[draw].sum(1)
    for method, values in (("uniform", drawn[0]), ("topk", drawn[1])):
        np.testing.assert_allclose(
            rates.loc[method, ["low", "high"]].astype(float), np.quantile(values, [0.025, 0.975])
        )
    bounds = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
    np.testing.assert_allclose(rates.loc["topk", ["gap_low", "gap_high"]].astype(float), bounds)


def test_settings_with_other_clips_are_refused():
    with pytest.raises(ValueError, match="settings were asked about different clips"):
        speech.word_error_rates(made_up().iloc[:-1])


def test_all_tokens_transcribe_as_the_model_does(folder):
    clips = read_clips(folder / "clips").head(2)
    settings = [
        Setting(FULL),
        Setting(UniformGrid(1.0)),
        Setting(IDSelection(0.25)),
        Setting(UniformGrid(0.25), "kept"),
    ]
    rows = transcribe(folder / "model", clips, settings, batch=2)
    backbone, processor = open_whisper(folder / "model")
    for place, clip in enumerate(clips.itertuples()):
        wave = np.frombuffer((folder / f"clips/clip-{place}.wav").read_bytes()[44:], "<i2") / 32768
        inputs = processor(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
        limit = int(np.ceil(6 * clip.seconds)) + 10
        with torch.no_grad():
            said = backbone.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        wanted = processor.batch_decode(said, skip_special_tokens=True)[0].strip()
        of_clip = rows[rows["question_id"] == clip.clip_id]
        assert of_clip["prediction"].iloc[:2].tolist() == [wanted] * 2
        own = (len(wave) // 160 + 1) // 2
        assert of_clip["tokens_before"].tolist() == [own] * 4
        assert of_clip["tokens_kept"].tolist() == [own, own, *[int(0.25 * own + 0.5)] * 2]
    assert rows["knobs"].dropna().unique().tolist() == ["silence='kept'"]


def test_a_killed_run_goes_on(folder, tmp_path, monkeypatch):
    clips, settings = read_clips(folder / "clips"), [Setting(FULL)]
    whole = transcribe(folder / "model", clips, settings, batch=1)
    from idsel_core.study import speech as study

    monkeypatch.setattr(study.ResumableRows.__init__, "__defaults__", (0.0,))
    plain, calls = study._rows_of, []

    def failing(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(study, "_rows_of", failing)
    with pytest.raises(KeyboardInterrupt):
        transcribe(folder / "model", clips, settings, batch=1, resume=tmp_path)
    again = transcribe(folder / "model", clips, settings, batch=1, resume=tmp_path)
    assert len(calls) == 4
    pd.testing.assert_frame_equal(again, whole, check_dtype=False)


def test_without_models_and_clips_the_remedy_is_named(tmp_path):
    for missing in (lambda: read_clips(tmp_path), lambda: open_whisper(tmp_path / "whisper-base")):
        with pytest.raises(FileNotFoundError, match="run `make speech`, which fetches about 240 MB"):
            missing()


def test_what_was_published_is_what_the_rows_say():
    results = Results(PROJECT / "docs/rows")
    rows, note = results.frame("18_speech"), results.provenance("18_speech")
    assert note["dirty"] is False and note["commit"]
    full = rows[rows["method"] == FULL]
    assert (full["tokens_kept"] == full["tokens_before"]).all()
    rates = speech.word_error_rates(rows)
    for name, text in (
        ("speech", speech.speech_table(rates).to_markdown(index=False)),
        ("speech_said", speech.about_speech(rates)),
    ):
        page = PROJECT / f"docs/tables/{name}.md"
        assert page.read_text().startswith(text)
        assert read_origin(page)["results"]["rows/18_speech"]["commit"] == note["commit"]
