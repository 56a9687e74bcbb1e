"""What models cost: formulas against torch's counter, against caches of real runs, and against published numbers."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    CLIPConfig,
    Dinov2Config,
    Gemma2Config,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
    ViTConfig,
)

from data.backbone.language import build_config
from idsel_core import DiversityOnly, IDSelection, Random, TopK, UniformGrid, adapter_for, get_method, id_select, prune
from idsel_core.loading.random_models import CONFIGS
from idsel_core.scores.registry import IMPORTANCE
from idsel_core.study.cost import (
    Flops,
    cost_table,
    equal_flops_budget,
    flops_analytic,
    flops_analytic_step,
    flops_counted,
    flops_counted_step,
    flops_paper,
    flops_scoring,
    full_budget,
    kv_cache_bytes,
    read_config,
)
from idsel_core.study.cost.gflops import Gflops
from idsel_core.study.paths import MODEL
from tests.support import tiny
from tests.support.commands import command

main = command("cost")

TOWERS = {
    **tiny.TOWERS,
    "dinov2 with SwiGLU": lambda: Dinov2Config(**tiny.TOWER, mlp_ratio=2, use_swiglu_ffn=True),
    "siglip without pooling": lambda: SiglipVisionConfig(**tiny.TOWER, intermediate_size=64, vision_use_head=False),
    "vit": lambda: ViTConfig(**tiny.TOWER, intermediate_size=48),
}
SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LANGUAGE_MODELS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "one key head": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "biased": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=None),
    "mistral with a window": lambda: MistralConfig(**SIZES, sliding_window=12),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    "gemma2, every second layer with a window": lambda: Gemma2Config(**SIZES, head_dim=12, sliding_window=12),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "wide heads": lambda: Qwen3Config(**SIZES, head_dim=12),
}
PROFILES = [36, 7, 0, (36, 10, 3), (36, 36, 0)]


def config(tower: str = "clip", language: str = "llama", **knobs) -> LlavaConfig:
    if tower.startswith("siglip"):
        knobs.setdefault("vision_feature_select_strategy", "full")
    parts = {"vision_config": TOWERS[tower](), "text_config": LANGUAGE_MODELS[language]()}
    return LlavaConfig(**parts, image_token_id=tiny.IMAGE, **knobs)


@pytest.fixture(scope="module")
def small():
    return config()


@pytest.fixture(scope="module", params=["7b", "13b"])
def llava(request):
    return LlavaConfig.from_pretrained(CONFIGS / f"llava-1.5-{request.param}.json")


@pytest.mark.parametrize(("tokens", "published"), [(576, 3817), (192, 1253), (128, 833), (64, 415)])
def test_the_paper_formula_gives_published_numbers(tokens, published):
    """VScan (arXiv 2505.22654), LLaVA-1.5-7B; the table's digits are cut off, not rounded."""
    vicuna = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    assert flops_paper(vicuna, tokens) // 10**9 == published
    assert flops_paper(vicuna, [tokens] * 32) == flops_paper(vicuna, tokens)


def test_the_paper_formula_sums_over_layers(small):
    alone = [flops_paper(small, [0] * layer + [count] + [0] * (2 - layer)) for layer, count in enumerate((36, 10, 3))]
    assert flops_paper(small, (36, 10, 3)) == sum(alone)
    assert alone[1] == 4 * 10 * 32**2 + 2 * 10**2 * 32 + 3 * 10 * 32 * 56


@pytest.mark.fast_for(logits=["last"])
@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("tower", TOWERS)
def test_analytic_flops_equal_counted_flops_with_every_tower(tower, logits, profile):
    model = config(tower)
    assert flops_analytic(model, profile, 9, logits=logits) == flops_counted(model, profile, 9, logits=logits)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("language", LANGUAGE_MODELS)
def test_analytic_flops_equal_counted_flops_with_every_language_model(language, profile):
    model = config(language=language)
    assert flops_analytic(model, profile, 9) == flops_counted(model, profile, 9)
    assert flops_analytic_step(model, profile, 9) == flops_counted_step(model, profile, 9)


@pytest.mark.parametrize("knobs", [{"vision_feature_layer": [-3, -1]}, {"vision_feature_select_strategy": "full"}])
def test_analytic_flops_equal_counted_flops_with_every_projector(knobs):
    model = config(**knobs)
    assert flops_analytic(model, 7, 9) == flops_counted(model, 7, 9)


