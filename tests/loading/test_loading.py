"""`load` gives back the saved model, on every device map and at every precision."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    Qwen2VLImageProcessorPil,
)
from transformers import LlavaForConditionalGeneration as Llava

from data.backbone.language import build_processor, build_tokenizer
from idsel_core import IDSelection, adapter_for, get_method, prune
from idsel_core.backbones import BACKBONES
from idsel_core.loading.hub import load
from tests.support import tiny
from tests.support.families import FAMILIES

METHODS = (
    IDSelection(budget=5, importance="unified"),
    IDSelection(budget=5, importance="saliency", features="encoder"),
)


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llava", *FAMILIES])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def case(family, tmp_path_factory):
    """A model, prompts, and the folder that the model was saved in."""
    if family == "llava":
        model, inputs = tiny.build(), tiny.prompts((1, 2))
    else:
        model, inputs = FAMILIES[family].build(), FAMILIES[family].prompts(((1,), (2, 0)))
    return model, inputs, saved(model, tmp_path_factory.mktemp(family))


def read(folder, **options):
    return load(folder, processor=False, **options)[0]


@torch.no_grad()
def answers(model, inputs, method):
    """Return the logits, the continuation and the tokens picked."""
    with prune(model, method) as run:
        logits = model(**inputs).logits
        told = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    return logits, told, [record.order for record in run.report]


def on_disk(model):
    """Return a map of all parts to the disk; parameters of no part cannot wait there."""
    parts = {f"model.{name}": "disk" for name, _ in model.model.named_children()}
    loose = {f"model.{name}": "cpu" for name, _ in model.model.named_parameters(recurse=False)}
    return {**parts, **loose, "lm_head": "disk"}


def check_alike(model, again, inputs):
    """The same tokens are picked, the same is answered, and features are what the projector makes."""
    for method in METHODS:
        wanted, got = answers(model, inputs, method), answers(again, inputs, method)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1]) and got[2] == wanted[2]
    backbone = adapter_for(again)
    with torch.no_grad():
        encoded = backbone.encode(**backbone.image_arguments(inputs))
        features = backbone.project(encoded.encoder_features)
    torch.testing.assert_close(features[encoded.mask], encoded.features[encoded.mask], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}], ids=["plain", "mapped"])
def test_a_loaded_model_prunes_like_the_saved_one(case, options):
    model, inputs, folder = case
    again = read(folder, dtype="float32", **options)
    assert not again.training
    check_alike(model, again, inputs)


@pytest.mark.fast_for(place=["what does not fit"])
@pytest.mark.feature("parts on disk")
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize("place", ["all", "what does not fit"])
def test_a_model_with_modules_on_disk_prunes_like_the_saved_one(case, place, tmp_path):
    """Such parts have no weights until they run, which is also how parts on other devices are reached."""
    model, inputs, folder = case
    most = {"cpu": model.get_memory_footprint() // 2}
    where = {"device_map": on_disk(model)} if place == "all" else {"device_map": "auto", "max_memory": most}
    again = read(folder, dtype="float32", offload_folder=tmp_path, **where)
    assert any(weight.is_meta for weight in again.parameters())
    try:
        again(**inputs)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"transformers itself cannot run it so: {error}")
    check_alike(model, again, inputs)


@pytest.mark.parametrize("name", ["fastv", "sparsevlm", "tome", "visionzip", "trim"])
def test_methods_of_every_kind_run_with_modules_on_disk(name, tmp_path):
    model, inputs = tiny.build(), tiny.prompts((1, 2))
    again = read(saved(model, tmp_path / "model"), dtype="float32", device_map=on_disk(model), offload_folder=tmp_path)
    knobs = {"budget_convention": "final"} if name in ("fastv", "sparsevlm") else {}
    method = get_method(name, budget=7, **knobs)
    results = []
    for one in (model, again):
        with prune(one, method, relevance=companion()) as run, torch.no_grad():
            results.append((one(**inputs).logits, [record.order for record in run.report]))
    assert torch.equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def companion():
    from idsel_core import Companion

    return Companion(tiny.companion())


def test_weights_have_the_given_dtype(case):
    _, _, folder = case
    assert {weight.dtype for weight in read(folder).parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in read(folder, dtype="auto").parameters()} == {torch.float32}
    assert read(folder, dtype=torch.float16).dtype == torch.float16


def test_the_processor_is_loaded_with_the_model(tmp_path):
    saved(tiny.build(), tmp_path)
    build_processor().save_pretrained(tmp_path)
    model, processor = load(tmp_path, attention="eager")
    assert type(processor).__name__ == "LlavaProcessor"
    assert model.config._attn_implementation == "eager"


def quantised_parts(model):
    return {name for name, weight in model.named_parameters() if type(weight).__name__ in ("Int8Params", "Params4bit")}


@pytest.mark.feature("8 bits")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_int8_keeps_the_picks_and_nearly_the_logits(case):
    _, inputs, folder = case
    full, small = read(folder), read(folder, quantisation="int8")
    quantised = quantised_parts(small)
    assert quantised and all("language_model" in name or "text_model" in name for name in quantised)
    method = IDSelection(budget=5, importance="saliency")
    wanted, got = answers(full, inputs, method), answers(small, inputs, method)
    assert got[2] == wanted[2]
    assert (got[0] - wanted[0]).norm() < 0.1 * wanted[0].norm()
    assert not torch.equal(got[0], wanted[0])


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize(("quantisation", "error"), [("int8", 0.05), ("int4", 0.3)])
def test_quantised_models_take_less_memory(quantisation, error, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=tiny.VOCABULARY, pad_token_id=tiny.PAD)
    model = Llava(LlavaConfig(vision_config=tiny.TOWERS["clip"](), text_config=text, image_token_id=tiny.IMAGE)).eval()
    saved(model, tmp_path)
    inputs, method = tiny.prompts((1, 2)), IDSelection(budget=5, importance="saliency")
    full, small = read(tmp_path), read(tmp_path, quantisation=quantisation)
    bits = {"int8": 8, "int4": 4}[quantisation]
    weights = {name: weight.numel() for name, weight in full.named_parameters() if name in quantised_parts(small)}
    assert len(weights) == 7 * 2
    saving = full.get_memory_footprint() - small.get_memory_footprint()
    assert saving == sum(weights.values()) * (16 - bits) // 8
    wanted, got = answers(full, inputs, method), answers(small, inputs, method)
    assert got[2] == wanted[2]
    assert 0 < (got[0] - wanted[0]).norm() < error * wanted[0].norm()


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return saved(tiny.build(), tmp_path_factory.mktemp("llava"))


def with_config(folder, **changes):
    """Write a configuration alone: what is refused must be refused before weights are looked for."""
    config = tiny.build().config.to_dict() | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_unknown_families_are_refused_with_the_supported_ones(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8, n_positions=8)).config.save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=rf"'gpt2' of .* is not supported; supported: {', '.join(sorted(BACKBONES))}"):
        load(tmp_path)


def test_code_of_the_checkpoint_is_refused(tmp_path):
    ran = tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with_config(tmp_path, model_type="internvl_chat", auto_map={"AutoConfig": "modeling_own.Config"})
    with pytest.raises(ValueError, match=r"code of its own \(model type 'internvl_chat', auto_map .*named \.\.\.-hf"):
        load(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"text_config": {"model_type": "internlm2", "auto_map": {"AutoConfig": "own.Own"}}}, "subconfig: internlm2"),
        ({"text_config": {"model_type": "llama", "hidden_size": "many"}}, "field 'hidden_size'"),
        ({"text_config": "llama"}, "field 'text_config'"),
    ],
)
def test_configurations_that_transformers_cannot_read_are_refused(tmp_path, raw, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", **raw}))
    with pytest.raises(ValueError, match=rf"transformers cannot read the configuration of .* \(.*{message}"):
        load(tmp_path)


@pytest.mark.parametrize("raw", ["{", "[1]"])
def test_a_damaged_configuration_is_refused(tmp_path, raw):
    (tmp_path / "config.json").write_text(raw)
    with pytest.raises(ValueError, match=r"the config\.json of .* cannot be read"):
        load(tmp_path)


def test_code_of_a_checkpoint_of_a_known_family_is_not_run(tmp_path):
    model, ran = tiny.build(), tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    saved(model, tmp_path)
    with_config(tmp_path, auto_map={"AutoModelForImageTextToText": "modeling_own.Model"})
    assert type(read(tmp_path)) is Llava
    assert not ran.exists()


def test_pickles_are_refused(tmp_path):
    torch.save(tiny.build().state_dict(), with_config(tmp_path) / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"weights as pickles \(pytorch_model.bin\).*convert them to safetensors"):
        load(tmp_path)


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        load(with_config(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("model.multi_modal_projector.linear_1.weight"), "lack model.multi_modal_projector.linear_1"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(3, 32)}), "cannot be read"),
    ],
)
def test_incomplete_weights_and_other_shapes_are_refused(llava, tmp_path, damage, message):
    weights = {f"{name}": value for name, value in tiny.build().state_dict().items()}
    damage(weights)
    save_file(weights, with_config(tmp_path) / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_truncated_weights_are_refused(llava, tmp_path):
    assert load_file(llava / "model.safetensors")
    (with_config(tmp_path) / "model.safetensors").write_bytes((llava / "model.safetensors").read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"weights of .* cannot be read"):
        read(tmp_path)


def test_a_missing_processor_is_refused(llava):
    with pytest.raises(ValueError, match=r"the processor of .* cannot be read"):
        load(llava)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is installed")
def test_without_torchvision_images_are_prepared_with_pillow(tmp_path):
    saved(FAMILIES["qwen2_vl"].build(), tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processor_class": "Qwen2VLProcessor"}))
    with pytest.warns(UserWarning, match=r"prepares images with Pillow .* and refuses videos"):
        assert type(load(tmp_path)[1]).__name__ == "Qwen2VLProcessor"
    assert load(tmp_path, processor=False)[1] is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no model in ./nowhere: there is no such folder"),
        ("llava-hf/llava-1.5-7b-hf", r"no model 'llava-hf/llava-1.5-7b-hf': .*Without a network, give a folder"),
    ],
)
def test_a_missing_model_is_refused(name, message):
    with pytest.raises(FileNotFoundError, match=message):
        load(name, local_files_only=True)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder has no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bf16"}, "dtype must be auto or a floating-point torch dtype, .* not 'bf16'"),
        ({"dtype": "int8"}, "dtype must be auto or a floating-point torch dtype, .* not 'int8'"),
        ({"quantisation": "int3"}, "quantisation must be one of int8, int4, not 'int3'"),
        ({"max_memory": {0: "1GiB"}}, "need a device_map"),
        ({"device_map": {"": "cuda:9"}}, r"device_map names 'cuda:9', but torch sees \d+ GPUs"),
        ({"device_map": {"": 99}}, r"device_map names 99, but torch sees \d+ GPUs"),
    ],
)
def test_bad_options_are_refused(llava, options, message):
    with pytest.raises(ValueError, match=message):
        load(llava, **options)


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("accelerate", {"device_map": "auto"}),
        ("accelerate", {"quantisation": "int8"}),
        ("bitsandbytes", {"quantisation": "int4"}),
    ],
)
def test_a_missing_package_is_refused_with_the_command_that_installs_it(llava, package, options, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'idsel_core\[quantised\]'"):
        load(llava, **options)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_other_quantisation_configurations_are_passed_to_transformers(llava):
    """Here the tower and the projector are quantised, too, whose integers are no dtype for features."""
    own = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    full, small, inputs = read(llava), read(llava, quantisation=own), tiny.prompts((1, 2))
    assert any("multi_modal_projector" in name for name in quantised_parts(small))
    assert any("vision_tower" in name for name in quantised_parts(small))
    backbones = adapter_for(full), adapter_for(small)
    with torch.no_grad():
        wanted, got = (b.project(b.encode(inputs["pixel_values"]).encoder_features).float() for b in backbones)
    assert (got - wanted).norm() < 0.1 * wanted.norm()
    assert answers(small, inputs, METHODS[1])[0].isfinite().all()
