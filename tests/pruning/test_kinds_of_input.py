"""Images, videos, clips and tiles beside each other: a method prunes each as if it were alone, or refuses all."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from idsel_core import prune
from idsel_core.methods import METHODS
from tests.support import tiny
from tests.support.families import FAMILIES, LLAVA, OF_VIDEOS
from tests.support.family_prompts import GREEDY

REFUSES_IMAGES = set(OF_VIDEOS)
"""Methods of videos alone."""
SHARES = {name for name, method in METHODS.items() if method.shares_budget}
"""Methods that share the budget out over a batch, so that neighbours matter."""
REFUSES_VIDEOS = {"downsample", "visionzip"}
"""Of those that prune images of a family, those that may refuse its videos."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def mixtures(family):
    """Prompts of one input each, but for tiles, which are whole among several: of several kinds, where there are."""
    found = {"images": ((0,), (1,), (2,))}
    if -1 in family.counts:
        found |= {"image and video": ((0,), (-1,)), "video first": ((-2,), (1,))}
    if 3 in family.counts:
        found["tiles and whole images"] = ((3, 4), (1,))
    return found


def method_of(family, name):
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    knobs = {"attention": "cls" if family.has_cls else "received", "budget_convention": "final"}
    return METHODS[name](4 if name == "downsample" else 7, **{k: v for k, v in knobs.items() if k in known})


def outcome(model, method, inputs):
    """Return the picks of each input, or what was said against it."""
    try:
        with prune(model, method) as run:
            model.generate(**inputs, **{**GREEDY, "max_new_tokens": 1})
    except ValueError as error:
        return str(error)
    return [record.order for record in run.report]


def in_batch_order(layout, singles):
    """Order the picks of each prompt as reports do: all images, then all videos."""
    kinds = [size < 0 for prompt in layout for size in prompt]
    pairs = zip(kinds, itertools.chain(*singles), strict=True)
    return [pick for _, pick in sorted(pairs, key=lambda pair: pair[0])]


@pytest.mark.feature("kinds beside each other")
@pytest.mark.parametrize("name", sorted(set(METHODS) - SHARES))
def test_a_method_serves_each_kind_or_says_so_whatever_stands_beside_it(family, model, name):
    method = method_of(family, name)
    for layout in mixtures(family).values():
        singles = [outcome(model, method, family.alone(layout, row)) for row in range(len(layout))]
        together = outcome(model, method, family.prompts(layout))
        refused = [single for single in singles if isinstance(single, str)]
        if not refused:
            assert together == in_batch_order(layout, singles), layout
            continue
        assert isinstance(together, str), layout
        assert together.split(":")[0] in {why.split(":")[0] for why in refused}, layout
        if len(refused) < len(singles):
            served = [
                size for prompt, one in zip(layout, singles, strict=True) for size in prompt if one not in refused
            ]
            serves_videos = max(served) < 0
            assert name in (REFUSES_IMAGES if serves_videos else REFUSES_VIDEOS)


@pytest.mark.feature("kinds beside each other")
def test_images_of_llava_are_pruned_as_alone():
    model, layout = tiny.build(layers=5), ((1,), (0,))
    for name in sorted(set(METHODS) - SHARES - set(LLAVA.refused) - {"cdpruner", "trim"}):
        method = method_of(LLAVA, name)
        singles = [outcome(model, method, tiny.TinyLlava().alone(layout, row)) for row in (0, 1)]
        together = outcome(model, method, tiny.TinyLlava().prompts(layout))
        assert together == [*singles[0], *singles[1]], name


@pytest.mark.parametrize("name", OF_VIDEOS)
def test_a_method_of_videos_names_the_image_beside_one(family, model, name):
    if -1 not in family.counts:
        pytest.skip("no videos")
    for layout in (((0,), (-1,)), ((-1,), (0,)), ((0, -2),)):
        method = method_of(family, name)
        said = outcome(model, method, family.prompts(layout))
        assert (
            said == f"frames is not available: input 0 is an image, and {method.label} compares the frames of a video"
        )
