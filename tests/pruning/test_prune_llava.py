"""prune() on tiny random LLaVAs: against hand-built shorter sequences, and against no pruning at all."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from idsel_core import Companion, Downsample, IDSelection, Random, TopK, UniformGrid, adapter_for, prune
from idsel_core.backbones._shared.caches import cache_in, with_cache
from idsel_core.methods import METHODS, InLLM
from tests.support import families, tiny
from tests.support.llava_prompts import CHUNKS, GREEDY, LAYOUTS, Fixed, by_hand, ragged, run

ALL = UniformGrid(budget=1.0)


@pytest.fixture(scope="module", params=["clip", "dinov2", "siglip"])
def model(request):
    return tiny.build(request.param)


@pytest.fixture(scope="module")
def clip():
    return tiny.build("clip")


@pytest.mark.feature("all kept: bit-equal")
@pytest.mark.parametrize("positions", ["compact", "keep"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_keeping_all_tokens_is_bit_equal(model, layout, positions):
    inputs = tiny.prompts(layout)
    plain, plain_logits = run(model, inputs), model(**inputs).logits
    with prune(model, ALL, positions):
        pruned, pruned_logits = run(model, inputs), model(**inputs).logits
    assert torch.equal(plain.sequences, pruned.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    assert torch.equal(plain_logits, pruned_logits)


@pytest.mark.feature("all kept: bit-equal")
@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}]
)
def test_keeping_all_tokens_is_bit_equal_in_search(clip, options):
    inputs = tiny.prompts((1, 2))
    torch.manual_seed(5)
    plain = clip.generate(**inputs, **{**GREEDY, **options})
    with prune(clip, ALL):
        torch.manual_seed(5)
        assert torch.equal(clip.generate(**inputs, **{**GREEDY, **options}), plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keeping_all_tokens_while_reading_saliency_is_bit_equal(attention):
    model, inputs = tiny.build("clip", attention), tiny.prompts((1, 2), side="right")
    plain = model(**inputs).logits
    with prune(model, TopK(budget=1.0)):
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.feature("equals shorter prompts")
@pytest.mark.parametrize("positions", ["compact", "keep"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pruning_equals_a_shortened_prompt(model, layout, positions):
    inputs, method = tiny.prompts(layout), ragged(sum(layout))
    wanted = by_hand(model, inputs, layout, list(map(torch.tensor, method.picks)), 5, positions == "keep")
    with prune(model, method, positions):
        got, whole = run(model, inputs), model(**inputs, use_cache=True)
    longest = max(length for *_, length in wanted)
    assert got.past_key_values.get_seq_length() == longest + 4
    assert whole.past_key_values.get_seq_length() == longest
    assert whole.logits.shape[1] == inputs["input_ids"].shape[1]
    for row, (logits, chosen, _) in enumerate(wanted):
        torch.testing.assert_close(torch.stack([step[row] for step in got.logits]), logits, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(whole.logits[row, -1], logits[0], atol=2e-5, rtol=1e-4)
        assert got.sequences[row, inputs["input_ids"].shape[1] :].tolist() == chosen
    assert torch.equal(got.sequences[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])


@pytest.mark.feature("padded batches")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_logits(clip, side):
    layout = (2, 0, 1)
    inputs, method = tiny.prompts(layout, side), IDSelection(budget=6, importance="saliency")
    with prune(clip, method):
        batch = clip(**inputs).logits
        report = prune(clip, method).report
        for row in range(len(layout)):
            single = clip(**tiny.alone(inputs, layout, row)).logits[0]
            at = slice(-len(single), None) if side == "left" else slice(0, len(single))
            torch.testing.assert_close(batch[row, at], single, atol=2e-5, rtol=1e-4)
    assert report == []


@pytest.mark.feature("beams")
def test_beams_and_samples_do_not_mix_prompts(clip):
    layout = (2, 1, 1)
    inputs, method = tiny.prompts(layout), ragged(4)
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 3}
    with prune(clip, method):
        together = clip.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row, first in enumerate([0, 2, 3]):
        single = tiny.alone(inputs, layout, row)
        with prune(clip, Fixed(picks=method.picks[first : first + layout[row]])):
            got = clip.generate(**single, **options)[:, single["input_ids"].shape[1] :]
        assert torch.equal(got, together[3 * row : 3 * row + 3])


def test_sampling_draws_from_the_shortened_distribution(clip):
    inputs, method = tiny.prompts((1, 1)), ragged(2)
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 4, "suppress_tokens": [tiny.IMAGE]}
    backbone = adapter_for(clip)
    encoded = backbone.encode(inputs["pixel_values"])
    tokens = backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"])
    short = backbone.shorten(inputs, tokens, method.select(tokens))
    torch.manual_seed(2)
    wanted = clip.generate(**short, **options)[:, short["input_ids"].shape[1] :]
    torch.manual_seed(2)
    with prune(clip, method):
        got = clip.generate(**inputs, **options)
    assert torch.equal(got[:, inputs["input_ids"].shape[1] :], wanted)
    assert torch.equal(got[:, : inputs["input_ids"].shape[1]], inputs["input_ids"].repeat_interleave(2, 0))


@pytest.mark.feature("static cache, chunked prefill")
@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}, CHUNKS],
)
def test_generation_options_give_the_same_tokens(clip, options):
    inputs, method = tiny.prompts((1, 2)), ragged(3)
    with prune(clip, method):
        assert torch.equal(clip.generate(**inputs, **GREEDY, **options), clip.generate(**inputs, **GREEDY))


def test_prompt_lookup_equals_greedy_decoding(clip):
    inputs, method = tiny.prompts((1,)), ragged(1)
    with prune(clip, method):
        wanted = clip.generate(**inputs, **GREEDY)
        assert torch.equal(clip.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=2), wanted)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("where", ["argument", "config", "model"])
def test_length_limits_count_the_full_prompt(clip, where, monkeypatch):
    inputs = tiny.prompts((1,))
    limits = {"max_length": inputs["input_ids"].shape[1] + 4, "min_length": inputs["input_ids"].shape[1] + 4}
    given = {**limits} if where == "argument" else {}
    if where == "config":
        given = {"generation_config": GenerationConfig(**limits, do_sample=False, pad_token_id=tiny.PAD)}
    if where == "model":
        for name, value in limits.items():
            monkeypatch.setattr(clip.generation_config, name, value)
    before = copy.deepcopy(given.get("generation_config"))
    with prune(clip, ragged(1)):
        assert clip.generate(**inputs, **given).shape[1] == limits["max_length"]
        assert clip.generate(**inputs, **given, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
    assert before is None or before.to_dict() == given["generation_config"].to_dict()


def test_prompts_may_be_positional_or_lack_a_mask(clip):
    inputs = tiny.prompts((1, 2))
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    with prune(clip, ragged(3)):
        wanted = clip.generate(**inputs, **GREEDY)
        assert torch.equal(clip.generate(ids, pixel_values=pixels, **GREEDY), wanted)
        assert torch.equal(clip.generate(inputs=ids, pixel_values=pixels, **GREEDY), wanted)
        assert torch.equal(clip(ids, pixels, inputs["attention_mask"]).logits, clip(**inputs).logits)


@pytest.mark.feature("labels, gradients")
def test_labels_are_shortened_and_gradients_flow(clip):
    inputs = tiny.prompts((1, 2))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] <= tiny.PAD, -100)
    labels[inputs["input_ids"] == tiny.IMAGE] = -100
    with prune(clip, ragged(3), full_logits=False):
        out = clip(**inputs, labels=labels)
        out.loss.backward()
    # By hand: the label of a column is compared with the logits of the column before it.
    backbone = adapter_for(clip)
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"]), inputs["input_ids"])
    short = backbone.shorten({**inputs, "labels": labels}, tokens, ragged(3).select(tokens))
    wanted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), short["labels"][:, 1:].flatten())
    torch.testing.assert_close(out.loss, wanted)
    assert clip.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    clip.zero_grad(set_to_none=True)


def test_given_positions_are_compacted_or_kept(clip):
    inputs, method = tiny.prompts((1,)), ragged(1)
    positions = torch.arange(inputs["input_ids"].shape[1])[None] + 7
    with prune(clip, method):
        shifted = clip(**inputs, position_ids=positions).logits
        torch.testing.assert_close(shifted, clip(**inputs).logits, atol=2e-5, rtol=1e-4)
    with prune(clip, method, positions="keep"):
        torch.testing.assert_close(
            clip(**inputs, position_ids=positions).logits, clip(**inputs).logits, atol=2e-5, rtol=1e-4
        )
        assert not torch.allclose(clip(**inputs).logits, shifted, atol=1e-3)


def test_position_gaps_do_not_split_the_prompt_without_a_cache(clip):
    inputs = {**tiny.prompts((1,)), "attention_mask": None}
    with prune(clip, ragged(1), positions="keep"):
        wanted = clip(**inputs, use_cache=True).logits
        torch.testing.assert_close(clip(**inputs, use_cache=False).logits, wanted, atol=2e-5, rtol=1e-4)


def test_model_reads_merged_features(clip):
    @dataclasses.dataclass(frozen=True)
    class Doubled(Fixed):
        def select(self, tokens):
            picks = super().select(tokens)
            rows = torch.arange(len(tokens))[:, None]
            return dataclasses.replace(picks, features=2 * tokens.features[rows, picks.indices.clamp(min=0)])

    inputs, method = tiny.prompts((1, 1)), ragged(2)
    with prune(clip, Doubled(picks=method.picks)):
        got = clip(**inputs)
    with prune(clip, method):
        plain = clip(**inputs)
    # One tensor, or a list of them in newer transformers.
    doubled, once = (torch.cat(list(out.image_hidden_states)) for out in (got, plain))
    assert torch.equal(doubled, 2 * once)
    assert not torch.allclose(got.logits, plain.logits)


@pytest.mark.parametrize("tower", ["clip", "dinov2", "siglip"])
def test_model_reads_the_smaller_image(tower):
    model, inputs = tiny.build(tower), tiny.prompts((1, 1))
    small = torch.nn.functional.interpolate(inputs["pixel_values"], size=(12, 12), mode="bicubic", antialias=True)
    seen = []
    hook = model.model.vision_tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    with prune(model, Downsample(budget=11)) as run_:
        out = model(**inputs)
        text = int((inputs["input_ids"] != tiny.IMAGE).sum(1).max())
        assert out.past_key_values.get_seq_length() == text + 9
        assert model.generate(**inputs, **GREEDY).shape[1] == inputs["input_ids"].shape[1] + 5
    hook.remove()
    assert torch.equal(seen[0], small) and seen[0].shape == (2, 3, 12, 12)
    assert [(r.before, r.after, r.requested) for r in run_.report] == [(36, 9, 11)] * 4


def test_text_only_prompts_are_not_changed(clip):
    inputs = tiny.prompts((0, 0))
    plain, logits = clip.generate(**inputs, **GREEDY), clip(**inputs).logits
    with prune(clip, IDSelection(budget=5)) as run_:
        assert torch.equal(clip.generate(**inputs, **GREEDY), plain)
        assert torch.equal(clip(**inputs).logits, logits)
    assert run_.report == []


def test_manual_decoding_continues_from_the_shorter_cache(clip):
    inputs, method = tiny.prompts((1,)), ragged(1)
    wanted = by_hand(clip, inputs, (1,), list(map(torch.tensor, method.picks)), 3)[0][0]
    with prune(clip, method):
        out = clip(**inputs, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        step = clip(input_ids=token, past_key_values=out.past_key_values)
        torch.testing.assert_close(step.logits[0, -1], wanted[1], atol=2e-5, rtol=1e-4)
        with pytest.raises(ValueError, match="attention_mask has 50 columns, but the shortened cache"):
            clip(input_ids=token, past_key_values=out.past_key_values, attention_mask=torch.ones(1, 50))


def changed(**replacements):
    return lambda inputs: {**inputs, **replacements}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(input_ids=torch.tensor([[1, 5]]), attention_mask=None), r"1 image\(s\) were given, .* no image place"),
        (changed(pixel_values=None), "the prompt holds 36 image placeholders, but there are no pixel_values"),
        (changed(pixel_values=torch.zeros(2, 3, 24, 24)), r"hold 36 image placeholders .* the 2 image\(s\) fill 72"),
        (changed(pixel_values=torch.zeros(1, 3, 24)), r"pixel_values must be \(images, 3, .*\), not \(1, 3, 24\)"),
        (changed(attention_mask=torch.ones(1, 3)), "attention_mask must be .* as input_ids, not"),
        (changed(attention_mask=torch.zeros(1, 46)), "attention_mask hides image placeholders"),
        (changed(inputs_embeds=torch.zeros(1, 46, 32)), "as input_ids, not as inputs_embeds"),
        (changed(mm_encoder_outputs={"image": 1}), "give pixel_values instead of mm_encoder_outputs"),
        (changed(logits_to_keep=torch.tensor([1])), "logits_to_keep must be a number"),
        (changed(image_sizes=torch.tensor([[24, 24]])), "Pixtral"),
    ],
)
def test_mismatched_inputs_are_refused(clip, change, message):
    with prune(clip, ALL), pytest.raises(ValueError, match=message):
        clip(**change(tiny.prompts((1,))))


def test_generate_refuses_unsupported_options(clip):
    inputs = tiny.prompts((1,))
    with prune(clip, ragged(1)):
        cache = clip.generate(**inputs, **GREEDY, return_dict_in_generate=True).past_key_values
        for again in (inputs, {"input_ids": inputs["input_ids"]}):
            with pytest.raises(ValueError, match="all of which the cache holds already: append new text"):
                clip.generate(**again, **GREEDY, past_key_values=cache)
        with pytest.raises(ValueError, match="continuous batching"):
            clip.generate(**inputs, **GREEDY, cache_implementation="paged")
    with prune(clip, ragged(1), positions="keep"):
        with pytest.raises(ValueError, match='positions="keep" needs use_cache=True'):
            clip.generate(**inputs, **GREEDY, use_cache=False)
        with pytest.raises(ValueError, match='positions="keep" needs use_cache=True'):
            clip.generate(**inputs, generation_config=GenerationConfig(use_cache=False))


def test_chunks_are_refused_where_each_would_read_all_images(clip, monkeypatch):
    monkeypatch.setattr("idsel_core.pruning.block.TRANSFORMERS", "5.22.2")
    with prune(clip, ragged(1)), pytest.raises(ValueError, match=r"prefill_chunk_size needs transformers 5\.23 or"):
        clip.generate(**tiny.prompts((1,)), **GREEDY, prefill_chunk_size=5)


def test_cache_is_found_under_both_of_its_names():
    cache = DynamicCache()
    assert cache_in({"cache": cache}) is cache_in({"cache": None, "past_key_values": cache}) is cache
    assert cache_in({"past_key_values": None}) is None


class Older(torch.nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return past_key_values


class Newer(torch.nn.Module):
    def forward(self, input_ids, cache=None):
        return cache


@pytest.mark.parametrize("kind", [Older, Newer])
def test_cache_is_passed_under_the_model_s_name_for_it(kind):
    model, cache = kind(), DynamicCache()
    assert model(torch.ones(1), **with_cache(model, cache)) is cache


def test_image_across_two_prompts_is_refused(clip):
    inputs = tiny.prompts((1, 1))
    ids = inputs["input_ids"].clone()
    ids[0, (ids[0] == tiny.IMAGE).nonzero()[0]] = 5
    ids[1, -1] = tiny.IMAGE
    with prune(clip, ALL), pytest.raises(ValueError, match=r"image 0 would extend over two prompts; .*\[35, 37\]"):
        clip(**{**inputs, "input_ids": ids})


def test_prune_refuses_wrong_arguments(clip):
    with pytest.raises(TypeError, match="method must be a Method"):
        prune(clip, "idselection")
    with pytest.raises(ValueError, match="positions must be one of compact, keep, not 'tight'"):
        prune(clip, ALL, positions="tight")
    with pytest.raises(TypeError, match="model must be a transformers model with generate"):
        prune(torch.nn.Linear(1, 1), ALL)
    with pytest.raises(TypeError, match="LlavaModel"):
        prune(clip.model, ALL)
    with pytest.raises(TypeError, match=r"relevance must have project\(\) and embed_text\(\), which int lacks"):
        prune(clip, ALL, relevance=3)
    other = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )
    with pytest.raises(ValueError, match=r"model type 'qwen2' is not supported; supported: .*llava"):
        prune(other, ALL)


def test_older_transformers_is_refused(clip, monkeypatch):
    def forward(self, input_ids=None, pixel_values=None, **kwargs):
        raise AssertionError

    monkeypatch.setattr(type(clip), "forward", forward)
    with pytest.raises(ValueError, match=r"no mm_encoder_outputs; install transformers 5\.19 or newer"):
        prune(clip, ALL)


BEFORE = [
    name
    for name, method in METHODS.items()
    if name not in ("downsample", *families.OF_VIDEOS, "adaptive") and not issubclass(method, InLLM)
] + ["vscan"]


@pytest.mark.feature("methods")
@pytest.mark.parametrize("name", BEFORE)
def test_each_method_prunes(clip, name):
    choices = {"importance": "unified", "layer": None}
    knobs = {knob: value for knob, value in choices.items() if knob in METHODS[name].__dataclass_fields__}
    inputs = tiny.prompts((1, 2))
    with prune(clip, METHODS[name](budget=7, **knobs), relevance=Companion(tiny.companion())) as run_:
        out = clip.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    assert [r.after for r in run_.report] == [7, 7, 7]
    assert all(r.layers == [7, 7, 7] and r.average == 7 and r.drops == [] for r in run_.report)
    text = (inputs["input_ids"] > 0) & (inputs["input_ids"] != tiny.IMAGE)
    assert out.past_key_values.get_seq_length() == int((text.sum(1) + 7 * torch.tensor([1, 2])).max()) + 4


@pytest.mark.parametrize("name", families.OF_VIDEOS)
def test_video_methods_refuse_images(clip, name):
    message = families.LLAVA.refused[name]
    with prune(clip, METHODS[name](budget=7)), pytest.raises(ValueError, match=message):
        clip(**tiny.prompts((1,)))


@pytest.mark.feature("methods")
def test_adaptive_budgets_prune_a_batch_at_the_same_total(clip):
    with prune(clip, METHODS["adaptive"](budget=7, demand="both")) as run_:
        clip.generate(**tiny.prompts((1, 2)), **GREEDY)
    after = [r.after for r in run_.report]
    assert sum(after) == 21 and len(set(after)) > 1


def test_relevance_comes_from_the_companion(clip):
    inputs, method = tiny.prompts((1, 2)), TopK(budget=4, importance="relevance")
    with prune(clip, method, relevance=Companion(tiny.companion())) as run_:
        clip(**inputs)
    backbone = adapter_for(clip, Companion(tiny.companion()))
    tokens = backbone.visual_tokens(backbone.encode(inputs["pixel_values"]), inputs["input_ids"])
    assert [r.order for r in run_.report] == tokens.relevance.topk(4).indices.tolist()
    with prune(clip, method), pytest.raises(ValueError, match="relevance is not available: no image-text companion"):
        clip(**inputs)


def test_random_selects_alike_in_prune_and_from_stored_encodings(clip):
    inputs, method = tiny.prompts((1, 2)), Random(budget=5, seed=3)
    with prune(clip, method) as run_:
        clip(**inputs)
    backbone = adapter_for(clip)
    encoded = type(backbone.encode(inputs["pixel_values"])).from_tensors(
        backbone.encode(inputs["pixel_values"]).tensors(["image_key"])
    )
    tokens = backbone.visual_tokens(encoded.take(torch.tensor([2])), tiny.alone(inputs, (1, 2), 0)["input_ids"])
    assert method.select(tokens).order[0].tolist() == run_.report[2].order


@pytest.mark.feature("bfloat16")
def test_half_precision_runs(clip):
    model = copy.deepcopy(clip).to(torch.bfloat16)
    inputs = tiny.prompts((1, 2))
    with warnings.catch_warnings(), prune(model, IDSelection(budget=6, features="encoder")) as run_:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the chat template of this model is not known")
        assert model(**inputs).logits.dtype == torch.bfloat16
    assert [r.after for r in run_.report] == [6, 6, 6]
