"""A tiny LLaVA and its slow reference, one of each a module."""

from __future__ import annotations

import pytest

from tests.support import in_llm_reference as reference
from tests.support import tiny
from tests.support.in_llm import DEPTH


@pytest.fixture(scope="module")
def model():
    return tiny.build(layers=DEPTH)


@pytest.fixture(scope="module")
def decoder(model):
    return reference.Decoder(model)
