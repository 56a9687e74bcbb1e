"""A selection is few operations of torch: their calls are most of its time where a model is small."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from idsel_core.backbones import adapter_for
from idsel_core.methods import IDSelection
from idsel_core.pruning.pipeline import encode_images, read_tokens, select_tokens, shorten_call
from idsel_core.selection import id_select
from idsel_core.study.cost import read_config
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL
from idsel_core.study.timing.example_inputs import example_inputs
from tests.support import tiny
from tests.support.families import FAMILIES

MOST = {
    "llava": {"read": 31, "scores": 185, "pick": 109, "shorten": 56},
    "qwen2_5_vl": {"read": 33, "scores": 335, "pick": 109, "shorten": 193},
}
"""Most operations of each step for one image; those of the language model's first layer are of the scores."""


class Counted(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[str(function)] += 1
        return function(*args, **(kwargs or {}))


def count(run):
    with Counted() as seen:
        found = run()
    return seen.calls.total(), found


@torch.no_grad()
def operations(backbone, inputs, budget):
    """Return the number of operations of each step between the tower and a shorter call."""
    method, numbers = IDSelection(budget), {}
    encoded = encode_images(backbone, method, inputs)
    numbers["read"], tokens = count(lambda: read_tokens(backbone, encoded, inputs))
    numbers["scores"], scores = count(lambda: method.scores(tokens))
    numbers["pick"], selection = count(lambda: method.pick(tokens, scores))
    numbers["shorten"], _ = count(lambda: shorten_call(backbone, method, tokens, selection, inputs))
    assert torch.equal(selection.indices, select_tokens(method, tokens).indices)
    return numbers


def opened(family):
    if family == "llava":
        return adapter_for(tiny.build()), tiny.prompts((1,))
    return adapter_for(FAMILIES[family].build()), FAMILIES[family].prompts(((1,),))


@pytest.mark.filterwarnings("ignore:the chat template of this model is not known")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.fast_for(family=["llava"])
def test_a_selection_is_few_operations(family):
    found = operations(*opened(family), budget=6)
    assert {name: number for name, number in found.items() if number > MOST[family][name]} == {}, found
    assert all(number > MOST[family][name] / 2 for name, number in found.items()), "lower what is allowed"


def test_a_selection_on_the_embedded_backbone_is_few_operations():
    backbone, _ = open_backbone(MODEL, "cpu")
    config, size = read_config(MODEL)
    found = operations(backbone, example_inputs(config, 24, size, 1), budget=64)
    assert sum(found.values()) <= 424, found


@pytest.mark.parametrize(
    ("tokens", "budget", "most"), [(576, 16, 200), (576, 64, 180), (576, 192, 180), (2880, 320, 1000)]
)
@pytest.mark.parametrize("scores", ["uniform", "equal"])
def test_the_greedy_makes_few_operations(tokens, budget, most, scores):
    draw = torch.Generator().manual_seed(tokens + budget)
    x = torch.randn(1, tokens, 192, generator=draw)
    s = torch.ones(1, tokens) if scores == "equal" else torch.rand(1, tokens, generator=draw)
    number, picked = count(lambda: id_select(x, s, budget))
    assert picked.counts.tolist() == [budget]
    assert number <= most, number
