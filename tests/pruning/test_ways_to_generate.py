"""prune() in further ways to generate, to compile and to attend, for every family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, CompileConfig, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import flash_attention_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from idsel_core import IDSelection, TopK, UniformGrid, adapter_for, prune
from idsel_core.methods import FastV, Method
from tests.support import families, tiny
from tests.support.families import FAMILIES
from tests.support.family_prompts import ALL, BARRED, MIXED, by_hand
from tests.support.family_prompts import ragged as ragged_of
from tests.support.llava_prompts import ragged, run

GREEDY = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": BARRED}
SCORED = IDSelection(budget=6, importance="unified")
INSIDE = FastV(budget=7, budget_convention="final")


@dataclass(frozen=True)
class Case:
    """A family with prompts of several images and of one, and picks of them."""

    name: str
    build: Callable[..., Any]
    several: dict[str, torch.Tensor]
    single: dict[str, torch.Tensor]
    picks: Method
    pick: Method
    inside: bool = True
    """Whether tokens can be dropped inside the language model, too."""
    causal: bool = True
    """Whether no token of a prompt attends to later ones."""

    @property
    def methods(self):
        return [self.pick, SCORED, *([INSIDE] if self.inside else [])]


CASES = {
    "llava": Case(
        "llava", lambda a="sdpa": tiny.build("clip", a), tiny.prompts((1, 2)), tiny.prompts((1,)), ragged(3), ragged(1)
    ),
    **{
        name: Case(
            name,
            family.build,
            family.prompts(MIXED),
            family.prompts(((1,),)),
            ragged_of(family, MIXED),
            ragged_of(family, ((1,),)),
            "fastv" not in family.refused,
            family.causal,
        )
        for name, family in FAMILIES.items()
    },
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def model(case):
    return case.build()


@pytest.mark.feature("assisted decoding")
def test_assistant_of_the_family_equals_greedy_decoding(case, model):
    if case.name == "paligemma":
        pytest.skip("transformers reads the first drafts as words of the prompt, also without prune()")
    torch.manual_seed(1)
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in assistant.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    for method in case.methods:
        with prune(model, method):
            wanted = model.generate(**case.single, **GREEDY)
            assert torch.equal(model.generate(**case.single, **GREEDY, assistant_model=assistant), wanted)


def test_text_only_assistant_equals_greedy_decoding_or_is_refused(case, model):
    torch.manual_seed(1)
    assistant = LlamaForCausalLM(LlamaConfig(**{**families.TEXT, "num_hidden_layers": 1})).eval()
    assistant.generation_config.pad_token_id, assistant.generation_config.eos_token_id = families.PAD, None
    options = {**GREEDY, "assistant_model": assistant}
    for method in case.methods:
        with prune(model, method):
            if {"mm_token_type_ids", "token_type_ids"} & set(case.single):
                # So it is without prune(), too.
                with pytest.raises(ValueError, match=r"not used by the model: \['(mm_)?token_type_ids'\]"):
                    model.generate(**case.single, **options)
            else:
                wanted = model.generate(**case.single, **GREEDY)
                assert torch.equal(model.generate(**case.single, **options), wanted)


def test_generate_records_no_gradients(case, model):
    """Whatever stands around generate(), which needs none."""
    seen = []
    hook = adapter_for(model).language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].requires_grad), with_kwargs=True
    )
    with prune(model, case.pick), torch.enable_grad():
        model.generate(**case.single, **GREEDY)
    hook.remove()
    assert seen and not any(seen)


@pytest.mark.parametrize(
    ("name", "how"),
    # Slow to trace, and alike in the other families.
    [("llava", "in place"), ("llava", "wrapped"), ("qwen2_5_vl", "in place"), ("qwen2_audio", "in place")],
)
@pytest.mark.fast_for(name=["llava"], how=["wrapped"])
def test_compiled_language_model_gives_the_same_tokens(name, how):
    case, options = CASES[name], {**GREEDY, "max_new_tokens": 2}
    model = case.build()
    with prune(model, SCORED):
        wanted = model.generate(**case.single, **options)
    torch._dynamo.reset()
    if how == "in place":
        model.model.language_model.compile(backend="eager")
    else:
        model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    with prune(model, SCORED):
        assert torch.equal(model.generate(**case.single, **options), wanted)
    if how == "wrapped":
        message = r"that torch\.compile\(\) has wrapped: compile it in place"
        with prune(model, INSIDE), pytest.raises(ValueError, match=message):
            model.generate(**case.single, **options)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_that_is_compiled_as_a_whole_is_pruned():
    case = CASES["llava"]
    torch._dynamo.reset()
    model, halved = case.build(), UniformGrid(budget=0.5)
    whole = model(**case.single).logits
    with prune(model, halved):
        wanted, logits = model.generate(**case.single, **GREEDY), model(**case.single).logits
    compiled = torch.compile(model, backend="eager")
    with prune(compiled, halved) as run:
        assert torch.equal(compiled.generate(**case.single, **GREEDY), wanted)
        assert torch.equal(compiled(**case.single).logits, logits)
    assert len(run.report) == 2
    assert torch.equal(compiled(**case.single).logits, whole)


@pytest.mark.feature("compiled static cache")
@pytest.mark.fast_for(case=["llava", "qwen2_5_vl"])
def test_compiled_static_cache_gives_the_same_tokens(case, model):
    compiled = CompileConfig(backend="eager", fullgraph=False, mode=None)
    compiled._compile_all_devices = True
    torch._dynamo.reset()
    with prune(model, case.picks):
        wanted = model.generate(**case.several, **GREEDY)
        got = model.generate(**case.several, **GREEDY, cache_implementation="static", compile_config=compiled)
    assert torch.equal(got, wanted)


@torch.no_grad()
def test_keeping_all_tokens_is_bit_equal_in_half_precision(case, model):
    half = copy.deepcopy(model).to(torch.bfloat16)
    for inputs in (case.several, case.single):
        plain, logits = run(half, inputs, **GREEDY), half(**inputs).logits
        for method in (ALL, TopK(budget=1.0, importance="unified")):
            with prune(half, method):
                pruned, pruned_logits = run(half, inputs, **GREEDY), half(**inputs).logits
            assert logits.dtype == pruned_logits.dtype == torch.bfloat16
            assert torch.equal(plain.sequences, pruned.sequences)
            assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
            assert torch.equal(logits, pruned_logits)


@torch.no_grad()
def test_half_precision_pruning_is_close_to_a_shortened_prompt():
    for name, family in FAMILIES.items():
        case, model = CASES[name], family.build()
        half = copy.deepcopy(model).to(torch.bfloat16)
        single = {key: value.bfloat16() if value.is_floating_point() else value for key, value in case.single.items()}
        wanted = by_hand(family, model, ((1,),), 0, case.pick.picks, 1)[0][0]
        with prune(half, case.pick):
            got = run(half, single, **GREEDY).logits[0][0].float()
        with prune(half, ALL):
            other = run(half, single, **GREEDY).logits[0][0].float()
        assert (got - wanted).norm() < 0.1 * wanted.norm() < (other - wanted).norm(), name


def flash(module, query, key, value, attention_mask, scaling=None, is_causal=None, cu_seq_lens_q=None, **_):
    """What FlashAttention does, by SDPA: masks have two axes, sequences borders, and modules know their kernel."""
    assert module.config._attn_implementation == "made_up_flash"
    queries, keys = query.shape[2], key.shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool)
    if module.is_causal if is_causal is None else is_causal:
        allowed = allowed.tril(keys - queries)
    if cu_seq_lens_q is not None:
        sequence = torch.bucketize(torch.arange(queries), cu_seq_lens_q[1:], right=True)
        allowed &= sequence[:, None] == sequence
    allowed = allowed.expand(len(query), 1, -1, -1)
    if attention_mask is not None:
        assert attention_mask.ndim == 2
        allowed = allowed & attention_mask[:, None, None, -keys:].bool()
    out = functional.scaled_dot_product_attention(query, key, value, allowed, scale=scaling, enable_gqa=True)
    return out.nan_to_num().transpose(1, 2).contiguous(), None


def named(module, *args, **kwargs):
    """SDPA by a name of one's own."""
    assert module.config._attn_implementation == "made_up"
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, *args, **kwargs)


