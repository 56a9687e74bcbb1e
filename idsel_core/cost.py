"""What a LLaVA-like model costs with fewer visual tokens: FLOPs in three named columns, and memory of the cache.

flops_paper     the literature's formula: multiply-adds (not FLOPs) of visual tokens in the language model, no more
flops_analytic  true to the configuration: tower, projector, selection, text tokens, grouped keys, SwiGLU, LM head
flops_counted   what torch's counter sees when the model runs

Print a table from the command line, for a published model by name, a model folder or a configuration file:

    python -m idsel_core.cost --model llava-1.5-7b --budgets 576 64 16 576x2,64x30
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, DynamicCache, PreTrainedConfig

from idsel_core.architectures import architecture_file, list_architectures
from idsel_core.methods import DiversityOnly, IDSelection, Method, Random, TopK, UniformGrid, get_method
from idsel_core.methods.greedy import Greedy
from idsel_core.methods.scored import Scored
from idsel_core.paths import MODEL
from idsel_core.selection import resolve_budget

Attention = Literal["full", "causal"]
Logits = Literal["last", "all"]

MODELS = ("llava",)
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
TOWERS = ("clip_vision_model", "dinov2", "siglip_vision_model", "vit")
"""Model types that are known, of whole models and of their parts."""

_METHODS: tuple[type[Method], ...] = (IDSelection, TopK, DiversityOnly, Random, UniformGrid)
_IMPORTANCE = ("saliency", "instruction", "unified", "unified-product", "unified-geometric")


@dataclass(frozen=True)
class Flops:
    """FLOPs of one prompt with one image, by component; a multiply-add is 2.

    Matrix products and convolutions alone: norms, activations, softmax, biases, rotary and interpolated positions are
    left out, as they are by torch's counter.

    Attributes
    ----------
    patches : int
        Patch embedding.
    tower : int
        All layers of the vision tower, also those behind the one that is read, and its pooling, as transformers runs
        them.
    projector : int
        Of all visual tokens, because a selection reads its output.
    scores : int
        Importance scores.
    greedy : int
        Picking, with the similarities that it needs.
    projections, attention, mlp : int
        Language model: query, key, value and output projections; products of queries and keys and of weights and
        values; the three matrices of SwiGLU.
    head : int
        LM head.
    """

    patches: int = 0
    tower: int = 0
    projector: int = 0
    scores: int = 0
    greedy: int = 0
    projections: int = 0
    attention: int = 0
    mlp: int = 0
    head: int = 0

    @property
    def encode(self) -> int:
        """From pixels to the projector's output."""
        return self.patches + self.tower + self.projector

    @property
    def select(self) -> int:
        """Choosing tokens."""
        return self.scores + self.greedy

    @property
    def language_model(self) -> int:
        """Layers of the language model and its head."""
        return self.projections + self.attention + self.mlp + self.head

    @property
    def total(self) -> int:
        """All components."""
        return self.encode + self.select + self.language_model


@dataclass(frozen=True)
class _Decoder:
    layers: int
    hidden: int
    intermediate: int
    query: int  # width of all query heads together
    key: int  # width of all key heads together
    vocabulary: int

    def layer(self, tokens: int, pairs: int) -> Flops:
        """Return one layer's FLOPs for these tokens and these pairs of a query and a key."""
        return Flops(
            projections=4 * tokens * self.hidden * (self.query + self.key),
            attention=4 * pairs * self.query,
            mlp=6 * tokens * self.hidden * self.intermediate,
        )

    def head(self, positions: int) -> Flops:
        return Flops(head=2 * positions * self.hidden * self.vocabulary)


