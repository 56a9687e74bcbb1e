"""Quantised models: pruning equals a shorter prompt, and methods read quantised layers as they do whole ones."""

import copy
import importlib.util
import warnings

import pytest
import torch
from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from transformers.integrations.bitsandbytes import dequantize_bnb_weight

from idsel_core import Companion, IDSelection, adapter_for, prune
from idsel_core.loading.hub import load
from idsel_core.methods import METHODS
from tests.support import families, tiny, tiny_whisper
from tests.support.families import FAMILIES
from tests.support.family_prompts import BARRED, CLOSE, GREEDY, MIXED, by_hand, modes, ragged
from tests.support.llava_prompts import by_hand as llava_by_hand
from tests.support.llava_prompts import ragged as llava_ragged
from tests.support.llava_prompts import run

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")
FAST = pytest.mark.fast_for(family=["qwen2_5_vl"])
ALONE = [((1,),), ((2, 0),)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def wide():
    """Language models of 64 dimensions, which blocks of 64 entries of NF4 fit."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in families.WIDE.items():
            patch.setitem(families.TEXT, name, value)
        yield


@pytest.fixture(scope="module")
def folder(family, wide, tmp_path_factory):
    place = tmp_path_factory.mktemp(family.name)
    family.build().save_pretrained(place)
    return place


def read(folder, quantisation, **options):
    model = load(folder, **{"dtype": "float32", **options}, quantisation=quantisation, processor=False)[0]
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = families.PAD, None
    for module in model.modules():
        # Where the CPU has an instruction for it, bitsandbytes multiplies in bfloat16, whatever is asked for.
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
    return model


def dequantised(model):
    """Return a model of plain linear layers with the values of the quantised ones."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if type(module).__name__ == "Linear4bit":
            layer = torch.nn.Linear(module.in_features, module.out_features, module.bias is not None)
            layer.weight = torch.nn.Parameter(dequantize_bnb_weight(module.weight).float())
            layer.bias = module.bias
            plain.set_submodule(name, layer)
    return plain.eval()


def check_by_hand(family, model, layouts):
    """What a pruned prompt generates is what the same model says to the kept columns, step by step."""
    for layout in layouts:
        inputs, method = family.prompts(layout), ragged(family, layout)
        for positions in modes(family):
            wanted = [by_hand(family, model, layout, row, method.picks, 4, positions) for row in range(len(layout))]
            with prune(model, method, positions):
                got = run(model, inputs, **GREEDY)
            for row, (logits, chosen, _) in enumerate(wanted):
                torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, **CLOSE)
                assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen


@FAST
@pytest.mark.feature("8 bits")
def test_pruning_in_8_bits_equals_a_shortened_prompt(family, folder):
    check_by_hand(family, read(folder, "int8"), ALONE)


@FAST
def test_pruning_in_4_bits_equals_shortened_prompts(family, folder):
    check_by_hand(family, read(folder, "int4"), [MIXED])


def knobs_of(name, has_cls):
    wanted = {"attention": "cls" if has_cls else "received", "budget_convention": "final"}
    wanted |= {"importance": "unified" if name == "downsample" else "instruction"}
    return {knob: value for knob, value in wanted.items() if knob in METHODS[name].__dataclass_fields__}


def check_methods(small, whole, inputs, has_cls, options):
    """All methods, with the attention of the question where they can: the same picks and answers, or the same refusal.

    The reference is a plain model; what both say would be the same, too, if quantisation did nothing, so that picks are
    compared with those of the whole model as well.
    """
    plain, ran, moved = dequantised(small), 0, 0
    for name in METHODS:
        # Smaller images keep their shape, so that few budgets can be met.
        method = METHODS[name](4 if name == "downsample" else 7, **knobs_of(name, has_cls))
        results = []
        for model in (small, plain, whole):
            try:
                with prune(model, method) as run_:
                    out = run(model, inputs, **options)
                results.append((torch.stack(out.logits), [(r.order, r.drops) for r in run_.report]))
            except ValueError as error:
                results.append(str(error))
        got, wanted, other = results
        assert isinstance(got, str) == isinstance(wanted, str) == isinstance(other, str)
        if isinstance(got, str):
            assert got == wanted, name
            continue
        torch.testing.assert_close(got[0], wanted[0], **CLOSE)
        assert str(got[1]) == str(wanted[1]), name
        ran, moved = ran + 1, moved + (str(got[1]) != str(other[1]))
    assert ran >= 15 and moved >= 4


@FAST
def test_methods_read_4_bit_layers_as_their_values(family, folder):
    check_methods(read(folder, "int4"), read(folder, None), family.prompts(MIXED), family.has_cls, GREEDY)


def own_int8(**options):
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"], **options)


@FAST
@torch.no_grad()
def test_attention_of_the_question_is_read_through_8_bit_layers(family, folder):
    """Where two kinds of attention differ in the last bit, an activation may be rounded to another of 255 values."""
    for quantisation in (own_int8(llm_int8_threshold=0.0), "int8"):
        model, eager = (read(folder, quantisation, attention=kind) for kind in ("sdpa", "eager"))
        inputs, backbone = family.prompts(((1,),)), adapter_for(model)
        encoded = backbone.encode(**backbone.image_arguments(inputs))
        columns = torch.isin(inputs["input_ids"][0], torch.tensor(BARRED)).nonzero()[:, 0]
        after = torch.arange(inputs["input_ids"].shape[1])[None] > columns[-1]
        tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"], question_mask=after)
        for layer in (0, 1):
            heads = eager(**inputs, output_attentions=True).attentions[layer][0]
            wanted = heads[:, int(columns[-1]) + 1 :][..., columns]
            wanted = (wanted / wanted.sum(-1, keepdim=True)).mean((0, 1))
            got = tokens.with_instruction(layer, "words").instruction_attention[0]
            distance = (got - wanted).norm()
            assert distance < 0.05 * wanted.norm() and distance < 0.5 * (wanted - wanted.mean()).norm()


