"""What configurations say of the sizes of models: the language model, and the vision tower at work on one image."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3", "qwen3_vl_text")
TOWERS = ("clip_vision_model", "dinov2", "siglip_vision_model", "vit")
"""Model types that are counted, of language models, and of the vision towers of LLaVA and LLaVA-NeXT."""

Size = int | tuple[int, int]


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
        Of all visual tokens, because a selection reads its output; with those of deepstack's planes.
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


def added(parts: Sequence[Flops]) -> Flops:
    """Return the sums of all components."""
    return Flops(*(sum(values) for values in zip(*(asdict(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Decoder:
    """A language model.

    Attributes
    ----------
    layers, hidden, intermediate, vocabulary : int
        How many layers; widths of states and of SwiGLU; words.
    query, key : int
        Widths of all query heads, and of all key heads, together.
    """

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int

    def layer(self, tokens: int, pairs: int) -> Flops:
        """Return one layer's FLOPs for these tokens and these pairs of a query and a key."""
        return Flops(
            projections=4 * tokens * self.hidden * (self.query + self.key),
            attention=4 * pairs * self.query,
            mlp=6 * tokens * self.hidden * self.intermediate,
        )

    def head(self, positions: int) -> Flops:
        """Return the LM head's FLOPs."""
        return Flops(head=2 * positions * self.hidden * self.vocabulary)

    def reading(self, tokens: int) -> int:
        """Return the FLOPs of one layer's queries, keys and values of these tokens."""
        return 2 * tokens * self.hidden * (self.query + 2 * self.key)


@dataclass(frozen=True)
class Tower:
    """A vision tower at work on one image, and the projector behind it.

    Attributes
    ----------
    pixels : tuple[int, ...]
        Shape of what the processor gives of the image.
    patch : int
        Numbers in a patch.
    patches, tokens : int
        Patches, and with [CLS] positions, of all tiles together.
    visual : int
        Tokens that the language model reads.
    features : int
        Width of what enters the projector, for each of them.
    hidden, query, intermediate : int
        Widths of states, of all heads together, and of the MLP.
    matrices : int
        Of an MLP.
    pairs : tuple[int, ...]
        Pairs of a query and a key, one number a layer.
    rows : int
        Pairs that saliency reads: those of [CLS], or, without one, all of the last layer that sees whole images.
    pooling : int
        FLOPs behind the layers.
    projections : tuple[tuple[int, int, int], ...]
        Rows, and widths before and behind, of each matrix of the projector.
    beside : Mapping[str, list[list[int]]]
        What the processor gives beside the pixels.
    """

    pixels: tuple[int, ...]
    patch: int
    patches: int
    tokens: int
    visual: int
    features: int
    hidden: int
    query: int
    intermediate: int
    matrices: int
    pairs: tuple[int, ...]
    rows: int
    pooling: int
    projections: tuple[tuple[int, int, int], ...]
    beside: Mapping[str, list[list[int]]] = field(default_factory=dict)

    def flops(self) -> Flops:
        """Return the FLOPs of encoding the image."""
        layer = 2 * self.tokens * self.hidden * (4 * self.query + self.matrices * self.intermediate)
        return Flops(
            patches=2 * self.patches * self.patch * self.hidden,
            tower=len(self.pairs) * layer + 4 * sum(self.pairs) * self.query + self.pooling,
            projector=sum(2 * prod(matrix) for matrix in self.projections),
        )


def check_type(what: str, found: str, known: Sequence[str]) -> None:
    """Raise ValueError unless a model type is one of those that are counted."""
    if found not in known:
        raise ValueError(f"{what} type {found!r} is not counted yet; counted are: {', '.join(known)}")


def decoder_of(config: Any) -> Decoder:
    """Return the sizes of a language model, from its configuration or a whole model's.

    Raises
    ------
    TypeError, ValueError
        If it is no configuration, or of a type that is not counted.
    """
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"config must be a transformers configuration, not {type(config).__name__}")
    if hasattr(config, "vision_config"):
        check_type("model", config.model_type, MODELS)
    text: Any = config.get_text_config()
    check_type("language model", text.model_type, LANGUAGE_MODELS)
    if getattr(text, "sliding_window", None):
        raise ValueError(f"attention in a sliding window (of {text.sliding_window} tokens) is not counted yet")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Decoder(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=text.num_attention_heads * head,
        key=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
    )


