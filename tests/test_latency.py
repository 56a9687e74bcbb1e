"""Time by phase: what is recorded, and that each phase does its work; never how long it took."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd
import pytest
import tiny
import torch
from families import FAMILIES
from torch.utils.flop_counter import FlopCounterMode

from idsel_core import Downsample, IDSelection, Random, adapter_for, prune
from idsel_core.cost import flops_analytic, flops_analytic_step
from idsel_core.latency import example_inputs, main, time_phases

PHASES = ["encode", "select", "prefill", "decode"]
ONCE = {"runs": 1, "warmup": 0, "new_tokens": 1}


@pytest.fixture(scope="module")
def backbone():
    return adapter_for(tiny.build("clip", "eager"))


def test_phases_and_circumstances_are_recorded(backbone):
    inputs = tiny.prompts((1, 2))
    timings = time_phases(backbone, inputs, IDSelection(7), runs=4, warmup=1, new_tokens=3)
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
    timings = time_phases(backbone, inputs, **ONCE)
    assert [timing.phase for timing in timings] == ["encode", "prefill", "decode"]
    assert {timing.prompt_tokens for timing in timings} == {inputs["input_ids"].shape[1]}
    assert {timing.kept_tokens for timing in timings} == {tiny.TOKENS}


def test_attention_is_that_of_the_phase():
    model = tiny.build("siglip", "sdpa")
    model.model.vision_tower.set_attn_implementation("eager")
    timings = time_phases(adapter_for(model), tiny.prompts((1,)), Random(7), **ONCE)
    assert [timing.attention for timing in timings] == ["eager", "sdpa", "sdpa", "sdpa"]


@pytest.mark.parametrize("name", ["internvl", "llava_onevision", "video_llava"])
def test_families_that_take_features_as_one_tensor_are_timed(name):
    family = FAMILIES[name]
    timings = time_phases(adapter_for(family.build()), family.prompts(((1,),)), Random(5), **ONCE)
    assert {timing.kept_tokens for timing in timings} == {5}


def test_a_method_that_shrinks_the_image_is_timed(backbone):
    timings = time_phases(backbone, tiny.prompts((1,)), Downsample(9), **ONCE)
    assert {timing.kept_tokens for timing in timings} == {9}


def test_the_phases_do_all_the_work_and_no_more(backbone):
    inputs = tiny.prompts((1,))
    text = inputs["input_ids"].shape[1] - tiny.TOKENS
    with FlopCounterMode(display=False) as counter:
        time_phases(backbone, inputs, Random(7), runs=2, warmup=1, new_tokens=2)
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
        time_phases(backbone, inputs, Random(7), runs=1, warmup=0, new_tokens=4)
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
    assert [timing.batch for timing in time_phases(backbone, inputs, IDSelection(7), **ONCE)] == [2] * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, i: time_phases(b, i, runs=0), "runs must be an int of 1 or more, not 0"),
        (lambda b, i: time_phases(b, i, warmup=-1), "warmup must be an int of 0 or more, not -1"),
        (lambda b, i: time_phases(b, i, new_tokens=1.5), "new_tokens must be an int of 1 or more, not 1.5"),
        (lambda b, i: time_phases(b, {"input_ids": i["input_ids"]}), "inputs lack pixel_values"),
        (lambda b, i: time_phases(b, {}), "inputs lack input_ids and pixel_values"),
        (lambda b, i: example_inputs(b.model.config, 1, (24, 24)), "text_tokens must be an int of 2 or more, not 1"),
        (lambda b, i: example_inputs(b.model.config, 9, (24, 24), batch=0), "batch must be an int of 1 or more, not 0"),
    ],
)
def test_bad_input_is_told(backbone, call, message):
    with pytest.raises(ValueError, match=message):
        call(backbone, tiny.prompts((1,)))


def test_the_command_line_times_the_embedded_backbone(capsys):
    assert main(["--budgets", "576", "16", "--runs", "1", "--warmup", "0", "--new", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["phase", "encode", "prefill", "decode", *PHASES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no model in nowhere"),
        (["--budgets", "0"], "budget must be"),
        (["--method", "idselecton"], "did you mean 'idselection'"),
        (["--text", "1"], "text_tokens must be"),
        (["--runs", "0"], "runs must be"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
