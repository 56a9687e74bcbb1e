"""Questions about audio clips: what a model takes of them, and what is refused before it is loaded."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from idsel_core.methods import get_method
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.run.sweeps import read_sweep
from tests.support import hub_folders
from tests.support.commands import command

METHODS = [get_method("idselection", budget=budget) for budget in (8, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hub_folders.save("qwen2_audio", tmp_path_factory.mktemp("qwen2_audio"))


@pytest.fixture
def sounds(tmp_path):
    return hub_folders.tones(tmp_path / "sounds", count=2)


@pytest.fixture
def unread(folder, tmp_path):
    """A folder whose weights cannot be read, so that what is refused is refused before they are."""
    shutil.copytree(folder, tmp_path / "unread")
    (tmp_path / "unread/model.safetensors").write_bytes(b"none")
    return tmp_path / "unread"


def write(folder, seconds):
    wavfile.write(folder / "tone1.wav", 8000, np.zeros(round(8000 * seconds), np.int16))


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (1.0, None),
        (1.000125, r"audio clip 'tone1.wav' of sounds lasts 1.000125 s, and this model takes 1 s at most: cut it"),
        (75.5, r"audio clip 'tone1.wav' of sounds lasts 75.5 s, and this model takes 1 s at most: cut it"),
        (0.020125, None),
        (0.02, r"lasts 0.0200 s, which is too short for a token: it must be above 0.02 s"),
    ],
)
def test_a_clip_that_the_model_does_not_take_is_refused_before_it_is_loaded(unread, sounds, seconds, message):
    write(sounds, seconds)
    with pytest.raises(ValueError, match=message or "unread cannot be loaded"):
        open_study("sounds", backbone=unread, data=sounds)


def test_images_and_clips_are_asked_of_models_that_take_them(unread, sounds, tmp_path):
    photos = hub_folders.photographs(tmp_path / "photos", count=1)
    with pytest.raises(
        ValueError,
        match=r"type 'qwen2_audio', which takes audio clips, and the questions of photos are "
        "about images: give a table with a column 'audio', or a model of type gemma3, .*video_llava$",
    ):
        open_study("photos", backbone=unread, data=photos)
    with pytest.raises(
        ValueError,
        match=r"of type 'llava', which takes images, and the questions of sounds are about "
        "audio clips: give a table with a column 'image', or a model of type qwen2_audio$",
    ):
        open_study("sounds", backbone=MODEL, data=sounds)


def test_a_folder_that_does_not_tell_how_it_takes_clips_is_refused(unread, sounds):
    (unread / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="unread does not tell how it takes audio clips: "):
        open_study("sounds", backbone=unread, data=sounds)


def test_rows_depend_on_the_clips_and_on_how_the_model_takes_them(folder, sounds, tmp_path):
    def asked(backbone=folder):
        study = open_study("sounds", backbone=backbone, data=sounds)
        return json.dumps(study._key(METHODS, 2)), study.run(METHODS[1:])

    key, rows = asked()
    assert asked()[0] == key
    louder = shutil.copytree(folder, tmp_path / folder.name)
    settings = json.loads((louder / "processor_config.json").read_text())
    settings["feature_extractor"]["n_fft"] = 512
    (louder / "processor_config.json").write_text(json.dumps(settings))
    other, changed = asked(louder)
    assert other != key and not set(changed["template"]) & set(rows["template"])
    write(sounds, 0.5)
    other, changed = asked()
    assert other != key and changed["tokens_before"].tolist() == [22, 22, 12, 12]
    assert rows["tokens_before"].tolist() == [22, 22, 19, 19] and set(rows["tokens_kept"]) == {4}


def test_a_study_that_was_not_opened_refuses_a_clip_that_would_be_cut(folder, sounds):
    study = open_study("sounds", backbone=folder, data=sounds)
    write(sounds, 1.5)
    with pytest.raises(ValueError, match=r"an audio clip lasts 1.5 s, and this model takes 1 s at most"):
        study.run(METHODS)


def test_answers_do_not_depend_on_the_batch(folder, sounds):
    study = open_study("sounds", backbone=folder, data=sounds, new_tokens=3)
    frames = [study.run(["full", *METHODS], batch=batch).sort_values(["budget", "question_id"]) for batch in (1, 3)]
    assert frames[0]["prediction"].tolist() == frames[1]["prediction"].tolist()


def test_a_method_that_cannot_run_on_the_longest_clip_is_told_before_any_is_asked(folder, sounds):
    wavfile.write(sounds / "tone0.wav", 16000, np.zeros(4000, np.int16))
    study = open_study("sounds", backbone=folder, data=sounds)
    methods = [get_method(name, budget=5) for name in ("fastv", "topk")]
    usable, reasons = study.applicable(methods)
    assert usable == methods[1:] and list(reasons) == ["fastv"]
    assert "fastv cannot bring 19 visual tokens down to 5" in reasons["fastv"]


def test_a_method_that_cannot_run_on_the_largest_picture_is_told_before_any_is_asked(tmp_path):
    model = hub_folders.save("qwen2_5_vl", tmp_path / "model")
    photos = hub_folders.photographs(tmp_path / "photos", count=2)
    for number, side in enumerate((8, 64)):
        Image.new("RGB", (side, side), "red").save(photos / f"photo{number}.png")
    study = open_study("photos", backbone=model, data=photos)
    assert study.split.largest() == "photo1.png"
    few, many = study.run(["full"]).groupby("image_id")["tokens_before"].first().loc[["photo0.png", "photo1.png"]]
    assert few < many
    methods = [get_method(name, budget=2) for name in ("fastv", "topk")]
    usable, reasons = study.applicable(methods)
    assert usable == methods[1:] and f"fastv cannot bring {many} visual tokens down to 2" in reasons["fastv"]


def test_the_command_line_asks_about_clips_and_refuses_what_does_not_fit(folder, sounds, capsys):
    given = ["--backbone", str(folder), "--data", str(sounds), "--split", "sounds", "--budget", "4"]
    assert command("evaluate")(given) == 0
    assert "4 questions of split sounds" in capsys.readouterr().out
    write(sounds, 3)
    assert command("evaluate")(given) != 0
    told = capsys.readouterr().err
    assert told.startswith("error: audio clip 'tone1.wav' of sounds lasts 3 s") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dycoke", "dycoke compares frames of a video, and the data set holds audio clips"),
        ("evs", "evs compares frames of a video, and the data set holds audio clips"),
        ("vidcom2", "vidcom2 compares frames of a video, and the data set holds audio clips"),
        ("downsample", "downsample makes images smaller, and .* takes audio clips"),
        ("idselection", None),
    ],
)
def test_a_grid_is_checked_before_a_job_runs(unread, sounds, tmp_path, method, message):
    grid = tmp_path / "grid.yaml"
    asked = {"backbone": str(unread), "data": str(sounds), "split": "sounds", "method": method, "budget": 4}
    grid.write_text(json.dumps(asked))
    if message is None:
        read_sweep(grid).check()
        write(sounds, 3)
        message = "audio clip 'tone1.wav' of sounds lasts 3 s"
    with pytest.raises(ValueError, match=message):
        read_sweep(grid).check()