@pytest.mark.parametrize("family", ["llava_next"], indirect=True)
@torch.no_grad()
def test_int8_alone_lets_prompts_of_a_batch_change_each_other(family, folder):
    """LLM.int8() keeps in 16 bits the columns in which any token of the call is large, as docs/loading.md says."""
    distance = {}
    for kind in ("int8", "int4", "int8 of rows"):
        model = read(folder, own_int8(llm_int8_threshold=0.0) if kind == "int8 of rows" else kind)
        with prune(model, ragged(family, MIXED)):
            together = model(**family.prompts(MIXED)).logits[:, -1]
        with prune(model, ragged(family, MIXED[:1])):
            alone = model(**family.alone(MIXED, 0)).logits[0, -1]
        distance[kind] = float((together[0] - alone).norm() / alone.norm())
    assert distance["int4"] < 1e-5 and distance["int8 of rows"] < 1e-5
    assert 1e-4 < distance["int8"] < 0.1


@pytest.mark.feature("8 bits")
@pytest.mark.parametrize("quantisation", ["int8", "int4"])
@torch.no_grad()
def test_llava_equals_a_shortened_prompt(quantisation, tmp_path):
    tiny.build(width=64).save_pretrained(tmp_path)
    model, layout = read(tmp_path, quantisation), (2,)
    inputs, method = tiny.prompts(layout), llava_ragged(2)
    ((logits, chosen, _),) = llava_by_hand(model, inputs, layout, [torch.tensor(picks) for picks in method.picks], 5)
    with prune(model, method):
        got = run(model, inputs)
    torch.testing.assert_close(torch.stack([step[0] for step in got.logits]), logits, **CLOSE)
    assert got.sequences[0, inputs["input_ids"].shape[1] :].tolist() == chosen


@pytest.mark.slow
def test_methods_read_4_bit_layers_of_llava_as_their_values(tmp_path):
    tiny.build(width=64).save_pretrained(tmp_path)
    check_methods(read(tmp_path, "int4"), read(tmp_path, None), tiny.prompts((1, 2)), True, {})


@torch.no_grad()
def test_whisper_in_8_bits_keeps_its_encoder_and_the_tied_head_whole(tmp_path):
    tiny_whisper.build().save_pretrained(tmp_path)
    whole, small = (load(tmp_path, dtype="float32", quantisation=q, processor=False)[0] for q in (None, "int8"))
    quantised = {name for name, module in small.named_modules() if type(module).__name__ == "Linear8bitLt"}
    assert len(quantised) == 2 * 10 and all(name.startswith("model.decoder.layers.") for name in quantised)
    assert small.proj_out.weight is small.model.decoder.embed_tokens.weight
    inputs, found = tiny_whisper.clips(), []
    for model in (whole, small):
        with prune(model, IDSelection(budget=5)) as run_:
            logits = model(**inputs, decoder_input_ids=torch.tensor([tiny_whisper.IDS] * 3)).logits
            model.generate(**inputs, **tiny_whisper.GREEDY)
        found.append((logits, [record.order for record in run_.report]))
    (wanted, picks), (got, others) = found
    assert picks == others
    assert 0 < (got - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("family", ["idefics3", "internvl"], indirect=True)
@torch.no_grad()
def test_features_reach_a_projector_that_has_integers_alone(family, folder):
    """A configuration of the user's own may quantise the tower and the projector, which may have no bias."""
    whole, small = read(folder, None), read(folder, own_int8(llm_int8_threshold=0.0))
    inputs, projected = family.prompts(MIXED), []
    assert any("Int8Params" in type(weight).__name__ for name, weight in small.named_parameters() if "vision" in name)
    for model in (whole, small):
        backbone = adapter_for(model)
        encoded = backbone.encode(**backbone.image_arguments(inputs))
        projected.append(backbone.project(encoded.encoder_features)[encoded.mask])
    wanted, got = projected
    assert 0 < (got - wanted).norm() < 0.15 * wanted.norm()


def test_a_companion_in_8_bits_projects_features_and_no_integers():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    whole, small = tiny.companion(), tiny.companion()
    layer = bitsandbytes.nn.Linear8bitLt(32, 8, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(whole.visual_projection.weight.data.clone(), requires_grad=False)
    small.visual_projection = layer.to("cpu")
    features = 0.4 * torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, got = (Companion(one).project(features) for one in (whole, small))
    assert 0 < (got - wanted).norm() < 0.05 * wanted.norm()


def other_library(name):
    if name == "quanto":
        return QuantoConfig(weights="int8")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quanto", "torchao"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "idefics3"], indirect=True)
def test_layers_of_other_libraries(family, folder, name):
    """8-bit weights of other libraries, in tower and projector as well, which multiply in the dtype."""
    package = {"quanto": "optimum", "torchao": "torchao"}[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed, and no extra installs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = read(folder, other_library(name))
        check_by_hand(family, model, [MIXED])
        for method in ("idselection", "idselection-inside", "fastv", "sparsevlm", "visionzip", "scope"):
            knobs = knobs_of(method, family.has_cls)
            if method in family.refused:
                continue
            with prune(model, METHODS[method](7, **knobs)) as run_, torch.no_grad():
                assert model(**family.prompts(MIXED)).logits.isfinite().all()
            assert [record.after for record in run_.report] == [7] * 3
