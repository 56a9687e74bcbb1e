"""Prompts that share an image: one prefill for all of them, and the same tokens as without."""

import pytest
import torch
from torch import Tensor

from idsel_core.backbones import adapter_for
from idsel_core.methods import get_method
from idsel_core.study.shared_prefix import generate_sharing
from tests.support import tiny
from tests.support.families import FAMILIES

OPTIONS = {"max_new_tokens": 3, "do_sample": False}


def short_prompts(model, per_image: int, budget: int, side: str = "left") -> tuple[dict, Tensor]:
    """Return shortened prompts, `per_image` of different lengths about each of two images, and whose image each has."""
    generator = torch.Generator().manual_seed(3)
    owner = torch.arange(2).repeat_interleave(per_image)
    rows = [
        [1, 5, 6, *[tiny.IMAGE] * tiny.TOKENS, *torch.randint(3, 80, (2 + row,), generator=generator).tolist()]
        for row in range(len(owner))
    ]
    width = max(map(len, rows))
    padded = [[tiny.PAD] * (width - len(r)) + r if side == "left" else r + [tiny.PAD] * (width - len(r)) for r in rows]
    prompts = {"input_ids": torch.tensor(padded)}
    prompts["attention_mask"] = (prompts["input_ids"] != tiny.PAD).long()
    backbone = adapter_for(model)
    encoded = backbone.encode(torch.randn(2, 3, 24, 24, generator=generator)).take(owner)
    tokens = backbone.visual_tokens(encoded, **prompts)
    return backbone.shorten(prompts, tokens, get_method("uniform", budget=budget).select(tokens)), owner


def plain(model, inputs: dict) -> Tensor:
    return model.generate(**inputs, **OPTIONS)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("budget", [4, tiny.TOKENS])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 0, 3, 2, 4, 1]])
@torch.no_grad()
def test_the_answers_are_those_of_generate(budget, order):
    model = tiny.build()
    inputs, owner = short_prompts(model, 3, budget)
    inputs = {name: value[order] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    encoded = inputs["mm_encoder_outputs"]["image"]
    encoded.pooler_output = [encoded.pooler_output[row] for row in order]
    expected = plain(model, {**inputs, "mm_encoder_outputs": {"image": type(encoded)(**encoded)}})
    assert torch.equal(generate_sharing(model, inputs, owner[order], **OPTIONS), expected)


@torch.no_grad()
def test_each_beginning_is_read_once():
    model = tiny.build()
    inputs, owner = short_prompts(model, 3, 9)
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    generate_sharing(model, inputs, owner, **OPTIONS)
    hook.remove()
    assert seen[0] == (2, 3 + 9)
    assert seen[1] == (6, 7)
    assert seen[2:] == [(6, 1)] * 2


@pytest.mark.parametrize("case", ["all apart", "right padding", "no image"])
@torch.no_grad()
def test_other_prompts_are_generated_as_they_are(case):
    model = tiny.build()
    inputs, owner = short_prompts(model, 2, 9, "right" if case == "right padding" else "left")
    if case == "all apart":
        owner = torch.arange(4)
    if case == "no image":
        inputs = {"input_ids": torch.randint(3, 80, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    assert torch.equal(generate_sharing(model, dict(inputs), owner, **OPTIONS), plain(model, inputs))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@torch.no_grad()
def test_every_family_answers_as_generate(family):
    model = family.build()
    backbone = adapter_for(model)
    prompts = family.prompts(((0,), (0,), (0,)))
    images = backbone.image_arguments(prompts)
    tokens = backbone.visual_tokens(backbone.encode(**images), prompts["input_ids"], prompts.get("attention_mask"))
    selection = get_method("uniform", budget=5).select(tokens)
    short = [backbone.shorten(prompts, tokens, selection) for _ in range(3)]
    with backbone.reading():
        expected = plain(model, short[0])
        for owner, inputs in ((torch.zeros(3, dtype=torch.long), short[1]), (torch.tensor([0, 0, 1]), short[2])):
            inputs["attention_mask"] = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
            assert torch.equal(generate_sharing(model, inputs, owner, **OPTIONS), expected)


@pytest.mark.parametrize("difference", ["text", "tokens"])
@torch.no_grad()
def test_rows_that_are_wrongly_said_to_begin_alike_are_answered_by_themselves(difference):
    model = tiny.build()
    inputs, _ = short_prompts(model, 2, 9)
    if difference == "text":
        inputs["input_ids"][1, inputs["attention_mask"][1].argmax() + 1] += 1
        inputs["mm_encoder_outputs"]["image"].pooler_output[1:] = (
            inputs["mm_encoder_outputs"]["image"].pooler_output[:1] * 3
        )
    encoded = inputs["mm_encoder_outputs"]["image"]
    kept = type(encoded)(pooler_output=list(encoded.pooler_output))
    expected = plain(model, {**inputs, "mm_encoder_outputs": {"image": kept}})
    assert torch.equal(generate_sharing(model, inputs, torch.zeros(4, dtype=torch.long), **OPTIONS), expected)