@pytest.mark.parametrize("tower", TOWERS)
def test_analytic_flops_equal_counted_flops_with_images_of_another_size(tower):
    model, size = config(tower), (18, 33)
    assert full_budget(model, size) == 4 * 8
    assert flops_analytic(model, 7, 9, image_size=size) == flops_counted(model, 7, 9, image_size=size)


@pytest.mark.parametrize("profile", [576, 64, (576, 576, 64, 64, 64)])
def test_analytic_flops_equal_counted_flops_with_the_embedded_backbone(profile):
    model = build_config()
    assert full_budget(model, 336) == 576
    assert flops_analytic(model, profile, 20, image_size=336) == flops_counted(model, profile, 20, image_size=336)
    assert flops_analytic_step(model, profile, 20) == flops_counted_step(model, profile, 20)


@pytest.mark.parametrize("profile", [576, 16, (576,) * 2 + (64,) * 30])
def test_analytic_flops_equal_counted_flops_with_llava_7b(profile):
    model = LlavaConfig.from_pretrained(CONFIGS / "llava-1.5-7b.json")
    assert flops_analytic(model, profile, 64) == flops_counted(model, profile, 64)


@pytest.mark.fast_for(name=["smolvlm2-2.2b", "qwen2-audio-7b"])
@pytest.mark.parametrize(
    ("name", "size", "whole"),
    [
        ("llava-next-7b", (672, 672), 2880 + 48),
        ("llava-next-video-7b", (336, 672), 576 + 2 * 576 + 24),
        ("llava-onevision-7b", (768, 768), 5 * 27**2 + 54),
        ("internvl3-8b", (896, 896), 5 * 256),
        ("smolvlm2-2.2b", (1152, 1536), 13 * 81),
        ("gemma-3-4b", None, 256),
        ("qwen2.5-vl-7b", (1008, 728), 36 * 26),
        ("qwen3-vl-8b", (1024, 768), 32 * 24),
        ("qwen2-audio-7b", None, 750),
        ("qwen2-audio-7b", 500, 125),
    ],
)
def test_analytic_flops_equal_counted_flops_with_full_sizes_of_other_families(name, size, whole):
    model, _ = read_config(CONFIGS / f"{name}.json")
    assert full_budget(model, size) == whole
    for profile in (whole, 64):
        assert flops_analytic(model, profile, 64, image_size=size) == flops_counted(model, profile, 64, image_size=size)


@pytest.mark.parametrize("tower", tiny.TOWERS)
def test_analytic_flops_equal_those_of_a_pruned_generate(tower):
    model, inputs = tiny.build(tower, "eager"), tiny.prompts((1,))
    text = inputs["input_ids"].shape[1] - tiny.TOKENS
    with prune(model, Random(7)), FlopCounterMode(display=False) as counter:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    steps = [flops_analytic_step(model.config, 7, text + step) for step in range(2)]
    parts = [flops_analytic(model.config, 7, text), *steps]
    assert counter.get_total_flops() == sum(part.total for part in parts)


@pytest.mark.parametrize("tower", tiny.TOWERS)
@pytest.mark.parametrize("importance", ["saliency", "instruction", "unified"])
@pytest.mark.parametrize(
    "knobs", [{}, {"instruction_layer": 2}, {"instruction_layer": 2, "instruction_tokens": "last"}]
)
def test_flops_of_scores_equal_what_torch_counts(tower, importance, knobs):
    model = tiny.build(tower, "eager")
    backbone, method = adapter_for(model), TopK(7, importance=importance, **knobs)
    ids = torch.tensor([[tiny.IMAGE] * tiny.TOKENS + list(range(3, 12))])
    with torch.no_grad():
        encoded = backbone.encode(torch.randn(1, 3, 24, 24))
        with FlopCounterMode(display=False) as counter:
            method.select(backbone.visual_tokens(encoded, ids))
    cost = flops_analytic(model.config, 7, 9, method=method)
    assert (cost.scores, cost.greedy) == (counter.get_total_flops(), 0)