def tower_of(config: Any, image_size: Size | None = None) -> Tower:
    """Return the sizes of a vision tower at work on an image.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `MODELS`.
    image_size : int or tuple[int, int], optional
        Height and width of the image, pixels: as the processor gives it, before it is cut into tiles. By default the
        tower's own, where images have one size.

    Raises
    ------
    TypeError, ValueError
        If the model is not counted, or has no images of this size.
    """
    decoder = decoder_of(config)
    if getattr(config, "vision_config", None) is None:
        raise ValueError(f"a configuration of type {config.model_type!r} has no vision tower; give a whole model's")
    if image_size is not None:
        image_size = pair(image_size)
    return _FAMILIES[config.model_type](config, decoder.hidden, image_size)


def pair(size: Any) -> tuple[int, int]:
    """Return a size as rows and columns."""
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    return int(rows), int(columns)


def has_one_size(config: Any) -> bool:
    """Tell whether all images of a model have the tower's size unless another is asked for."""
    return config.model_type in ("internvl", "llava")


def _given(config: Any, size: tuple[int, int] | None, step: tuple[int, int] = (1, 1)) -> tuple[int, int]:
    """Return the size of an image of a model whose images have no one size."""
    if size is None:
        raise ValueError(f"images of type {config.model_type!r} have no one size: give image_size")
    if min(size) < 1 or size[0] % step[0] or size[1] % step[1]:
        raise ValueError(
            f"image_size must be multiples of {step[0]} x {step[1]} pixels, as the processor gives images, not "
            f"{size[0]} x {size[1]}"
        )
    return size


def _vit(config: Any, width: int, size: tuple[int, int], tiles: int) -> Tower:
    """Return a tower of LLaVA, all patches projected, on tiles of a size."""
    vision = config.vision_config
    kind = vision.model_type
    check_type("vision tower", kind, TOWERS)
    patch = pair(vision.patch_size)
    if min(size) < max(patch):
        raise ValueError(
            f"image_size must be at least a patch, {patch[0]} x {patch[1]} pixels, not {size[0]} x {size[1]}"
        )
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    has_cls = kind != "siglip_vision_model"
    tokens, hidden = patches + has_cls, vision.hidden_size
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
    features = hidden * (1 if isinstance(chosen, int) else len(chosen))
    visual = tiles * (tokens - (config.vision_feature_select_strategy == "default"))
    return Tower(
        pixels=(tiles, vision.num_channels, *size),
        patch=vision.num_channels * patch[0] * patch[1],
        patches=tiles * patches,
        tokens=tiles * tokens,
        visual=visual,
        features=features,
        hidden=hidden,
        query=vision.num_attention_heads * head,
        intermediate=intermediate,
        matrices=matrices,
        pairs=(tiles * tokens**2,) * vision.num_hidden_layers,
        rows=tiles * tokens * (1 if has_cls else tokens),
        pooling=tiles * pooling,
        projections=((visual, features, width), (visual, width, width)),
    )


