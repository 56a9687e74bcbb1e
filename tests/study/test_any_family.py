"""The study asks models of every family through their own processors, and answers as `prune` does."""

import importlib.util
import json

import pandas as pd
import pytest
import torch

from idsel_core import load, prune
from idsel_core.methods import get_method
from idsel_core.study.backbone_folders import backbone_name, check_evaluable, is_hub_id
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.open_study import open_study
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support import hub_folders

METHODS = [FULL, get_method("topk", budget=5, importance="saliency"), get_method("idselection", budget=4), BLIND]
FAMILIES = [
    pytest.param(name, marks=pytest.mark.skipif(lacking is not None, reason=f"{lacking} is not installed"))
    for name in hub_folders.PROCESSORS
    for lacking in ["num2words" if name == "smolvlm" and not importlib.util.find_spec("num2words") else None]
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return hub_folders.photographs(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            made[family] = hub_folders.save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


def by_prune(study, method, question):
    """Return the answer to one question by `prune`, from the processor's own inputs."""
    names, split = question["image_ids"], study.split
    if split.kind == "audio":
        rate = hub_folders.RATE
        shown = {"audio": [split.clip(name, rate) for name in names], "sampling_rate": rate}
    else:
        shown = {"images": [[split.picture(name) for name in names]]}
    text = study.writer.text(question["question"], len(names))
    special = {"add_special_tokens": False} if text.startswith("<s>") else {}
    inputs = study.processor(text=[text], **shown, return_tensors="pt", **special)
    with prune(study.backbone.model, method), torch.no_grad():
        out = study.backbone.model.generate(**inputs, max_new_tokens=study.new_tokens, do_sample=False)
    return study.processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_prune_does(family, folder, photos, tmp_path):
    data = hub_folders.tones(tmp_path / "photos") if family == "qwen2_audio" else photos
    study = open_study("photos", backbone=folder(family), data=data, new_tokens=3)
    rows = study.run(METHODS, batch=3)
    assert len(rows) == len(METHODS) * len(study.split.questions)
    assert rows["tokens_kept"].groupby(rows["method"], sort=False).unique().map(list)[
        ["topk", "idselection"]
    ].tolist() == [
        [5],
        [4],
    ]
    for method in METHODS[1:3]:
        found = rows[rows["method"] == method.name].set_index("question_id")["prediction"]
        for _, question in study.split.questions.iloc[::3].iterrows():
            assert found[question["question_id"]] == by_prune(study, method, question)
    full = rows[rows["method"] == FULL]
    assert (full["tokens_kept"] == full["tokens_before"]).all() and set(full["budget"]) == {1.0}
    assert (rows.loc[rows["method"] == BLIND, "tokens_before"] == 0).all()
    assert set(rows["backbone"]) == {folder(family).name} and set(rows["metric"]) == {"exact_match"}
    results = Results(tmp_path / "rows")
    results.write("trial", rows, provenance({}))
    assert len(results.frame("trial")) == len(rows)


def test_several_images_a_question(folder, tmp_path):
    hub_folders.photographs(tmp_path)
    shown = [["photo0.png", "photo1.png"], ["photo2.png"], ["photo0.png", "photo1.png"]]
    pd.DataFrame({"image": shown, "question": ["what is in the picture ?"] * 3, "answer": ["red"] * 3}).to_json(
        tmp_path / "pairs.jsonl", orient="records", lines=True
    )
    (tmp_path / "photos.csv").unlink()
    study = open_study("pairs", backbone=folder("qwen2_5_vl"), data=tmp_path, new_tokens=3)
    rows = study.run(METHODS[:3])
    topk = rows[rows["method"] == "topk"]
    assert topk["tokens_kept"].tolist() == [10, 5, 10]
    assert topk["tokens_before"].tolist() == [22, 12, 22]
    for (_, question), answer in zip(study.split.questions.iterrows(), topk["prediction"], strict=True):
        assert answer == by_prune(study, METHODS[1], question)


def test_several_clips_a_question(folder, tmp_path):
    hub_folders.tones(tmp_path)
    shown = [["tone0.wav", "tone1.wav"], ["tone2.wav"], ["tone1.wav", "tone0.wav"]]
    pd.DataFrame({"audio": shown, "question": ["what is in the picture ?"] * 3, "answer": ["red"] * 3}).to_json(
        tmp_path / "pairs.jsonl", orient="records", lines=True
    )
    study = open_study("pairs", backbone=folder("qwen2_audio"), data=tmp_path, new_tokens=3)
    rows = study.run(METHODS[:3])
    topk = rows[rows["method"] == "topk"]
    assert topk["tokens_kept"].tolist() == [10, 5, 10]
    assert topk["tokens_before"].tolist() == [22 + 19, 16, 19 + 22]
    for (_, question), answer in zip(study.split.questions.iterrows(), topk["prediction"], strict=True):
        assert answer == by_prune(study, METHODS[1], question)


def test_an_image_is_encoded_once_for_all_settings_and_questions(folder, photos, monkeypatch):
    study = open_study("photos", backbone=folder("internvl"), data=photos)
    seen = []
    plain = study.backbone.encode
    monkeypatch.setattr(study.backbone, "encode", lambda **given: seen.append(given["tiles"]) or plain(**given))
    study.run([get_method("idselection", budget=4, gamma=gamma) for gamma in (1.0, 5.0, 20.0)], batch=4)
    assert [len(tiles) for tiles in seen] == [2, 2]


def test_rows_depend_on_template_dtype_and_prompt(folder, photos, tmp_path):
    source = folder("llava_next")
    plain = open_study("photos", backbone=source, data=photos)
    half = open_study("photos", backbone=source, data=photos, dtype="bfloat16")
    other = tmp_path / "other"
    other.mkdir()
    for file in source.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    path = other / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant :", "assistant ."))
    changed = open_study("photos", backbone=other, data=photos)
    keys = [study._key(METHODS, 5) for study in (plain, half, changed)]
    assert len({json.dumps(key) for key in keys}) == 3
    frames = [study.run(METHODS[:1]) for study in (plain, half, changed)]
    assert [set(frame["dtype"]) for frame in frames] == [{"float32"}, {"bfloat16"}, {"float32"}]
    assert set(frames[0]["template"]) != set(frames[2]["template"])
    assert frames[0]["prompt"].nunique() == 2


def test_a_processor_without_torchvision_says_what_is_lost(folder):
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    with pytest.warns(UserWarning, match="prepares images with Pillow .* and refuses videos"):
        _, processor = load(folder("qwen2_5_vl"))
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    with pytest.raises(ImportError, match="reading videos needs torchvision"):
        processor.video_processor([])


@pytest.mark.parametrize(
    ("backbone", "hub", "name"),
    [
        ("llava-hf/llava-1.5-7b-hf", True, "llava-hf/llava-1.5-7b-hf"),
        ("./a/b", False, "b"),
        ("data/backbone/assembled", False, "embedded"),
        ("data/smollm2/assembled", False, "smollm2"),
        ("model", False, "model"),
    ],
)
def test_a_hub_id_is_told_from_a_folder(backbone, hub, name):
    assert is_hub_id(backbone) is hub
    assert backbone_name(backbone) == name


def test_an_unsupported_family_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="holds a model of type 'bert', which is not supported; supported: gemma3"):
        check_evaluable(tmp_path)


def test_quantisation_that_is_not_installed_is_refused_with_a_sentence(folder):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(ImportError, match="needs bitsandbytes: pip install"):
        open_backbone(folder("llava_next"), quantisation="int4")


def test_a_job_of_a_model_loaded_otherwise_has_a_name_of_its_own():
    from idsel_core.study.backbone_folders import job_name

    assert job_name("02_gamma", "embedded") == "02_gamma"
    assert job_name("02_gamma", "embedded int4") == "02_gamma-embedded_int4"
    assert job_name("02_gamma", "org/model", "gqa", "val") == "02_gamma-org_model-gqa-val"
