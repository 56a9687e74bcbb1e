"""GFLOPs of the language model for rows of results, NaN where they are not known."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from transformers import PreTrainedConfig

from idsel_core.methods import Method
from idsel_core.study.cost.analytic import flops_prefill, flops_scoring


class Gflops:
    """The analytic GFLOPs of one model's language model; equal questions are counted once.

    Parameters
    ----------
    config : PreTrainedConfig
        Of the whole model.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self.prefill_of = functools.cache(functools.partial(_prefill, config))
        self.scoring_of = functools.cache(functools.partial(_scoring, config))

    def prefill(self, layers: Sequence[int], text: int) -> float:
        """Return the GFLOPs of a prefill whose layers read so many visual tokens, beside `text` other tokens."""
        return self.prefill_of(tuple(layers), text)

    def scoring(self, method: Method | str, visual: int, text: int) -> float:
        """Return the GFLOPs that a method's score takes before the prefill, of a prompt with all its tokens."""
        return 0.0 if isinstance(method, str) else self.scoring_of(method, visual, text)


def _prefill(config: PreTrainedConfig, layers: tuple[int, ...], text: int) -> float:
    try:
        return flops_prefill(config, layers, text).language_model / 1e9
    except (TypeError, ValueError):
        return math.nan


def _scoring(config: PreTrainedConfig, method: Method, visual: int, text: int) -> float:
    try:
        flops = flops_scoring(config, method, visual, text)
    except (TypeError, ValueError):
        return math.nan
    return math.nan if flops is None else flops / 1e9
