"""The page on new importance scores: its code is run as it stands, and its score works in methods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from idsel_core import IMPORTANCE, importance_scores, prune
from tests.support import tiny
from tests.support.images import batch, image
from tests.support.project import PROJECT

PAGE = PROJECT / "docs/new_score.md"


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """Run the page and return its names; the registry is restored afterwards."""
    before, names = dict(IMPORTANCE), {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, PAGE.name, "exec"), names)
    yield names
    IMPORTANCE.clear()
    IMPORTANCE.update(before)


def test_the_page_registers_a_score_and_a_combination(page):
    tokens = batch(image(0), image(1, 4, 6))
    norms = importance_scores(tokens, "feature-norm", "raw")
    torch.testing.assert_close(norms[1, :24], image(1, 4, 6)["encoder_features"].norm(dim=-1))
    both = importance_scores(tokens, "norm-and-instruction")
    parts = [importance_scores(tokens, name) for name in ("feature-norm", "instruction")]
    torch.testing.assert_close(both, (parts[0] * parts[1]).sqrt())


def test_methods_know_the_score_by_its_name(page):
    assert page["method"] == page["same"] and page["method"].importance == "feature-norm"
    best = image(0)["encoder_features"].norm(dim=-1).topk(9).indices
    control = type(page["control"])(budget=9, importance="feature-norm")
    assert control.select(batch(image(0))).order[0].tolist() == best.tolist()


def test_a_model_is_pruned_with_the_score(page):
    model, inputs = tiny.build(), tiny.prompts((1, 2))
    with prune(model, type(page["method"])(budget=9, importance="norm-and-instruction")) as run, torch.no_grad():
        model(**inputs)
    assert [record.after for record in run.report] == [9, 9, 9]


def test_the_row_of_the_page_is_that_of_the_test_matrix():
    (row,) = re.findall(r'^"feature-norm": (.*),$', PAGE.read_text(), re.MULTILINE)
    assert f'"feature-norm": {row}' in (PROJECT / "tests/scores/test_scores.py").read_text()
