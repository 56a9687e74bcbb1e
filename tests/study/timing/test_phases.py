"""Time by phase: what is recorded, and that each phase does its work; never how long it took."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from idsel_core import Downsample, IDSelection, Random, UniformGrid, adapter_for, get_method, prune
from idsel_core.methods import FastV
from idsel_core.study.cost import flops_analytic, flops_analytic_step, kv_cache_bytes
from idsel_core.study.timing.example_inputs import example_inputs
from idsel_core.study.timing.ideal import time_ideal
from idsel_core.study.timing.phases import time_methods
from tests.support import tiny
from tests.support.commands import command
from tests.support.families import FAMILIES

main = command("time")

PHASES = ["encode", "select", "prefill", "decode"]
SIZES = {
    "gemma3": None,
    "idefics3": (48, 24),
    "internvl": (24, 48),
    "llava_next": (30, 48),
    "llava_next_video": (30, 48),
    "llava_onevision": (96, 40),
    "paligemma": None,
    "qwen2_audio": 41,
    "smolvlm": (36, 72),
    "video_llava": None,
}
ONCE = {"runs": 1, "warmup": 0, "new_tokens": 1}


@pytest.fixture(scope="module")
def backbone():
    return adapter_for(tiny.build("clip", "eager"))


def test_phases_and_circumstances_are_recorded(backbone):
    inputs = tiny.prompts((1, 2))
    timings = time_methods(backbone, inputs, [IDSelection(7)], runs=4, warmup=1, new_tokens=3)
    table = pd.DataFrame(timings)
    assert table["phase"].tolist() == PHASES
    assert (table["low_ms"] <= table["median_ms"]).all()
    assert (table["median_ms"] <= table["high_ms"]).all()
    shared = {"runs": 4, "warmup": 1, "batch": 2, "images": 3, "kept_tokens": 7, "device": "cpu", "dtype": "float32"}
    for timing in timings:
        record = asdict(timing)
        assert {name: record[name] for name in shared} == shared
        assert record["attention"] == "eager"
        assert record["threads"] == torch.get_num_threads()
        assert record["prompt_tokens"] == inputs["input_ids"].shape[1] - 2 * (tiny.TOKENS - 7)


def test_without_a_method_nothing_is_selected(backbone):
    inputs = tiny.prompts((1,))
    timings = time_methods(backbone, inputs, [None], **ONCE)
    assert [timing.phase for timing in timings] == ["encode", "prefill", "decode"]
    assert {timing.prompt_tokens for timing in timings} == {inputs["input_ids"].shape[1]}
    assert {timing.kept_tokens for timing in timings} == {tiny.TOKENS}


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "sparsevlm", "dart"])
def test_methods_inside_the_language_model_are_timed(name):
    model, inputs = tiny.build("clip", "eager", 6), tiny.prompts((1,))
    method, said = get_method(name, budget=20), []
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: said.append(logits[:, -1].argmax(-1)))
    timings = time_methods(adapter_for(model), inputs, [method, None], runs=1, warmup=0, new_tokens=3)
    hook.remove()
    assert [(timing.method, timing.phase) for timing in timings] == [
        *((name, phase) for phase in PHASES),
        *(("full", phase) for phase in PHASES if phase != "select"),
    ]
    with prune(model, method) as run:
        answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(torch.stack(said[:4], 1), answer[:, -4:])
    layers, text = run.report[0].layers, inputs["input_ids"].shape[1] - tiny.TOKENS
    whole = timings[0]
    assert (whole.tokens_before, whole.kept_tokens) == (tiny.TOKENS, layers[-1])
    assert whole.average_tokens == pytest.approx(sum(layers) / 6)
    assert whole.convention == "average" and whole.budget == 20
    assert whole.cache_bytes == kv_cache_bytes(model.config, layers, text, torch.float32)
    cost = flops_analytic(model.config, layers, text, method=method)
    assert [timing.flops for timing in timings[:3]] == [cost.encode, cost.select, cost.language_model]


def test_all_methods_take_turns(backbone):
    turns, seen = [], []
    for name in ("uniform", "random"):
        kind = type(get_method(name, budget=7))
        seen.append((kind, kind.select))
        kind.select = lambda self, tokens, own=kind.select: turns.append(self.name) or own(self, tokens)
    try:
        time_methods(backbone, tiny.prompts((1,)), [UniformGrid(7), Random(7)], runs=2, warmup=1, new_tokens=1)
    finally:
        for kind, own in seen:
            kind.select = own
    assert turns == ["uniform", "random"] * 3


def test_a_prompt_cut_by_hand_gives_the_same_answer_and_takes_no_selection(backbone):
    model, inputs, method = backbone.model, tiny.prompts((1, 2)), IDSelection(7)
    answers = []
    own = model.generate
    model.generate = lambda **given: answers.append(own(**given)) or answers[-1]
    try:
        timings = time_ideal(backbone, inputs, method, runs=1, warmup=0, new_tokens=2)
    finally:
        del model.generate
    pruned, ideal, full = answers
    assert torch.equal(pruned[:, -3:], ideal[:, -3:])
    assert [timing.method for timing in timings] == ["idselection", "ideal", "full"]
    assert [timing.phase for timing in timings] == ["end to end"] * 3
    assert [timing.kept_tokens for timing in timings] == [7, 7, tiny.TOKENS]
    assert timings[0].over_ideal == pytest.approx(timings[0].median_ms / timings[1].median_ms)
    assert timings[0].over_full == pytest.approx(timings[0].median_ms / timings[2].median_ms)
    assert (timings[1].over_ideal, timings[2].over_full) == (1, 1)
    assert timings[0].over_ideal_low is timings[0].over_ideal_high is None
    assert full.shape[1] == inputs["input_ids"].shape[1] + 3


def test_whoever_takes_part_comes_first_in_every_third_turn(backbone):
    model, inputs, order = backbone.model, tiny.prompts((1,)), []
    own = model.generate

    def noted(**given):
        by_hand = "ideal" if "mm_encoder_outputs" in given else "full"
        order.append(by_hand if model.generate is noted else "pruned")
        return own(**given)

    model.generate = noted
    try:
        timings = time_ideal(backbone, inputs, IDSelection(7), runs=6, warmup=0, new_tokens=1)
    finally:
        del model.generate
    turns = [order[at : at + 3] for at in range(0, len(order), 3)]
    assert turns == [["pruned", "ideal", "full"], ["ideal", "full", "pruned"], ["full", "pruned", "ideal"]] * 2
    assert all(timing.over_ideal_low <= timing.over_ideal <= timing.over_ideal_high for timing in timings)
    assert timings[1].over_ideal_low == timings[1].over_ideal_high == 1


def test_the_flops_of_whole_answers_differ_by_the_selection(backbone):
    inputs = tiny.prompts((1,))
    pruned, ideal, full = time_ideal(backbone, inputs, IDSelection(7), **ONCE)
    text = inputs["input_ids"].shape[1] - tiny.TOKENS
    assert pruned.flops - ideal.flops == flops_analytic(backbone.model.config, 7, text, method=IDSelection(7)).select
    assert full.flops > pruned.flops


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FastV(20), "fastv drops tokens inside the language model: no shorter prompt is like it"),
        (Downsample(9), "downsample makes the image smaller: no shorter prompt is like it"),
    ],
)
def test_methods_without_a_prompt_cut_by_hand_are_refused(backbone, method, message):
    with pytest.raises(ValueError, match=message):
        time_ideal(backbone, tiny.prompts((1,)), method, **ONCE)


def test_positions_of_several_axes_have_no_prompt_cut_by_hand():
    family = FAMILIES["qwen2_vl"]
    with pytest.raises(ValueError, match="cut by hand where positions have several axes"):
        time_ideal(adapter_for(family.build()), family.alone(((0,),), 0), Random(5), **ONCE)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_example_inputs_of_every_family_are_read(family):
    backbone = adapter_for(family.build())
    size = SIZES.get(family.name, (24, 16))
    inputs = example_inputs(backbone.model.config, 9, size, batch=2)
    timings = time_methods(backbone, inputs, [None, Random(5)], runs=1, warmup=0, new_tokens=1)
    assert {timing.kept_tokens for timing in timings if timing.method == "random"} == {5}
    assert {timing.batch for timing in timings} == {2} == {timing.images for timing in timings}
    cost = flops_analytic(
        backbone.model.config, 5, inputs["input_ids"].shape[1] - timings[0].tokens_before, image_size=size
    )
    assert {t.flops for t in timings if t.phase == "encode"} == {2 * cost.encode}
    assert {t.flops for t in timings if t.phase == "prefill" and t.method == "random"} == {2 * cost.language_model}


def test_a_prompt_of_several_images_has_no_flops(backbone):
    assert {timing.flops for timing in time_methods(backbone, tiny.prompts((2,)), [Random(7)], **ONCE)} == {None}


def test_a_clip_has_no_prompt_cut_by_hand():
    family = FAMILIES["qwen2_audio"]
    with pytest.raises(ValueError, match="cut by hand: Qwen2AudioForConditionalGeneration has no get_image_features"):
        time_ideal(adapter_for(family.build()), family.alone(((0,),), 0), Random(5), **ONCE)


def test_a_prompt_without_a_clip_is_refused():
    family = FAMILIES["qwen2_audio"]
    with pytest.raises(ValueError, match="inputs lack input_features"):
        time_methods(adapter_for(family.build()), {"input_ids": torch.ones(1, 3, dtype=torch.long)}, [None])


def test_attention_is_that_of_the_phase():
    model = tiny.build("siglip", "sdpa")
    model.model.vision_tower.set_attn_implementation("eager")
    timings = time_methods(adapter_for(model), tiny.prompts((1,)), [Random(7)], **ONCE)
    assert [timing.attention for timing in timings] == ["eager", "sdpa", "sdpa", "sdpa"]


@pytest.mark.parametrize("name", ["internvl", "llava_onevision", "video_llava"])
def test_families_that_take_features_as_one_tensor_are_timed(name):
    family = FAMILIES[name]
    timings = time_methods(adapter_for(family.build()), family.prompts(((1,),)), [Random(5)], **ONCE)
    assert {timing.kept_tokens for timing in timings} == {5}


def test_a_method_that_shrinks_the_image_is_timed(backbone):
    timings = time_methods(backbone, tiny.prompts((1,)), [Downsample(9)], **ONCE)
    assert {timing.kept_tokens for timing in timings} == {9}


def test_the_phases_do_all_the_work_and_no_more(backbone):
    inputs = tiny.prompts((1,))
    text = inputs["input_ids"].shape[1] - tiny.TOKENS
    with FlopCounterMode(display=False) as counter:
        time_methods(backbone, inputs, [Random(7)], runs=2, warmup=1, new_tokens=2)
    config = backbone.model.config
    parts = [flops_analytic(config, 7, text), *(flops_analytic_step(config, 7, text + step) for step in range(2))]
    assert counter.get_total_flops() == 3 * sum(part.total for part in parts)


@pytest.mark.parametrize("masked", [True, False])
def test_decoding_gives_the_tokens_that_generate_gives(backbone, masked):
    inputs, model, said = tiny.prompts((1, 2)), backbone.model, []
    if not masked:
        inputs = {name: tensor[1:] for name, tensor in inputs.items() if name != "attention_mask"}
    hook = model.lm_head.register_forward_hook(lambda _, __, logits: said.append(logits[:, -1].argmax(-1)))
    try:
        time_methods(backbone, inputs, [Random(7)], runs=1, warmup=0, new_tokens=4)
    finally:
        hook.remove()
    with prune(model, Random(7)):
        answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(torch.stack(said, 1), answer[:, -5:])


def test_example_inputs_are_prompts_around_one_image(backbone):
    inputs = example_inputs(backbone.model.config, 9, (24, 24), batch=2)
    image = inputs["input_ids"] == tiny.IMAGE
    assert inputs["input_ids"].shape == (2, tiny.TOKENS + 9)
    assert image[:, 1 : 1 + tiny.TOKENS].all()
    assert image.sum() == 2 * tiny.TOKENS
    again = example_inputs(backbone.model.config, 9, (24, 24), batch=2)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert [timing.batch for timing in time_methods(backbone, inputs, [IDSelection(7)], **ONCE)] == [2] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, i: time_methods(b, i, [None], runs=0), "runs must be an int of 1 or more, not 0"),
        (lambda b, i: time_methods(b, i, [None], warmup=-1), "warmup must be an int of 0 or more, not -1"),
        (lambda b, i: time_methods(b, i, [None], new_tokens=1.5), "new_tokens must be an int of 1 or more, not 1.5"),
        (lambda b, i: time_methods(b, {"input_ids": i["input_ids"]}, [None]), "inputs lack pixel_values"),
        (lambda b, i: time_methods(b, {}, [None]), "inputs lack input_ids and pixel_values"),
        (lambda b, i: example_inputs(b.model.config, 1, (24, 24)), "text_tokens must be an int of 2 or more, not 1"),
        (lambda b, i: example_inputs(b.model.config, 9, (24, 24), batch=0), "batch must be an int of 1 or more, not 0"),
    ],
)
def test_bad_input_is_refused(backbone, call, message):
    with pytest.raises(ValueError, match=message):
        call(backbone, tiny.prompts((1,)))


def test_the_command_line_times_the_embedded_backbone(capsys):
    assert main(["--budgets", "576", "16", "--runs", "1", "--warmup", "0", "--new", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cpu, " in lines[0] and f"torch {torch.__version__}" in lines[0]
    assert [line.split()[:2] for line in lines[2:]] == [
        ["method", "phase"],
        *(["full", phase] for phase in PHASES if phase != "select"),
        *(["idselection", phase] for phase in PHASES),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no model in nowhere"),
        (["--budgets", "0"], "argument --budgets: must be an int of 1 or more, not '0'"),
        (["--method", "idselecton"], "did you mean 'idselection'"),
        (["--text", "1"], "text_tokens must be"),
        (["--runs", "0"], "argument --runs: must be an int of 1 or more, not '0'"),
    ],
)
def test_the_command_line_names_the_fault(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