@pytest.mark.parametrize("gamma", [20.0, "auto"])
@pytest.mark.parametrize("update", ["subtract", "multiply"])
@pytest.mark.parametrize("features", ["projector", "encoder"])
def test_flops_of_the_greedy_equal_what_torch_counts(features, update, gamma):
    model = config(vision_feature_layer=[-3, -1])
    width = {"projector": 32, "encoder": 64}[features]
    with FlopCounterMode(display=False) as counter:
        id_select(torch.randn(36, width), torch.rand(36), 7, gamma, update, trace=True)
    cost = flops_analytic(model, 7, 9, method=DiversityOnly(7, features=features, update=update, gamma=gamma))
    assert (cost.scores, cost.greedy) == (0, counter.get_total_flops())


def test_components_add_up(small):
    plain, chosen = flops_analytic(small, 7, 9), flops_analytic(small, 7, 9, method=IDSelection(7))
    assert plain.select == 0 < chosen.select == chosen.scores + chosen.greedy
    assert chosen.total == plain.total + chosen.select
    assert plain.total == plain.encode + plain.language_model
    assert flops_analytic(small, 7, 9, method=UniformGrid(7)) == plain
    assert Flops().total == 0


def test_causal_attention_halves_pairs_and_leaves_the_rest(small):
    full, causal = (flops_analytic(small, 7, 9, attention=attention) for attention in ("full", "causal"))
    assert causal.attention * 2 * 16 == full.attention * 17
    assert (causal.projections, causal.mlp, causal.encode) == (full.projections, full.mlp, full.encode)


def test_the_configurations_are_those_of_llava(llava):
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava)
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert round(billions, 2) == {32: 7.06, 40: 13.35}[llava.text_config.num_hidden_layers]
    assert full_budget(llava) == llava.image_seq_length == 576


def test_the_configurations_come_from_files_and_dicts(llava):
    path = CONFIGS / ("llava-1.5-7b.json" if llava.text_config.num_hidden_layers == 32 else "llava-1.5-13b.json")
    found, size = read_config(path)
    assert size == (336, 336)
    for other in (found, LlavaConfig.from_dict(json.loads(path.read_text()))):
        assert flops_analytic(other, 16, 64) == flops_analytic(llava, 16, 64)


def test_sixteen_tokens_save_97_percent_by_the_paper_formula_and_less_by_the_analytic(llava):
    table = cost_table(llava, [576, 16], 64, method=IDSelection(1)).set_index("budget")
    saved = table.loc[16.0]
    assert saved["saved_paper"] > 0.97
    assert 0.8 < saved["saved_analytic"] < saved["saved_language_model"] < 0.9
    assert (table.loc[576.0, ["saved_paper", "saved_analytic"]] == 0).all()
    assert table.loc[576.0, "select"] == 0 < saved["select"] < 0.05 * saved["flops_analytic"]


@pytest.mark.parametrize("budget", [0, 1, 7, 36])
def test_the_equal_budget_of_equal_layers_is_their_budget(small, budget):
    assert equal_flops_budget(small, 9, [budget] * 3) == budget


@pytest.mark.parametrize("profile", [(36, 10, 3), (36, 36, 0), (1, 0, 0), (20, 20, 19)])
@pytest.mark.parametrize("attention", ["full", "causal"])
def test_the_equal_budget_is_the_nearest(small, profile, attention):
    def cost(tokens):
        return flops_analytic(small, tokens, 9, attention=attention).language_model

    budget = equal_flops_budget(small, 9, profile, attention)
    nearest = min(range(37), key=lambda tokens: abs(cost(tokens) - cost(profile)))
    assert budget == nearest


def test_the_equal_budget_is_above_the_mean_where_attention_is_quadratic(llava):
    layers = llava.text_config.num_hidden_layers
    fastv = [576] * 2 + [64] * (layers - 2)
    assert sum(fastv) / layers <= equal_flops_budget(llava, 64, fastv) <= sum(fastv) / layers + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_equal_those_of_a_cache(dtype):
    model, inputs = tiny.build("clip").to(dtype), tiny.prompts((1,))
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with prune(model, Random(7)), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    text = inputs["input_ids"].shape[1] - tiny.TOKENS
    assert kv_cache_bytes(model.config, 7, text, dtype) == held
    assert kv_cache_bytes(model.config, (7, 7, 7), text, dtype) == held
    one = kv_cache_bytes(model.config, (1, 0, 0), 0, dtype)
    assert kv_cache_bytes(model.config, (5, 1, 0), 2, dtype) == one * (5 + 1 + 3 * 2)


