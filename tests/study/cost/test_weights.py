"""The memory of weights, against that of models that were loaded."""

import pytest
import torch

from idsel_core.loading.hub import load
from idsel_core.study.cost import weight_bytes
from tests.support import families
from tests.support.families import FAMILIES


def taken(model):
    """Return the bytes of all weights and of the scales of those that are quantised."""
    found = 0
    for weight in model.parameters():
        found += weight.nbytes
        found += weight.SCB.nbytes if getattr(weight, "SCB", None) is not None else 0
        found += weight.quant_state.absmax.nbytes if hasattr(weight, "quant_state") else 0
    return found


@pytest.mark.parametrize("quantisation", [None, "int8", "int4"])
@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "smolvlm"])
def test_weights_take_what_a_loaded_model_takes(family, quantisation, tmp_path, monkeypatch):
    for name, value in families.WIDE.items():
        monkeypatch.setitem(families.TEXT, name, value)
    built = FAMILIES[family].build()
    built.save_pretrained(tmp_path)
    model = load(tmp_path, quantisation=quantisation, processor=False)[0]
    parameters = sum(weight.numel() for weight in built.parameters())
    assert taken(model) == weight_bytes(built.config, parameters, torch.bfloat16, quantisation)
