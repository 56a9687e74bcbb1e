"""Random models of published sizes: their parameters are counted, and they run."""

from __future__ import annotations

import csv
import itertools
import re

import pytest
import torch
from transformers import AutoConfig, LlavaConfig

from idsel_core import IDSelection, adapter_for, prune
from idsel_core.backbones import BACKBONES
from idsel_core.loading.random_models import CONFIGS, build_random, list_architectures, read_architecture
from idsel_core.study.timing.example_inputs import example_inputs
from tests.support import tiny
from tests.support.commands import command

main = command("time")

PUBLISHED = {row["name"]: row for row in csv.DictReader((CONFIGS / "published.csv").open())}
NAMES = list_architectures()


def rounded(number: int, digits: int) -> int:
    return int(float(f"{number:.{digits - 1}e}"))


def test_configurations_are_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list_architectures() == NAMES and len(NAMES) > 10
    assert build_random("llava-1.5-7b", device="meta").config.model_type == "llava"


def test_every_configuration_names_its_source():
    assert set(PUBLISHED) == set(NAMES)
    assert all(row["checkpoint"] and row["source"] for row in PUBLISHED.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_published_number_of_parameters(name):
    config, row = read_architecture(name), PUBLISHED[name]
    model = build_random(name, device="meta")
    assert all(weight.is_meta and weight.dtype == torch.bfloat16 for weight in model.parameters())
    assert type(model).__name__ == config.architectures[0]
    count = sum(weight.numel() for weight in model.parameters())
    assert rounded(count, int(row["digits"])) == int(row["parameters"])


def test_the_main_families_have_a_published_size():
    families = {read_architecture(name).model_type for name in NAMES}
    assert {"llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"} <= families & set(BACKBONES)


def small(**knobs):
    return tiny.build(**knobs).config


def buffers(model):
    return {name: tensor for name, tensor in model.named_buffers()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_random_weights_have_the_spread_of_the_class(dtype):
    """Against the class's own initialisation: the same constants, and noise of the same spread."""
    config = LlavaConfig(**{**small().to_dict(), "text_config": {**small().text_config.to_dict(), "vocab_size": 4096}})
    torch.manual_seed(7)
    own, built = tiny.LlavaForConditionalGeneration(config), build_random(config, dtype)
    assert not built.training
    wanted, got = dict(own.named_parameters()), dict(built.named_parameters())
    assert set(wanted) == set(got)
    for name, weight in got.items():
        assert weight.dtype == dtype
        if wanted[name].std() == 0:
            assert torch.equal(weight.float(), wanted[name])
        elif weight.numel() > 500:
            assert 0.9 < weight.float().std() / wanted[name].std() < 1.1, name
    for name, tensor in buffers(own).items():
        assert torch.equal(buffers(built)[name], tensor) and buffers(built)[name].dtype == tensor.dtype


def test_no_two_rows_or_matrices_are_equal():
    model = build_random(small(), torch.float32)
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight.std() > 0]
    for weight in matrices:
        assert len(weight.unique(dim=0)) == len(weight)
    squares = [weight for weight in matrices if weight.shape == (32, 32)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(squares, 2))


def test_weights_depend_on_the_seed_only_and_leave_the_global_generator():
    config = small()
    torch.manual_seed(3)
    first = torch.rand(1)
    torch.manual_seed(3)
    a, b, c = (build_random(config, torch.float32, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), first)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


@torch.no_grad()
def test_a_random_model_prunes():
    model = build_random(small())
    with prune(model, IDSelection(budget=5)) as run:
        assert model(**tiny.prompts((1, 2))).logits.isfinite().all()
    assert [record.after for record in run.report] == [5, 5, 5]


@torch.no_grad()
def test_a_model_of_published_width_runs():
    """One layer of the language model and the whole tower: what a full one repeats."""
    model = build_random("smolvlm2-2.2b", layers=1)
    assert model.config.text_config.num_hidden_layers == len(model.model.text_model.layers) == 1
    assert model(input_ids=torch.arange(5, 21)[None]).logits.isfinite().all()
    assert all(bool(weight.any()) for weight in model.parameters() if weight.ndim > 1)


@pytest.mark.parametrize("name", ["gemma-3-4b", "qwen3-vl-8b"])
def test_models_with_several_kinds_of_layers_can_be_shallower(name):
    model = build_random(name, device="meta", layers=3)
    assert model.config.get_text_config().num_hidden_layers == len(model.model.language_model.layers) == 3
    assert read_architecture(name).get_text_config().num_hidden_layers > 3


def test_projectors_that_are_initialised_with_zeros_are_drawn():
    config = read_architecture("gemma-3-4b").to_dict()
    config["text_config"] |= {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 64}
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    config["vision_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = build_random(type(read_architecture("gemma-3-4b")).from_dict(config))
    assert model.model.multi_modal_projector.mm_input_projection_weight.float().std() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build_random("llava-1.5-7"),
            "named 'llava-1.5-7', did you mean 'llava-1.5-7b'\\?; known: gemma-3-4b, ",
        ),
        (lambda: build_random("other"), "named 'other'; known: gemma-3-4b, "),
        (lambda: read_architecture("other"), "named 'other'; known: gemma-3-4b, "),
        (
            lambda: build_random("llava-1.5-7b", torch.int8),
            "dtype must be a floating-point torch dtype, .* not torch.int8",
        ),
        (lambda: build_random("llava-1.5-7b", "bf16"), "dtype must be a floating-point torch dtype, .* not 'bf16'"),
        (lambda: build_random("llava-1.5-7b", layers=0), "layers must be an int from 1 to 32, not 0"),
        (lambda: build_random("llava-1.5-7b", layers=33), "layers must be an int from 1 to 32, not 33"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_configuration_file_is_timed_with_random_weights(tmp_path, capsys):
    path = tmp_path / "small.json"
    small().to_json_file(path)
    assert AutoConfig.from_pretrained(path).model_type == "llava"
    arguments = ["--model", str(path), "--budgets", "36", "7", "--text", "8", "--runs", "1", "--warmup", "0"]
    assert main([*arguments, "--new", "1"]) == 0
    out = capsys.readouterr().out
    assert "threads, bfloat16, sdpa attention" in out
    assert len(re.findall(r"^ *(full|idselection) +(encode|select|prefill|decode) ", out, re.MULTILINE)) == 3 + 4


def test_example_inputs_fit_a_random_model():
    config = small()
    backbone = adapter_for(build_random(config))
    inputs = example_inputs(config, 8, (24, 24))
    assert len(backbone.encode(inputs["pixel_values"])) == 1
