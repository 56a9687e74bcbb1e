"""The study: splits, cached encodings, rows, and clear words for what is wrong."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoProcessor

from idsel_core import prune
from idsel_core.methods import UniformGrid, get_method
from idsel_core.study.dataset import BLIND, FULL, read_split
from idsel_core.study.encodings import encode_split, fingerprint, read_encoding, write_encoding
from idsel_core.study.full_prompts import PromptWriter
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import DATA, MODEL
from idsel_core.study.report.tables import accuracy
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return open_study("validation", limit=7, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def rows(study):
    return study.run([FULL, BLIND, get_method("idselection", budget=16), get_method("downsample", budget=20)])


def test_there_is_a_row_for_each_question_and_method(study, rows):
    assert len(rows) == 4 * len(study.split.questions)
    assert rows.groupby("method")["tokens_kept"].unique().map(list).to_dict() == {
        FULL: [576], BLIND: [0], "idselection": [16], "downsample": [16],
    }  # fmt: skip
    assert set(rows["tokens_before"]) == {0, 576}
    assert (rows["correct"] == (rows["prediction"] == rows["answer"])).all()


def test_rows_fit_the_store(rows, tmp_path):
    results = Results(tmp_path)
    results.write("trial", rows, provenance({}))
    assert len(results.frame("trial")) == len(rows)


@pytest.mark.parametrize(
    ("name", "knobs", "left"),
    [
        ("idselection", {"budget": 64, "importance": "saliency"}, 64),
        ("fastv", {"budget": 160}, 56),
        ("sparsevlm", {"budget": 40, "budget_convention": "final"}, 40),
    ],
)
def test_predictions_are_those_of_prune(study, name, knobs, left):
    """The shared encoding and the batch change nothing: one image and question through prune() give the same answer."""
    method = get_method(name, **knobs)
    stored = study.run([method])
    model, processor = study.backbone.model, study.processor
    for (_, asked), expected in zip(study.split.questions.head(4).iterrows(), stored["prediction"], strict=False):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked["question"]}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=study.split.picture(asked["image_id"]), text=text, return_tensors="pt")
        with prune(model, method) as run, torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=1, do_sample=False)
        assert run.report[0].after == left
        assert processor.decode(out[0, inputs["input_ids"].shape[1] :]).strip() == expected
    assert set(stored["tokens_kept"]) == {left}


def test_a_job_of_several_settings_answers_as_each_by_itself(study):
    """Nothing leaks between settings that share batches, selections and answers; ties of logits aside."""
    methods = [
        get_method(name, **knobs)
        for name, knobs in (
            ("idselection", {"budget": 32}),
            ("idselection", {"budget": 8}),
            ("idselection", {"budget": 8, "gamma": 1e9}),
            ("topk", {"budget": 8}),
            ("visionzip", {"budget": 32}),
            ("tome", {"budget": 60}),
            ("fastv", {"budget": 160}),
            ("downsample", {"budget": 20}),
            ("uniform", {"budget": 16}),
        )
    ]
    usable, _ = study.applicable(methods)
    assert len(usable) > 6
    asked = [FULL, *usable, BLIND]
    together = study.run(asked, batch=5)
    apart = [study.run([method]) for method in asked]
    rows = together.groupby(["method", "budget", "gamma"], sort=False, dropna=False)
    assert len(rows) == len(asked)
    for (_, found), expected in zip(rows, apart, strict=True):
        pd.testing.assert_frame_equal(found.reset_index(drop=True), expected, check_dtype=False)


def test_equal_prompts_are_answered_once_and_beginnings_are_shared(study):
    read = []
    hook = study.backbone.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: read.append(kwargs["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    try:
        for methods in ([get_method("topk", budget=8)], [get_method("topk", budget=8)] * 4):
            study.run(methods)
            read.append(0)
    finally:
        hook.remove()
    once, again = read.index(0), len(read)
    assert sum(read[:once]) == sum(read[once:again])


def test_where_memory_runs_out_questions_are_asked_in_halves(study, rows):
    """Memory does not run out here when it should, so a hook says that it did."""

    def refuse(_module, _args, kwargs):
        if len(kwargs["inputs_embeds"]) > 2:
            raise torch.OutOfMemoryError("out of memory")

    hook = study.backbone.language_model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        again = study.run([FULL, BLIND, get_method("idselection", budget=16), get_method("downsample", budget=20)])
    finally:
        hook.remove()
    by = ["method", "question_id"]
    pd.testing.assert_frame_equal(
        again.sort_values(by, ignore_index=True), rows.sort_values(by, ignore_index=True), check_dtype=False
    )


def test_share_on_objects_counts_boxes(study, rows):
    name = study.split.images.index[0]
    inside = study.on_objects(name)
    full = rows[(rows["method"] == FULL) & (rows["image_id"] == name)]["on_objects"]
    assert np.allclose(full, inside.mean())
    assert rows.loc[rows["method"] == BLIND, "on_objects"].isna().all()
    box = study.split.images.at[name, "objects"][0]
    row, column = (box["top"] + box["bottom"]) // 28, (box["left"] + box["right"]) // 28
    assert inside[row * 24 + column]


def test_an_encoding_comes_back_from_its_file(study, tmp_path):
    path = tmp_path / "split.safetensors"
    write_encoding(study.encoded, path, {"images": "a"})
    again = read_encoding(path, {"images": "a"})
    assert torch.equal(again.encoder_features, study.encoded.encoder_features)
    assert torch.equal(again.views["cls_attention"](), study.encoded.views["cls_attention"]())
    assert read_encoding(path, {"images": "b"}) is None
    path.write_bytes(path.read_bytes()[:1000])
    assert read_encoding(path, {"images": "a"}) is None
    assert read_encoding(tmp_path / "none.safetensors", {}) is None


def test_encoding_does_not_depend_on_the_batch(study):
    one = encode_split(study.backbone, study.processor, study.split, batch=1)
    torch.testing.assert_close(one.encoder_features, study.encoded.encoder_features, rtol=1e-3, atol=1e-3)


def test_a_limit_takes_all_families(study):
    assert study.split.questions["question_type"].value_counts().to_dict() == dict.fromkeys(
        study.split.questions["question_type"].unique(), 1
    )
    assert len(study.encoded) == study.split.questions["image_id"].nunique()


def test_accuracy_has_chance_beside_it(rows):
    table = accuracy(rows)
    assert table.loc[("chance", 0.0), "existence"] == 0.5
    assert table.loc[(FULL, 576.0)].between(0, 1).all()


@pytest.fixture()
def copied(tmp_path):
    for path in DATA.glob("hard-*.parquet"):
        shutil.copy(path, tmp_path)
    return tmp_path


def test_an_unknown_part_names_the_known(copied):
    with pytest.raises(FileNotFoundError, match=r"no split 'tset' in .*; there are: hard"):
        read_split("tset", copied)


@pytest.mark.parametrize("limit", [-1, 2.5, True])
def test_a_bad_limit_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be a number of questions"):
        read_split("validation", limit=limit)


@pytest.mark.parametrize("which", ["questions", "images"])
def test_a_truncated_parquet_is_named(copied, which):
    path = copied / f"hard-{which}.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"hard-{which}.parquet cannot be read .*git checkout"):
        read_split("hard", copied)


def test_a_missing_column_is_named(copied):
    path = copied / "hard-questions.parquet"
    pd.read_parquet(path).drop(columns="answer").to_parquet(path)
    with pytest.raises(ValueError, match="lacks the columns answer; it has question_id"):
        read_split("hard", copied)


def test_a_lost_image_is_named(copied):
    path = copied / "hard-images.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    with pytest.raises(ValueError, match="does not hold, the first is 'hard-0000'"):
        read_split("hard", copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("folder", "there is no folder .*model: a backbone is a hub id such as .*, or a folder"),
        ("missing", "holds no weights"),
        ("truncated", "cannot be read"),
    ],
)
def test_bad_weights_are_told(tmp_path, damage, message):
    folder = tmp_path / "model"
    if damage != "folder":
        shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("companion"))
        weights = folder / "model.safetensors"
        if damage == "missing":
            weights.unlink()
        else:
            weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_backbone(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "bert"}', "holds a model of type 'bert', which is not supported; supported: gemma3"),
        ('{"model_type": "whisper"}', "which writes down speech and takes no questions; notebooks/18_speech.ipynb"),
        ("{}", "holds a model of type None"),
        ("[]", "config.json of .* cannot be read"),
        ("{", "config.json of .* cannot be read"),
    ],
)
def test_models_that_cannot_be_evaluated_are_refused_before_they_are_loaded(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        open_backbone(tmp_path)


def test_a_hub_id_without_a_network_is_answered_in_words(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="there is no such folder, and the hub gave no checkpoint of this name"):
        open_backbone("nobody/has-this-model")


def test_the_fingerprint_tells_weights_apart(study, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert fingerprint(study.split) != fingerprint(study.split, tmp_path)


def test_what_cannot_run_says_why_and_the_rest_runs(study):
    # The stored encoding lacks the keys that HiPrune's depth needs; FastV's layers before the drop read 576.
    tried = [get_method("uniform", budget=600), get_method("hiprune", budget=16)]
    tried += [get_method("fastv", budget=budget) for budget in (200, 1)]
    usable, reasons = study.applicable(tried)
    assert usable == [tried[0], tried[2]]
    assert set(reasons) == {"hiprune", "fastv at 1"}
    assert "tower_depths=(0.375,)" in reasons["hiprune"]
    assert "the least budget for this model is" in reasons["fastv at 1"]


def test_a_fault_of_a_method_is_no_refusal(study, monkeypatch):
    def faulty(self, tokens):
        return int("no number")

    monkeypatch.setattr(UniformGrid, "select", faulty)
    with pytest.raises(ValueError, match="invalid literal"):
        study.applicable([get_method("uniform", budget=16)])


def test_deep_views_are_encoded_on_demand_and_not_stored(tmp_path):
    methods = [get_method("hiprune", budget=16), get_method("vscan", budget=32)]
    methods += [replace(methods[1], budget_convention="final"), replace(methods[1], layer=None)]
    deep = open_study("validation", limit=7, cache=tmp_path, tower_depths=(0.25, 0.375))
    assert deep.applicable(methods) == (methods, {})
    hiprune, average, final, before = (deep.run([method]) for method in methods)
    assert set(hiprune["tokens_kept"]) == {16}
    assert average["tokens_average"].sub(32).abs().max() <= 0.5 and set(average["convention"]) == {"average"}
    assert set(final["tokens_kept"]) == {32} and set(final["convention"]) == {"final"}
    assert set(before["tokens_average"]) == {32} and before["convention"].isna().all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["idselection"], "'idselection' is no method: give one such as get_method"),
        ("full", "give a list of methods"),
        (get_method("topk", budget=4), "give a list of methods"),
        ([type(get_method("topk", budget=4))], "is no method"),
    ],
)
def test_what_is_no_method_is_refused(study, methods, message):
    with pytest.raises(TypeError, match=message):
        study.run(methods)


def test_a_question_that_holds_the_mark_of_an_image_is_refused():
    mark = "<image>"
    processor = AutoProcessor.from_pretrained(MODEL)
    writer = PromptWriter(processor, torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=f"the question 'What is {mark}\\?' holds '{mark}', which this model reads"):
        writer.text(f"What is {mark}?", 1)


def test_a_type_of_weights_that_torch_does_not_have_is_refused_before_loading():
    with pytest.raises(ValueError, match=r"dtype must be auto or a type of torch .* not 'float7'"):
        open_study("validation", limit=7, dtype="float7")