def test_the_table_has_a_row_for_each_budget(small):
    budgets = [36, 7, (36, 10, 3), 0]
    table = cost_table(small, budgets, 9, method=IDSelection(0.5), counted=True)
    assert table["profile"].tolist() == ["36x3", "7x3", "36x1,10x1,3x1", "0x3"]
    assert table["budget"].tolist() == [36, 7, 49 / 3, 0]
    assert table["equal_budget"].tolist() == [36, 7, equal_flops_budget(small, 9, (36, 10, 3)), 0]
    assert (table["select"] > 0).tolist() == [False, True, False, False]
    assert (table["flops_counted"] == table["flops_analytic"] - table["select"]).all()
    assert (table["flops_analytic"] == table["encode"] + table["select"] + table["language_model"]).all()
    assert table["flops_paper"].tolist() == [flops_paper(small, budget) for budget in budgets]
    assert table["saved_paper"].iloc[-1] == 1
    without = cost_table(small, budgets, 9)
    assert without["select"].eq(0).all()
    assert without["flops_counted"].isna().all()


@pytest.mark.parametrize(
    ("kind", "call", "message"),
    [
        (ValueError, lambda c: flops_paper(c, -3), "visual_tokens must be 0 or more, not -3"),
        (ValueError, lambda c: flops_analytic(c, (7, -1, 0), 9), "visual_tokens of layer 1 must be 0 or more, not -1"),
        (ValueError, lambda c: flops_analytic(c, 7, -9), "text_tokens must be 0 or more, not -9"),
        (ValueError, lambda c: flops_paper(c, [7, 7]), "one for each of the 3 layers, not 2"),
        (ValueError, lambda c: equal_flops_budget(c, 9, [7] * 4), "one for each of the 3 layers, not 4"),
        (ValueError, lambda c: kv_cache_bytes(c, [], 9), "one for each of the 3 layers, not 0"),
        (TypeError, lambda c: flops_paper(c, 7.5), r"visual_tokens must be a number of tokens \(int\), not 7.5"),
        (TypeError, lambda c: flops_paper(c, True), "not True"),
        (TypeError, lambda c: flops_paper({}, 7), "a transformers configuration, not dict"),
        (ValueError, lambda c: flops_analytic(c, 37, 9), "at most the 36 that the vision tower gives, not 37"),
        (ValueError, lambda c: flops_counted(c, (7, 8, 8), 9), "layer 1 reads 8 after 7"),
        (ValueError, lambda c: flops_counted(c, 0, 0), "a prompt without tokens"),
        (ValueError, lambda c: flops_analytic(c, 7, 9, image_size=3), "at least a patch, 4 x 4 pixels, not 3 x 3"),
        (ValueError, lambda c: full_budget(c, (3, 4, 5, 6)), r"one number, or height and width, not \(3, 4, 5, 6\)"),
        (ValueError, lambda c: flops_analytic(c, 7, 9, attention="half"), "attention must be one of full, causal"),
        (ValueError, lambda c: flops_counted(c, 7, 9, logits="first"), "logits must be one of last, all"),
        (ValueError, lambda c: flops_analytic(c, 7, 9, method=Random(8)), "keeps 8 of 36 tokens, .* says 7"),
        (
            ValueError,
            lambda c: flops_analytic(c, 7, 9, method=get_method("divprune", budget=7)),
            "method 'divprune' is not known; known: idselection, topk, diversity, random, uniform, fastv",
        ),
        (
            ValueError,
            lambda c: flops_analytic(c, 7, 9, method=TopK(7, importance="relevance")),
            "importance 'relevance' is not known; known: saliency",
        ),
        (
            ValueError,
            lambda c: flops_analytic(c, 7, 9, method=IDSelection(7, instruction_layer=3)),
            "layer 3 does not exist; the language model has 3",
        ),
    ],
)
def test_bad_input_is_refused(small, kind, call, message):
    with pytest.raises(kind, match=message):
        call(small)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            CLIPConfig(),
            "model type 'clip' is not counted yet; counted are: gemma3, idefics3, internvl, llava, llava_next",
        ),
        (
            BertConfig(),
            "language model type 'bert' is not counted yet; counted are: gemma, gemma2, gemma3_text, llama, mistral",
        ),
        (LlamaConfig(), "type 'llama' has no vision tower"),
        (
            LlavaConfig(vision_config=PixtralVisionConfig(), text_config=LlamaConfig()),
            "tower type 'pixtral' is not counted yet; counted are: clip_vision_model, dinov2, siglip_vision_model, vit",
        ),
    ],
)
def test_an_unknown_model_type_is_refused_with_the_known_ones(other, message):
    with pytest.raises(ValueError, match=message):
        flops_analytic(other, 7, 9)


