"""Prompts of tiny LLaVA-1.5 models, and the same prompts cut by hand."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import DynamicCache

from idsel_core.backbones._shared.caches import with_cache
from idsel_core.methods import Method
from idsel_core.selection.result import Selection
from tests.support import tiny

GREEDY = {"max_new_tokens": 5, "do_sample": False, "suppress_tokens": [tiny.IMAGE]}
LAYOUTS = [(1,), (1, 1), (1, 0, 2)]
CHUNKS = pytest.param(
    {"prefill_chunk_size": 5},
    marks=pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="this transformers cannot"),
)


@dataclasses.dataclass(frozen=True)
class Fixed(Method):
    """Keeps what the test says, for every image of a call."""

    name = "fixed"
    budget: int | float = 1
    picks: tuple[tuple[int, ...], ...] = ()

    def select(self, tokens):
        width = max(map(len, self.picks))
        order = torch.tensor([[*pick] + [-1] * (width - len(pick)) for pick in self.picks])
        return Selection.from_order(order, torch.zeros(tokens.mask.shape), self.budget)


def ragged(images: int) -> Fixed:
    """Picks of different length and no order."""
    generator = torch.Generator().manual_seed(3)
    shuffled = (torch.randperm(tiny.TOKENS, generator=generator).tolist() for _ in range(images))
    return Fixed(picks=tuple(tuple(order[: 3 + 2 * image]) for image, order in enumerate(shuffled)))


@torch.no_grad()
def by_hand(model, inputs, layout, picks: list[Tensor], steps: int, keep_positions: bool = False):
    """Each prompt alone: embeddings of the kept columns through the language model, step by step."""
    core, results = model.model, []
    for row in range(len(layout)):
        single = tiny.alone(inputs, layout, row)
        ids = single["input_ids"][0]
        embeddings = core.get_input_embeddings()(ids).clone()
        keep = ids != tiny.IMAGE
        if layout[row]:
            first = sum(layout[:row])
            features = core.get_image_features(single["pixel_values"], return_dict=True).pooler_output
            embeddings[~keep] = torch.cat(list(features))
            keep[~keep] = torch.cat(
                [torch.isin(torch.arange(tiny.TOKENS), pick) for pick in picks[first : first + layout[row]]]
            )
        embeddings = embeddings[keep][None]
        positions = (torch.arange(len(ids))[keep] if keep_positions else torch.arange(int(keep.sum())))[None]
        cache, logits, chosen = DynamicCache(config=model.config), [], []
        for _ in range(steps):
            hidden = core.language_model(
                inputs_embeds=embeddings,
                position_ids=positions,
                use_cache=True,
                **with_cache(core.language_model, cache),
            ).last_hidden_state
            logits.append(model.lm_head(hidden[:, -1])[0])
            allowed = logits[-1].clone()
            allowed[tiny.IMAGE] = -torch.inf
            chosen.append(int(allowed.argmax()))
            embeddings = core.get_input_embeddings()(torch.tensor([[chosen[-1]]]))
            positions = positions[:, -1:] + 1
        results.append((torch.stack(logits), chosen, int(keep.sum())))
    return results


def run(model, inputs, **options):
    return model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **{**GREEDY, **options})


def state(model):
    """Everything about a model that a patch could leave behind."""
    modules = {
        name: (
            {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules")},
            {
                hooks: list(getattr(module, hooks).items())
                for hooks in ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
            },
        )
        for name, module in model.named_modules()
    }
    configs = [
        (id(module.config), module.config.to_dict(), module.config._attn_implementation)
        for module in model.modules()
        if hasattr(module, "config")
    ]
    return copy.copy(modules), configs, copy.deepcopy(model.generation_config.to_dict())


def same(one, other):
    return (
        one[1:] == other[1:]
        and one[0].keys() == other[0].keys()
        and all(
            one[0][name][1] == other[0][name][1]
            and one[0][name][0].keys() == other[0][name][0].keys()
            and all(one[0][name][0][key] is other[0][name][0][key] for key in one[0][name][0])
            for name in one[0]
        )
    )