@dataclass(frozen=True)
class _Tower:
    size: tuple[int, int]  # of the image, pixels
    pixels: int  # numbers in a patch
    patches: int
    tokens: int  # patches and [CLS]
    visual: int  # tokens that enter the projector
    features: int  # width of what enters the projector
    hidden: int
    layers: int
    query: int
    intermediate: int
    matrices: int  # of an MLP
    pooling: int  # FLOPs

    def flops(self, width: int) -> Flops:
        """Return the FLOPs of encoding an image for a language model of this width."""
        layer = (
            8 * self.tokens * self.hidden * self.query
            + 4 * self.tokens**2 * self.query
            + 2 * self.matrices * self.tokens * self.hidden * self.intermediate
        )
        return Flops(
            patches=2 * self.patches * self.pixels * self.hidden,
            tower=self.layers * layer + self.pooling,
            projector=2 * self.visual * width * (self.features + width),
        )


def _sum(parts: Sequence[Flops]) -> Flops:
    return Flops(*(sum(values) for values in zip(*(asdict(part).values() for part in parts), strict=True)))


def _check_type(what: str, found: str, known: Sequence[str]) -> None:
    if found not in known:
        raise ValueError(f"{what} type {found!r} is not supported; supported: {', '.join(known)}")


def _decoder(config: Any) -> _Decoder:
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"config must be a transformers configuration, not {type(config).__name__}")
    if hasattr(config, "vision_config"):
        _check_type("model", config.model_type, MODELS)
    text: Any = config.get_text_config()
    _check_type("language model", text.model_type, LANGUAGE_MODELS)
    if getattr(text, "sliding_window", None):
        raise ValueError(f"attention in a sliding window (of {text.sliding_window} tokens) is not supported")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return _Decoder(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=text.num_attention_heads * head,
        key=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
    )


def _pair(size: Any) -> tuple[int, int]:
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    return int(rows), int(columns)


def _tower(config: Any, image_size: int | tuple[int, int] | None) -> _Tower:
    vision: Any = getattr(config, "vision_config", None)
    if vision is None:
        raise ValueError(f"a configuration of type {config.model_type!r} has no vision tower; give a whole model's")
    kind = vision.model_type
    _check_type("vision tower", kind, TOWERS)
    size, patch = _pair(vision.image_size if image_size is None else image_size), _pair(vision.patch_size)
    if min(size) < max(patch):
        raise ValueError(
            f"image_size must be at least a patch, {patch[0]} x {patch[1]} pixels, not {size[0]} x {size[1]}"
        )
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    tokens = patches + (kind != "siglip_vision_model")
    hidden = vision.hidden_size
    head = getattr(vision, "head_dim", None) or hidden // vision.num_attention_heads
    matrices, pooling = 2, 0
    if kind == "dinov2":
        intermediate = int(hidden * vision.mlp_ratio)
        if vision.use_swiglu_ffn:
            matrices, intermediate = 3, (int(intermediate * 2 / 3) + 7) // 8 * 8
    else:
        intermediate = vision.intermediate_size
    if kind == "siglip_vision_model" and vision.vision_use_head:
        pooling = 4 * hidden * ((1 + tokens) * hidden + tokens + intermediate)
    elif kind == "vit":
        pooling = 2 * hidden * vision.pooler_output_size
    chosen = config.vision_feature_layer
    return _Tower(
        size=size,
        pixels=vision.num_channels * patch[0] * patch[1],
        patches=patches,
        tokens=tokens,
        visual=tokens - (config.vision_feature_select_strategy == "default"),
        features=hidden * (1 if isinstance(chosen, int) else len(chosen)),
        hidden=hidden,
        layers=vision.num_hidden_layers,
        query=vision.num_attention_heads * head,
        intermediate=intermediate,
        matrices=matrices,
        pooling=pooling,
    )


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a number of tokens (int), not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return int(value)


