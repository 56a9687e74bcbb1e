"""The methods that the authoring page builds: its code is run as it stands, and held to what methods promise."""

import re

import pytest
import torch

from idsel_core import prune
from idsel_core.methods import InLLM, Method
from tests.support import tiny
from tests.support.images import batch, image
from tests.support.project import PROJECT

PAGE = PROJECT / "docs/new_method.md"


@pytest.fixture(scope="module")
def written() -> dict[str, type[Method]]:
    """Return the methods of the page, by name."""
    blocks = re.findall(r"^( *)```python\n(.*?)^ *```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    found: dict[str, type[Method]] = {}
    for indent, block in blocks:
        code = "\n".join(line.removeprefix(indent) for line in block.splitlines())
        space = {"__name__": "of_the_page"}
        exec(compile(code, PAGE.name, "exec"), space)
        methods = [v for v in space.values() if isinstance(v, type) and issubclass(v, Method)]
        found |= {method.name: method for method in methods if "name" in vars(method)}
    return found


def test_the_page_builds_one_method_of_each_kind(written):
    assert set(written) == {"longest", "halfway"}
    assert issubclass(written["halfway"], InLLM)


def test_the_method_keeps_its_budget_and_ignores_the_batch(written):
    images = [image(0), image(1, 4, 6), image(2)]
    method = written["longest"](budget=9)
    together = method.select(batch(*images))
    assert together.counts.tolist() == [9, 9, 9]
    for row, one in enumerate(images):
        alone = method.select(batch(one))
        assert alone.order[0].tolist() == together.order[row].tolist()
        lengths = one["encoder_features"].norm(dim=-1)
        assert set(alone.order[0].tolist()) == set(lengths.topk(9).indices.tolist())


@pytest.mark.parametrize(("name", "knobs"), [("longest", {}), ("halfway", {"budget_convention": "final"})])
def test_the_method_prunes(written, name, knobs):
    model, inputs = tiny.build(), tiny.prompts((1, 2))
    with prune(model, written[name](budget=9, **knobs)) as run, torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert out.shape == (2, inputs["input_ids"].shape[1] + 2)
    assert [record.after for record in run.report] == [9, 9, 9]
    assert run.report[0].layers == ([9, 9, 9] if name == "longest" else [36, 36, 9])
