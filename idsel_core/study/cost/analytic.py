"""FLOPs and bytes by formula: the literature's formula, and formulas that follow the configuration."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedConfig

from idsel_core.methods import Method
from idsel_core.study.cost.models import decoder_of, tower_of
from idsel_core.study.cost.selecting import flops_of_reading, flops_of_selection
from idsel_core.study.cost.shapes import Decoder, Flops, Size, add, count, profile_of

Attention = Literal["full", "causal"]
Logits = Literal["last", "all"]


def check_choice(name: str, value: str, allowed: Any) -> None:
    """Raise ValueError unless a value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")


def full_budget(config: PreTrainedConfig, image_size: Size | None = None) -> int:
    """Return the number of visual tokens of an image, or of a clip, before any is dropped.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `idsel_core.study.cost.MODELS`.
    image_size : int or tuple[int, ...], optional
        Height and width of the image, pixels: as the processor gives it, before it is cut into tiles; or mel frames of
        the clip; or frames, height and width of a video (Qwen-VL). By default the tower's own, where images have one
        size, or the longest clip.
    """
    return tower_of(config, image_size).visual


def flops_paper(config: PreTrainedConfig, visual_tokens: int | Sequence[int]) -> int:
    """Return the prefill "FLOPs" of the literature: 4 n d^2 + 2 n^2 d + 3 n d m, summed over layers.

    These are multiply-adds of the visual tokens in the language model alone, without text, tower, projector, selection
    and LM head, and with as many key heads as query heads. Use them to compare with published tables, such as that of
    VScan (arXiv 2505.22654): 3,817, 1,253, 833 and 415 G for 576, 192, 128 and 64 tokens of LLaVA-1.5-7B.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model: hidden size d, MLP size m.
    visual_tokens : int or sequence of int
        n, in all layers or in each.

    Raises
    ------
    TypeError, ValueError
        If the model type is not counted, or the tokens are negative or not one number for each layer.
    """
    model = decoder_of(config)
    d, m = model.hidden, model.intermediate
    return sum(4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m for n in profile_of(visual_tokens, model.layers))


