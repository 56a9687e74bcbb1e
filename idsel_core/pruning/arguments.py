"""Arguments of ``generate`` and ``forward``, read as transformers reads them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.caches import cache_in


def bound_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a call by name."""
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(parameter.name, {})
    return arguments


def without_empty(inputs: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the arguments without those of these names that hold nothing, such as pixels (0, 3, H, W) beside text."""
    empty = {name for name in names if inputs.get(name) is not None and _holds_nothing(inputs[name])}
    return {name: value for name, value in inputs.items() if name not in empty}


def _holds_nothing(value: Any) -> bool:
    return value.numel() == 0 if isinstance(value, Tensor) else len(value) == 0 if isinstance(value, Sized) else False


def check_tensors(inputs: dict[str, Any], names: Iterable[str]) -> None:
    """Raise ValueError unless the arguments of these names are tensors, where they are given."""
    for name in names:
        value = inputs.get(name)
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(
                f"{name} must be a tensor, not a {type(value).__name__}: give return_tensors='pt' to the processor, or "
                f"stack it"
            )


def setting_of(model: Any, inputs: dict[str, Any], name: str) -> Any:
    """Return a generation setting from where ``generate`` takes it: argument, given config, the model's config."""
    for value in (inputs.get(name), getattr(inputs.get("generation_config"), name, None)):
        if value is not None:
            return value
    return getattr(model.generation_config, name, None)


def moved_limits(model: Any, inputs: dict[str, Any], cut: int) -> dict[str, int]:
    """Return the limits that count the prompt, lowered by what was cut out of it."""
    limits = {}
    for limit, of_new_tokens in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = setting_of(model, inputs, limit)
        if value and setting_of(model, inputs, of_new_tokens) is None:
            limits[limit] = max(value - cut, 0)
    return limits


def inferred_mask(model: Any, inputs: dict[str, Any]) -> Tensor | None:
    """Return the mask that ``generate`` would infer from padding in the prompts, None where it infers none."""
    pad, ends = setting_of(model, inputs, "pad_token_id"), setting_of(model, inputs, "eos_token_id")
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return None
    mask: Tensor = inputs["input_ids"] != pad
    return None if bool(mask.all()) else mask.long()


def cached_tokens(inputs: dict[str, Any]) -> int:
    """Return how many tokens the cache among the arguments holds, 0 without one."""
    cache = cache_in(inputs)
    return 0 if cache is None else int(cache.get_seq_length())


def with_full_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with an attention mask that hides nothing."""
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
