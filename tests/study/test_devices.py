"""Which devices multiply halves fast, and the warning where a model would be slow."""

import warnings

import pytest
import torch

from idsel_core.study.devices import multiplies_halves
from idsel_core.study.open_backbone import open_backbone

CPU = torch.device("cpu")


@pytest.fixture
def on(monkeypatch):
    """Pretend that torch says this of the processor."""

    def on(**known):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)

    return on


@pytest.mark.parametrize(
    ("known", "fast"),
    [
        ({"architecture": "x86_64", "avx2": True, "avx512_f": False}, False),
        ({"architecture": "x86_64", "avx2": True, "avx512_f": True}, True),
        ({"architecture": "aarch64"}, True),
        ({}, True),
    ],
)
def test_halves_are_slow_on_an_x86_processor_without_avx512(on, known, fast):
    on(**known)
    assert multiplies_halves(CPU) is fast
    assert multiplies_halves(torch.device("cuda"))


def test_a_torch_that_says_nothing_of_the_processor_warns_of_nothing(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert multiplies_halves(CPU)


@pytest.mark.parametrize(
    ("avx512", "dtype", "warned"), [(False, "bfloat16", 1), (False, "auto", 0), (True, "float16", 0)]
)
def test_a_model_that_is_slow_in_its_dtype_warns_with_the_dtype_that_is_not(on, avx512, dtype, warned):
    on(architecture="x86_64", avx512_f=avx512)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        open_backbone(dtype=dtype)
    said = [str(one.message) for one in seen if 'dtype="float32"' in str(one.message)]
    assert len(said) == warned
    assert all("multiplies bfloat16 several times slower" in text for text in said)
