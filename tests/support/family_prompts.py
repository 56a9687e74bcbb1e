"""Prompts of every family, and the same prompts cut by hand."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from idsel_core import UniformGrid, adapter_for
from idsel_core.backbones._shared.caches import with_cache
from tests.support import families
from tests.support.llava_prompts import Fixed

ALL = UniformGrid(budget=1.0)
BARRED = [families.IMAGE, families.VIDEO]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": BARRED}
CLOSE = {"atol": 3e-5, "rtol": 1e-4}
MIXED = ((1,), (), (2, 0))


def layouts(family):
    """Prompts with images, and where the family has them, with videos, and with images that are whole among several."""
    found = [MIXED]
    if -1 in family.counts:
        found.append(((-1,), (0, -2)))
    if 3 in family.counts:
        found.append(((1,), (), (3, 4)))
    return found


def modes(family):
    return ["compact", "keep"] if family.axes == 1 else [None]


def sizes(layout):
    """Sizes in the order in which rows come: all images, then all videos."""
    flat = [size for prompt in layout for size in prompt]
    return [size for size in flat if size >= 0] + [size for size in flat if size < 0]


def ragged(family, layout, seed=3):
    """Picks of different length and no order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = (torch.randperm(family.counts[size], generator=generator).tolist() for size in sizes(layout))
    return Fixed(picks=tuple(tuple(order[: 3 + 2 * image]) for image, order in enumerate(shuffled)))


def of_prompt(layout, row, picks):
    """Return the picks of one prompt's images and videos, in their order."""
    numbers = [(at, size) for at, prompt in enumerate(layout) for size in prompt]
    numbers = [n for n in numbers if n[1] >= 0] + [n for n in numbers if n[1] < 0]
    return tuple(pick for (at, _), pick in zip(numbers, picks, strict=True) if at == row)


@torch.no_grad()
def by_hand(family, model, layout, row, picks, steps, positions=None, said=()):
    """One prompt alone: embeddings of the kept columns through the language model, step by step.

    After so many steps the next of the texts that are `said`, token ids, is read, and answered in as many steps.
    """
    core, single = model.model, family.alone(layout, row)
    ids = single["input_ids"][0]
    embeddings, keep = core.get_input_embeddings()(ids).clone(), ~torch.isin(ids, torch.tensor(BARRED))
    if layout[row]:
        mine = list(of_prompt(layout, row, picks))
        for kind, token in (("image", families.IMAGE), ("video", families.VIDEO)):
            rows = family.features(model, single).get(kind, [])
            if rows:
                embeddings[ids == token] = torch.cat(rows)
                chosen, mine = mine[: len(rows)], mine[len(rows) :]
                keep[ids == token] = torch.cat(
                    [torch.isin(torch.arange(len(x)), torch.tensor(p)) for x, p in zip(rows, chosen, strict=True)]
                )
    places, following = family.positions(model, single, keep)
    if positions == "keep":
        places, following = torch.arange(len(ids))[keep][None], len(ids)
    beside = family.beside(model, single, keep) if layout[row] else {}
    embeddings = embeddings[keep][None]
    cache, logits, chosen = DynamicCache(config=model.config), [], []
    # What follows each pass: None, the answer's next token, or a token that is said.
    to_come = [None] * steps + [token for text in said for token in (*text, *[None] * steps)]
    for step, token in enumerate(to_come):
        hidden = family.decoder(model)(
            inputs_embeds=embeddings,
            position_ids=places,
            use_cache=True,
            **with_cache(family.decoder(model), cache),
            **beside,
        ).last_hidden_state
        if token is None:
            logits.append(model.lm_head(hidden[:, -1])[0])
            allowed = logits[-1].clone()
            allowed[BARRED] = -torch.inf
            chosen.append(int(allowed.argmax()))
        embeddings = core.get_input_embeddings()(torch.tensor([[chosen[-1] if token is None else token]]))
        places = torch.full_like(places[..., :1], following + step)
        beside = {}
    return torch.stack(logits), chosen, int(keep.sum())


def tokens_of(family, model, layout, tower_depths=()):
    inputs, backbone = family.prompts(layout), adapter_for(model)
    encoded = backbone.encode(**backbone.image_arguments(inputs), tower_depths=tower_depths)
    return inputs, encoded, backbone.visual_tokens(encoded, inputs["input_ids"], inputs["attention_mask"])