def test_the_command_line_prints_a_table(capsys):
    model = str(CONFIGS / "llava-1.5-7b.json")
    assert main(["--model", model, "--budgets", "576", "16", "576x2,64x30", "--counted"]) == 0
    printed = capsys.readouterr().out
    for number in ("3,817", "103.7", "97.3%", "576x2,64x30", "flops_counted"):
        assert number in printed


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        (["qwen2-audio-7b"], "750x32"),
        (["qwen2-audio-7b", "--image-size", "500"], "125x32"),
        (["smolvlm2-2.2b", "--image-size", "768", "768"], "405x24"),
        (["gemma-3-4b"], "256x34"),
        (["qwen2.5-vl-7b", "--image-size", "448", "448", "--frames", "125"], "16128x28"),
    ],
)
def test_the_command_line_counts_clips_tiles_and_images_of_fixed_size(arguments, whole, capsys):
    assert main(["--model", *arguments]) == 0
    assert whole in capsys.readouterr().out


def test_the_command_line_reads_the_image_size_of_a_model_folder(capsys):
    assert read_config(MODEL)[1] == (336, 336)
    assert main(["--method", "none"]) == 0
    assert "576x5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "no model in nowhere"),
        (["--budgets", "-5"], "must be visual tokens such as 64, or 576x2,64x30 by layers, not '-5'"),
        (["--budgets", "577"], "at most the 576"),
        (["--budgets", "576x2,64x4"], "one for each of the 5 layers, not 6"),
        (["--method", "idselecton"], "did you mean 'idselection'"),
        (["--dtype", "half-a-byte"], "'half-a-byte' is no torch dtype"),
        (["--model", "smolvlm2-2.2b"], "images of type 'smolvlm' have no fixed size: give image_size"),
        (["--image-size", "1", "2", "3"], "a size must be one number, or height and width, not (1, 2, 3)"),
        (["--text", "-1"], "argument --text: must be an int of 0 or more, not '-1'"),
    ],
)
def test_the_command_line_names_the_fault(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_the_command_line_has_help(capsys):
    assert main(["--help"]) == 0
    assert "flops_paper" in capsys.readouterr().out


def test_a_score_that_reads_the_instruction_costs_the_layers_before_it():
    """By hand for the embedded backbone: two whole layers, then one query, the keys, and the products."""
    config, _ = read_config(MODEL)
    cost = functools.partial(flops_scoring, config, visual_tokens=576, text_tokens=30)
    d, m, layers = 192, config.text_config.intermediate_size, config.text_config.num_hidden_layers
    heads, keys = config.text_config.num_attention_heads, config.text_config.num_key_value_heads
    share, length = keys / heads, 606
    layer = 2 * length * (d * d * (2 + 2 * share) + 3 * d * m) + 4 * length**2 * d
    row = 2 * length * d * d * share + 2 * d * d + 2 * 576 * d
    assert cost(IDSelection(64, importance="instruction", instruction_layer=2, instruction_tokens="last")) == (
        pytest.approx(2 * layer + row)
    )
    assert cost(IDSelection(64, importance="saliency")) == cost(get_method("cdpruner", budget=64)) == 0
    assert cost(IDSelection(64, importance="relevance")) == 0
    words = cost(IDSelection(64, importance="unified", instruction_layer=0, instruction_tokens="words"))
    assert 0 < words < 0.1 * layer * layers
    with pytest.raises(ValueError, match=f"layer {layers} does not exist"):
        cost(IDSelection(64, importance="instruction", instruction_layer=layers))


def test_the_cost_of_a_score_of_ones_own_is_not_known(monkeypatch):
    monkeypatch.setitem(IMPORTANCE, "mine", lambda tokens: tokens.saliency)
    config, _ = read_config(MODEL)
    assert flops_scoring(config, IDSelection(64, importance="mine"), 576, 30) is None
    assert math.isnan(Gflops(config).scoring(IDSelection(64, importance="mine"), 576, 30))
    assert Gflops(config).scoring("full", 576, 30) == 0