AttentionInterface.register("made_up", named)
AttentionMaskInterface.register("made_up", sdpa_mask)
AttentionInterface.register("made_up_flash", flash)
AttentionMaskInterface.register("made_up_flash", flash_attention_mask)


@pytest.mark.feature("attention by name")
@pytest.mark.parametrize("attention", ["made_up", "made_up_flash"])
@torch.no_grad()
@pytest.mark.fast_for(attention=["made_up_flash"])
def test_scores_do_not_depend_on_the_attention_implementation(case, model, attention):
    if attention == "made_up_flash" and not case.causal:
        pytest.skip("FlashAttention has no mask that lets tokens attend to later ones")
    other = case.build()
    for module in other.modules():
        if hasattr(module, "config"):
            # set_attn_implementation() would look for a kernel of this name.
            module.config._attn_implementation_internal = attention
    rows = []
    for one in (model, other):
        backbone = adapter_for(one)
        encoded = backbone.encode(**backbone.image_arguments(case.several), tower_depths=(0.0,))
        tokens = backbone.visual_tokens(encoded, case.several["input_ids"], case.several["attention_mask"])
        rows.append((tokens.saliency, tokens.at_depth("received_attention", 0.0), tokens.instruction_attention))
    for got, wanted in zip(*rows, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)
    for method in (*case.methods, TopK(budget=1.0)):
        for positions in ("compact", "keep")[: 2 if adapter_for(model).position_axes == 1 else 0] or (None,):
            with prune(model, method, positions):
                wanted = run(model, case.single, **GREEDY)
            with prune(other, method, positions):
                got = run(other, case.single, **GREEDY)
            assert torch.equal(got.sequences, wanted.sequences)
            torch.testing.assert_close(torch.stack(got.logits), torch.stack(wanted.logits), atol=1e-4, rtol=1e-3)
    with prune(model, SCORED) as first, prune(other, SCORED) as second:
        logits = [one(**case.several).logits for one in (model, other)]
    assert [r.order for r in first.report] == [r.order for r in second.report]
    torch.testing.assert_close(logits[0][:, -1], logits[1][:, -1], atol=1e-4, rtol=1e-3)