def flops_prefill(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    *,
    attention: Attention = "full",
    logits: Logits = "last",
) -> Flops:
    """Return the FLOPs of the language model's prefill of one prompt.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    visual_tokens, text_tokens, attention, logits
        As for `flops_analytic`.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    check_choice("attention", attention, Attention)
    check_choice("logits", logits, Logits)
    model, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    return _prefill(model, profile_of(visual_tokens, model.layers), text_tokens, attention, logits)


def _prefill(model: Decoder, profile: Sequence[int], text_tokens: int, attention: str, logits: str) -> Flops:
    lengths = [tokens + text_tokens for tokens in profile]
    head = model.head(lengths[-1] if logits == "all" or model.every_logit else min(1, lengths[-1]))
    pairs = [model.pairs(layer, tokens, text_tokens, attention) for layer, tokens in enumerate(profile)]
    return add([*map(model.layer, lengths, pairs), head])


def flops_scoring(config: PreTrainedConfig, method: Method, visual_tokens: int, text_tokens: int) -> int | None:
    """Return the FLOPs of the language model that a method's score takes before the prefill, see `flops_of_reading`.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    method : Method
        What selects.
    visual_tokens, text_tokens : int
        Of the whole prompt.

    Raises
    ------
    TypeError, ValueError
        If the model type is not counted, or it has no layer that the method reads.
    """
    return flops_of_reading(method, decoder_of(config), visual_tokens, text_tokens)


def flops_analytic(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    *,
    image_size: Size | None = None,
    attention: Attention = "full",
    logits: Logits = "last",
    method: Method | None = None,
) -> Flops:
    """Return the FLOPs of answering with one prompt and one image or clip up to the first token.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `idsel_core.study.cost.MODELS`, `LANGUAGE_MODELS` and `TOWERS`.
    visual_tokens : int or sequence of int
        Visual tokens that the language model reads, in all layers or in each.
    text_tokens : int
        All other tokens of the prompt.
    image_size : int or tuple[int, ...], optional
        As for `full_budget`.
    attention : {"full", "causal"}
        "full" counts all query-key pairs, also outside of sliding windows, as eager and masked attention multiply them
        and as torch counts; "causal" counts those that the mask allows, as kernels do that skip the others. In Gemma 3
        a token also attends to later ones of its image, in PaliGemma to the whole prompt.
    logits : {"last", "all"}
        Positions that the LM head reads: the last, as in ``generate``, or all, as in ``forward``. Qwen2-Audio reads all
        of a prefill in both.
    method : Method, optional
        What selects, nothing by default; `visual_tokens` must be what it leaves to each layer, see `profile_by`. The
        greedy is counted as K rounds over all N tokens, as on a GPU; a CPU needs fewer. Instruction
        attention is counted for the whole prompt, and its mean over the instruction as if all text followed the image.

    Raises
    ------
    TypeError, ValueError
        If the model or method is not counted, or the tokens are negative, more than the tower gives, or not one for
        each layer.
    """
    check_choice("attention", attention, Attention)
    check_choice("logits", logits, Logits)
    model, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    tower = tower_of(config, image_size)
    profile = profile_of(visual_tokens, model.layers, tower.visual)
    parts = [tower.flops(), _prefill(model, profile, text_tokens, attention, logits)]
    if method is not None:
        parts.append(flops_of_selection(method, model, tower, profile, text_tokens, attention))
    return add(parts)


def flops_analytic_step(config: PreTrainedConfig, visual_tokens: int | Sequence[int], text_tokens: int) -> Flops:
    """Return the FLOPs of one decoding step: one new token that reads the cache, or a sliding window of it.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    visual_tokens : int or sequence of int
        Visual tokens in the cache, in all layers or in each.
    text_tokens : int
        All other tokens in the cache, those decoded before among them.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    model, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    profile = profile_of(visual_tokens, model.layers)
    held = [model.held(layer, tokens + text_tokens) for layer, tokens in enumerate(profile)]
    return add([*(model.layer(1, tokens + 1) for tokens in held), model.head(1)])


def equal_flops_budget(
    config: PreTrainedConfig,
    text_tokens: int,
    per_layer_counts: Sequence[int],
    attention: Attention = "full",
) -> int:
    """Return the budget before the language model that costs as much as dropping tokens inside it.

    The analytic FLOPs of the language model are compared, text tokens included, without scores and selection.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    text_tokens : int
        Tokens of the prompt that are not visual.
    per_layer_counts : sequence of int
        Visual tokens that each layer reads.
    attention : {"full", "causal"}
        As for `flops_analytic`.

    Returns
    -------
    int
        The number of visual tokens in all layers whose cost is nearest; the lower one of a tie.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    check_choice("attention", attention, Attention)
    model, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    profile = profile_of(per_layer_counts, model.layers)

    def cost(counts: Sequence[int]) -> int:
        return _prefill(model, counts, text_tokens, attention, "last").total

    def cost_of(budget: int) -> int:
        return cost([budget] * model.layers)

    wanted = cost(profile)
    above = bisect.bisect_left(range(max(profile) + 1), wanted, key=cost_of)
    return min(max(above - 1, 0), above, key=lambda budget: abs(cost_of(budget) - wanted))


def kv_cache_bytes(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    dtype: torch.dtype = torch.float16,
) -> int:
    """Return the bytes of the KV cache after the prefill of one prompt.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    visual_tokens : int or sequence of int
        Visual tokens in the cache, in all layers or in each.
    text_tokens : int
        All other tokens of the prompt.
    dtype : torch.dtype
        Of keys and values.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    model, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    profile = profile_of(visual_tokens, model.layers)
    held = [model.held(layer, tokens + text_tokens) for layer, tokens in enumerate(profile)]
    return 2 * model.key * dtype.itemsize * sum(held)