def _profile(visual_tokens: int | Sequence[int], layers: int, most: int | None = None) -> list[int]:
    """Return the visual tokens that each layer reads."""
    if isinstance(visual_tokens, Sequence | np.ndarray):
        counts = [_count(f"visual_tokens of layer {layer}", value) for layer, value in enumerate(visual_tokens)]
        if len(counts) != layers:
            raise ValueError(
                f"visual_tokens must be one number, or one for each of the {layers} layers, not {len(counts)}"
            )
    else:
        counts = [_count("visual_tokens", visual_tokens)] * layers
    if most is not None and max(counts) > most:
        raise ValueError(f"visual_tokens must be at most the {most} that the vision tower gives, not {max(counts)}")
    return counts


def _check_choice(name: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, not {value!r}")


def full_budget(config: PreTrainedConfig, image_size: int | tuple[int, int] | None = None) -> int:
    """Return the visual tokens of an image before any is dropped.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `MODELS`.
    image_size : int or tuple[int, int], optional
        Height and width of the images, pixels, as the processor gives them; the tower's own by default.
    """
    _decoder(config)
    return _tower(config, image_size).visual


def flops_paper(config: PreTrainedConfig, visual_tokens: int | Sequence[int]) -> int:
    """Return what the literature calls FLOPs of a prefill: 4 n d^2 + 2 n^2 d + 3 n d m, summed over layers.

    These are multiply-adds, of visual tokens alone: without text, vision tower, projector, selection and LM head, and
    with as many key heads as query heads. For comparison with published tables, such as that of VScan (arXiv
    2505.22654): 3,817, 1,253, 833 and 415 G for 576, 192, 128 and 64 tokens of LLaVA-1.5-7B.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model: hidden size d, MLP size m.
    visual_tokens : int or sequence of int
        n, in all layers or in each.

    Raises
    ------
    TypeError, ValueError
        If the model type is not supported, or the tokens are negative or not one number for each layer.
    """
    model = _decoder(config)
    d, m = model.hidden, model.intermediate
    return sum(4 * n * d**2 + 2 * n**2 * d + 3 * n * d * m for n in _profile(visual_tokens, model.layers))


def _pairs(tokens: int, attention: str) -> int:
    return tokens**2 if attention == "full" else tokens * (tokens + 1) // 2


def _prefill(model: _Decoder, profile: Sequence[int], text_tokens: int, attention: str, logits: str) -> Flops:
    lengths = [tokens + text_tokens for tokens in profile]
    head = model.head(min(1, lengths[-1]) if logits == "last" else lengths[-1])
    return _sum([*(model.layer(length, _pairs(length, attention)) for length in lengths), head])


def _selection(method: Method, model: _Decoder, tower: _Tower, kept: int, text_tokens: int, attention: str) -> Flops:
    """Return the FLOPs of scores and greedy."""
    if type(method) not in _METHODS:
        known = ", ".join(kind.name for kind in _METHODS)
        raise ValueError(f"the analytic cost of method {method.name!r} is not known; known: {known}")
    wanted = int(resolve_budget(method.budget, torch.tensor([tower.visual])))
    if wanted != kept:
        raise ValueError(f"{method!r} keeps {wanted} of {tower.visual} tokens, but visual_tokens says {kept}")
    scores = greedy = 0
    if isinstance(method, Scored):
        if method.importance not in _IMPORTANCE:
            raise ValueError(
                f"the analytic cost of importance {method.importance!r} is not known; known: {', '.join(_IMPORTANCE)}"
            )
        if method.importance != "instruction":
            queries = 1 if tower.tokens > tower.patches else tower.tokens
            scores += 2 * queries * tower.tokens * tower.query
        if method.importance != "saliency":
            length, depth = tower.visual + text_tokens, method.instruction_layer
            if depth >= model.layers:
                raise ValueError(f"instruction layer {depth} does not exist; the language model has {model.layers}")
            scores += depth * model.layer(length, _pairs(length, attention)).total
            scores += 2 * length * model.hidden * (model.query + 2 * model.key)
            scores += 2 * (1 if method.instruction_tokens == "last" else text_tokens) * tower.visual * model.query
    if isinstance(method, Greedy):
        width = model.hidden if method.features == "projector" else tower.features
        greedy = 2 * kept * tower.visual * (width + (method.update == "subtract"))
    return Flops(scores=scores, greedy=greedy)


def flops_analytic(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    attention: Attention = "full",
    logits: Logits = "last",
    method: Method | None = None,
) -> Flops:
    """Return the FLOPs of a prefill of one prompt with one image, true to the configuration.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `MODELS`, `LANGUAGE_MODELS` and `TOWERS`.
    visual_tokens : int or sequence of int
        Visual tokens that the language model reads, in all layers or in each.
    text_tokens : int
        All others in the prompt.
    image_size : int or tuple[int, int], optional
        Height and width of the image, pixels, as the processor gives it; the tower's own by default.
    attention : {"full", "causal"}
        What the language model multiplies: all pairs of positions, as eager and masked attention do and as torch
        counts, or only those that a token may see, as kernels do that skip the others.
    logits : {"last", "all"}
        Positions that the LM head reads: the last, as in ``generate``, or all, as in ``forward``.
    method : Method, optional
        What selects before the language model; its budget must be `visual_tokens`. Nothing by default. The greedy
        is counted as K rounds over all N tokens, which is what runs on a GPU; on a CPU a shortlist needs fewer.
        Instruction attention is counted with the whole prompt's query, key and value projections, and the mean over
        the instruction as if all text followed the image.

    Raises
    ------
    TypeError, ValueError
        If the model or method is not supported, or the tokens are negative, more than the tower gives, or not one
        number for each layer.
    """
    _check_choice("attention", attention, Attention)
    _check_choice("logits", logits, Logits)
    model, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    tower = _tower(config, image_size)
    profile = _profile(visual_tokens, model.layers, tower.visual)
    parts = [tower.flops(model.hidden), _prefill(model, profile, text_tokens, attention, logits)]
    if method is not None:
        parts.append(_selection(method, model, tower, profile[0], text_tokens, attention))
    return _sum(parts)


def flops_analytic_step(config: PreTrainedConfig, visual_tokens: int | Sequence[int], text_tokens: int) -> Flops:
    """Return the FLOPs of one decoding step: one new token, which reads a cache.

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
    model, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    profile = _profile(visual_tokens, model.layers)
    return _sum([*(model.layer(1, tokens + text_tokens + 1) for tokens in profile), model.head(1)])


@torch.no_grad()
def flops_counted(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    logits: Logits = "last",
) -> Flops:
    """Return the FLOPs of a prefill that torch counts while the model runs, without selection.

    The model runs without weights (on the meta device), with eager attention: torch 2.13 counts scaled-dot-product
    attention as 0 on a CPU, and older releases refuse it where queries share keys. Tokens that a layer no longer reads
    are cut out in front of it.

    Parameters
    ----------
    config, visual_tokens, text_tokens, image_size, logits
        As for `flops_analytic`.

    Raises
    ------
    TypeError, ValueError
        As for `flops_analytic`, and if a layer reads more tokens than the one before.
    """
    _check_choice("logits", logits, Logits)
    decoder, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    tower = _tower(config, image_size)
    lengths = _falling(_profile(visual_tokens, decoder.layers, tower.visual), text_tokens)
    model = _without_weights(config)
    options: dict[str, Any] = {} if config.vision_config.model_type == "dinov2" else {"interpolate_pos_encoding": True}
    pixels = torch.empty(1, config.vision_config.num_channels, *tower.size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.get_image_features(pixels, return_dict=True, **options)
    counts = counter.get_flop_counts()
    patches = counts["Global"].get(torch.ops.aten.convolution, 0)
    projector = _of_module(counts, "MultiModalProjector")
    encoded = Flops(patches, sum(counts["Global"].values()) - patches - projector, projector)
    return _sum([encoded, _counted_language(model, lengths, None, 1 if logits == "last" else 0)])


@torch.no_grad()
def flops_counted_step(config: PreTrainedConfig, visual_tokens: int | Sequence[int], text_tokens: int) -> Flops:
    """Return the FLOPs of one decoding step that torch counts, as `flops_counted` and `flops_analytic_step` say."""
    decoder, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    _tower(config, None)
    lengths = _falling(_profile(visual_tokens, decoder.layers), text_tokens)
    text: Any = config.get_text_config()
    cache = DynamicCache(config=text)
    for layer, length in enumerate(lengths):
        heads = text.num_key_value_heads
        held = torch.empty(1, heads, length, decoder.key // heads, device="meta")
        cache.update(held, held, layer)
    return _counted_language(_without_weights(config), lengths, cache, 1)


def _falling(profile: list[int], text_tokens: int) -> list[int]:
    """Return the length of the sequence in each layer."""
    for layer, (before, after) in enumerate(itertools.pairwise(profile), 1):
        if after > before:
            raise ValueError(
                f"a layer cannot read tokens that were dropped; layer {layer} reads {after} after {before}"
            )
    if profile[-1] + text_tokens == 0:
        raise ValueError("a model cannot run on a prompt without tokens")
    return [tokens + text_tokens for tokens in profile]


def _without_weights(config: Any) -> Any:
    create: Any = AutoModelForImageTextToText.from_config
    with torch.device("meta"):
        return create(config, attn_implementation="eager").eval()


def _of_module(counts: Mapping[str, Mapping[Any, int]], name: str) -> int:
    """Return what torch counted inside modules of this name, or of classes whose name ends so."""
    return sum(sum(ops.values()) for module, ops in counts.items() if module.endswith(name))


def _counted_language(model: Any, lengths: list[int], cache: DynamicCache | None, logits_to_keep: int) -> Flops:
    first = lengths[0] if cache is None else 1
    embeddings = torch.empty(1, first, model.config.get_text_config().hidden_size, device="meta")
    if len(set(lengths)) > 1:
        for layer, length in zip(model.model.language_model.layers, lengths, strict=True):
            layer.register_forward_pre_hook(_cut(length, length + (cache is not None)), with_kwargs=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=logits_to_keep)
    counts = counter.get_flop_counts()
    # Eager attention multiplies batches of matrices, a linear layer never does.
    attention = counts["Global"].get(torch.ops.aten.bmm, 0)
    mlp, head = _of_module(counts, ".mlp"), _of_module(counts, ".lm_head")
    projections = sum(counts["Global"].values()) - attention - mlp - head
    return Flops(projections=projections, attention=attention, mlp=mlp, head=head)


def _cut(tokens: int, keys: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a hook that leaves a layer this many tokens and, in its mask, keys."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        short = {
            "attention_mask": None if mask is None else mask[..., :tokens, :keys],
            "position_embeddings": tuple(part[:, :tokens] for part in kwargs["position_embeddings"]),
        }
        return (args[0][:, :tokens], *args[1:]), kwargs | short

    return hook


def equal_flops_budget(
    config: PreTrainedConfig,
    text_tokens: int,
    per_layer_counts: Sequence[int],
    attention: Attention = "full",
) -> int:
    """Return the budget before the language model whose prefill costs as much as dropping tokens inside of it.

    Compared are the analytic FLOPs of the language model, text tokens included; scores and ranking are not.

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
        The number of visual tokens, the same in all layers, whose cost is nearest; the lower one of two as near.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    _check_choice("attention", attention, Attention)
    model, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    profile = _profile(per_layer_counts, model.layers)

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
    """Return the bytes of keys and values after the prefill of one prompt.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model or of its language model.
    visual_tokens : int or sequence of int
        Visual tokens that are kept in the cache, in all layers or in each.
    text_tokens : int
        All others.
    dtype : torch.dtype
        Of keys and values.

    Raises
    ------
    TypeError, ValueError
        As for `flops_paper`.
    """
    model, text_tokens = _decoder(config), _count("text_tokens", text_tokens)
    profile = _profile(visual_tokens, model.layers)
    return 2 * model.key * dtype.itemsize * sum(tokens + text_tokens for tokens in profile)


def cost_table(
    config: PreTrainedConfig,
    budgets: Sequence[int | Sequence[int]],
    text_tokens: int,
    *,
    image_size: int | tuple[int, int] | None = None,
    attention: Attention = "full",
    method: Method | None = None,
    dtype: torch.dtype = torch.float16,
    counted: bool = False,
) -> pd.DataFrame:
    """Return costs, one row a budget.

    Parameters
    ----------
    config, text_tokens, image_size, attention
        As for `flops_analytic`.
    budgets : sequence of int or of sequences of int
        Visual tokens, in all layers or in each.
    method : Method, optional
        What selects where all layers read the same number of tokens, but not all, with that number as its budget.
        Selection is not counted by default, nor where layers differ.
    dtype : torch.dtype
        Of the cache.
    counted : bool
        Whether to run the model without weights, for ``flops_counted``.

    Returns
    -------
    DataFrame
        ``budget`` (mean over layers), ``profile`` (tokens x layers), ``equal_budget`` (see `equal_flops_budget`),
        ``text_tokens``, ``flops_paper`` (multiply-adds), ``flops_analytic`` and its parts ``encode``, ``select`` and
        ``language_model``, ``flops_counted`` (without selection; null if it was not counted), ``flops_step`` (the first
        decoding step), ``cache_bytes``, and ``saved_paper``, ``saved_language_model``, ``saved_analytic``: shares saved
        against all visual tokens, up to 1.

    Raises
    ------
    TypeError, ValueError
        As for `flops_analytic`.
    """
    layers, whole = _decoder(config).layers, full_budget(config, image_size)
    full = flops_analytic(config, whole, text_tokens, image_size=image_size, attention=attention)
    paper = flops_paper(config, whole)
    rows = []
    for budget in budgets:
        profile = _profile(budget, layers, whole)
        alone = min(profile) == max(profile) and 0 < profile[0] < whole
        acting = replace(method, budget=profile[0]) if method is not None and alone else None
        cost = flops_analytic(config, profile, text_tokens, image_size=image_size, attention=attention, method=acting)
        rows.append(
            {
                "budget": sum(profile) / layers,
                "profile": ",".join(f"{tokens}x{len(list(run))}" for tokens, run in itertools.groupby(profile)),
                "equal_budget": equal_flops_budget(config, text_tokens, profile, attention),
                "text_tokens": text_tokens,
                "flops_paper": flops_paper(config, profile),
                "flops_analytic": cost.total,
                "encode": cost.encode,
                "select": cost.select,
                "language_model": cost.language_model,
                "flops_counted": flops_counted(config, profile, text_tokens, image_size=image_size).total
                if counted
                else None,
                "flops_step": flops_analytic_step(config, profile, text_tokens).total,
                "cache_bytes": kv_cache_bytes(config, profile, text_tokens, dtype),
                "saved_paper": 1 - flops_paper(config, profile) / paper,
                "saved_language_model": 1 - cost.language_model / full.language_model,
                "saved_analytic": 1 - cost.total / full.total,
            }
        )
    return pd.DataFrame(rows).astype({"flops_counted": "Int64"})


def read_config(path: Path) -> tuple[PreTrainedConfig, tuple[int, int]]:
    """Read the configuration of a model, without its weights, and the size of the images that it is given.

    Parameters
    ----------
    path : Path
        A model folder, whose processor tells the size, or a configuration file or a name of `list_architectures`,
        which tell that of the tower.

    Returns
    -------
    tuple
        The configuration, and height and width in pixels.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the model type is not supported.
    """
    if str(path) in list_architectures():
        path = architecture_file(path)
    if not (path / "config.json" if path.is_dir() else path).is_file():
        known = ", ".join(list_architectures())
        raise FileNotFoundError(
            f"no model in {path}: give a folder with a config.json, or such a file, or one of {known}"
        )
    safe: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    read: Any = AutoConfig.from_pretrained
    load: Any = AutoImageProcessor.from_pretrained
    config = cast(PreTrainedConfig, read(path, **safe))
    _decoder(config)
    if not any((path / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        return config, _tower(config, None).size
    pixels = load(path, **safe)(images=Image.new("RGB", (64, 64)), return_tensors="pt")["pixel_values"]
    return config, (int(pixels.shape[-2]), int(pixels.shape[-1]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsel_core.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=MODEL,
        help=f"model folder, configuration file (default: %(default)s), or one of {', '.join(list_architectures())}",
    )
    parser.add_argument(
        "--budgets",
        type=_budget,
        nargs="+",
        metavar="BUDGET",
        help="visual tokens, in all layers or as 576x2,64x30: 576 in two layers, then 64 in thirty (default: all, and "
        "those of 192, 128, 64, 32, 16 that are fewer)",
    )
    parser.add_argument("--text", type=int, default=64, help="text tokens of the prompt (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (default: the processor's)"
    )
    parser.add_argument("--method", default="idselection", help="whose selection is counted, or none")
    parser.add_argument("--attention", choices=get_args(Attention), default="full", help="pairs that are multiplied")
    parser.add_argument("--dtype", default="float16", help="torch dtype of the cache (default: %(default)s)")
    parser.add_argument("--counted", action="store_true", help="count by running the model without weights, too")
    return parser


def _budget(text: str) -> int | list[int]:
    if "x" not in text:
        return int(text)
    runs = [part.split("x") for part in text.split(",")]
    return [int(tokens) for tokens, layers in runs for _ in range(int(layers))]


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; for example float16, bfloat16, float32")
    return found


def _printed(table: pd.DataFrame) -> str:
    """Return the table in readable units, one column a budget."""
    shown = pd.DataFrame({"visual tokens": table["budget"].map("{:g}".format), "by layer": table["profile"]})
    shown["equal budget"] = table["equal_budget"]
    for name, column in {
        "flops_paper (G multiply-adds)": "flops_paper",
        "flops_analytic (GFLOP)": "flops_analytic",
        "  encode": "encode",
        "  select": "select",
        "  language model": "language_model",
        "flops_counted (GFLOP, no selection)": "flops_counted",
        "decoding step (GFLOP)": "flops_step",
    }.items():
        if table[column].notna().all():
            shown[name] = (table[column] / 1e9).map("{:,.4g}".format)
    shown["cache (MiB)"] = (table["cache_bytes"] / 2**20).map("{:,.4g}".format)
    for name, column in {
        "saved, paper": "saved_paper",
        "saved, language model": "saved_language_model",
        "saved, analytic": "saved_analytic",
    }.items():
        shown[name] = table[column].map("{:.1%}".format)
    return shown.T.to_string(header=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns 0, or 2 if the call or the files were wrong."""
    given = _parser().parse_args(arguments)
    try:
        config, size = read_config(given.model)
        size = tuple(given.image_size) if given.image_size else size
        whole = full_budget(config, size)
        budgets = given.budgets or [whole, *(tokens for tokens in (192, 128, 64, 32, 16) if tokens < whole)]
        method = None if given.method == "none" else get_method(given.method, budget=1)
        table = cost_table(
            config,
            budgets,
            given.text,
            image_size=size,
            attention=given.attention,
            method=method,
            dtype=_dtype(given.dtype),
            counted=given.counted,
        )
        print(f"{given.model}: {given.text} text tokens, {given.attention} attention, selection by {given.method}\n")
        print(_printed(table))
    except (OSError, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