def _llava(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    return _vit(config, width, pair(config.vision_config.image_size) if size is None else size, 1)


def _llava_next(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    size, side = _given(config, size), int(config.vision_config.image_size)
    given: Any = (list(size), config.image_grid_pinpoints, side)
    tiles = int(image_size_to_num_patches(*given))
    whole = _vit(config, width, (side, side), tiles)
    shape_of: Any = get_anyres_image_grid_shape
    rows, columns = shape_of(*given)
    patches = side // pair(config.vision_config.patch_size)[0]
    if whole.visual != tiles * patches**2:
        raise ValueError("vision_feature_select_strategy of a LLaVA-NeXT must leave one token a patch")
    shown: Any = unpad_image
    _, height, breadth = shown(torch.empty(1, rows * patches, columns * patches, device="meta"), size).shape
    # A newline ends each row, and the thumbnail comes first.
    visual = patches**2 + height * (breadth + 1)
    return replace(whole, pixels=(1, *whole.pixels), visual=visual, beside={"image_sizes": [list(size)]})


def _internvl(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    vision = config.vision_config
    tile, patch = pair(vision.image_size), pair(vision.patch_size)
    rows, columns = (side // own for side, own in zip(_given(config, size or tile, tile), tile, strict=True))
    tiles = rows * columns + (rows * columns > 1)
    patches = (tile[0] // patch[0]) * (tile[1] // patch[1])
    joined = round(1 / config.downsample_ratio) ** 2
    tokens, visual, features = patches + 1, tiles * (patches // joined), vision.hidden_size * joined
    return Tower(
        pixels=(tiles, vision.num_channels, *tile),
        patch=vision.num_channels * patch[0] * patch[1],
        patches=tiles * patches,
        tokens=tiles * tokens,
        visual=visual,
        features=features,
        hidden=vision.hidden_size,
        query=vision.hidden_size,
        intermediate=vision.intermediate_size,
        matrices=2,
        pairs=(tiles * tokens**2,) * vision.num_hidden_layers,
        rows=tiles * tokens,
        pooling=0,
        projections=((visual, features, width), (visual, width, width)),
    )


def _qwen(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    vision, kind = config.vision_config, config.model_type
    merge = vision.spatial_merge_size
    size = _given(config, size, (merge * vision.patch_size,) * 2)
    rows, columns = (side // vision.patch_size for side in size)
    patches = rows * columns
    hidden = vision.embed_dim if kind == "qwen2_vl" else vision.hidden_size
    intermediate = int(hidden * vision.mlp_ratio) if kind == "qwen2_vl" else vision.intermediate_size
    pairs = [patches**2] * vision.depth
    if kind == "qwen2_5_vl":
        window = vision.window_size // vision.patch_size
        inside = sum(side**2 for side in _runs(rows, window)) * sum(side**2 for side in _runs(columns, window))
        pairs = [patches**2 if layer in vision.fullatt_block_indexes else inside for layer in range(vision.depth)]
    visual, features = patches // merge**2, hidden * merge**2
    planes = len(vision.deepstack_visual_indexes) if kind == "qwen3_vl" else 0
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Tower(
        pixels=(patches, numbers),
        patch=numbers,
        patches=patches,
        tokens=patches,
        visual=visual,
        features=features,
        hidden=hidden,
        query=hidden,
        intermediate=intermediate,
        matrices=3 if kind == "qwen2_5_vl" else 2,
        pairs=tuple(pairs),
        rows=patches**2,
        pooling=0,
        projections=((visual, features, features), (visual, features, width)) * (1 + planes),
        beside={"image_grid_thw": [[1, rows, columns]]},
    )


def _runs(length: int, window: int) -> list[int]:
    return [min(window, length - start) for start in range(0, length, window)]


_FAMILIES: Mapping[str, Callable[[Any, int, tuple[int, int] | None], Tower]] = {
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_5_vl": _qwen,
    "qwen2_vl": _qwen,
    "qwen3_vl": _qwen,
}
MODELS = tuple(_FAMILIES)
"""Model types of whole models that are counted."""


def count(name: str, value: Any) -> int:
    """Return a number of tokens.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a number of tokens (int), not {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be 0 or more, not {value}")
    return int(value)


def profile_of(visual_tokens: int | Sequence[int], layers: int, most: int | None = None) -> list[int]:
    """Return the visual tokens that each layer reads.

    Parameters
    ----------
    visual_tokens : int or sequence of int
        In all layers, or in each.
    layers : int
        Of the language model.
    most : int, optional
        Visual tokens that there are.

    Raises
    ------
    TypeError, ValueError
        If these are no numbers of tokens, too many, or not one for each layer.
    """
    if isinstance(visual_tokens, Sequence | np.ndarray):
        counts = [count(f"visual_tokens of layer {layer}", value) for layer, value in enumerate(visual_tokens)]
        if len(counts) != layers:
            raise ValueError(
                f"visual_tokens must be one number, or one for each of the {layers} layers, not {len(counts)}"
            )
    else:
        counts = [count("visual_tokens", visual_tokens)] * layers
    if most is not None and max(counts) > most:
        raise ValueError(f"visual_tokens must be at most the {most} that the vision tower gives, not {max(counts)}")
    return counts
