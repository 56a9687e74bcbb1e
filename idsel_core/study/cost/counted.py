"""FLOPs as torch counts them while a model without weights runs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMultimodalLM, DynamicCache, PreTrainedConfig

from idsel_core.backbones._shared.caches import with_cache
from idsel_core.study.cost.analytic import Logits, check_choice
from idsel_core.study.cost.models import decoder_of, tower_of
from idsel_core.study.cost.shapes import Flops, Size, Tower, add, count, profile_of


@torch.no_grad()
def flops_counted(
    config: PreTrainedConfig,
    visual_tokens: int | Sequence[int],
    text_tokens: int,
    *,
    image_size: Size | None = None,
    logits: Logits = "last",
) -> Flops:
    """Return the FLOPs that torch counts while the model runs a prefill, without selection.

    The model runs without weights (on the meta device) and with eager attention: torch 2.13 counts scaled-dot-product
    attention as 0 on a CPU, and older releases refuse it where queries share keys. Dropped tokens are cut off in front
    of the first layer that no longer reads them.

    Parameters
    ----------
    config, visual_tokens, text_tokens, image_size, logits
        As for `flops_analytic`.

    Raises
    ------
    TypeError, ValueError
        As for `flops_analytic`, and if a layer reads more tokens than the one before.
    """
    check_choice("logits", logits, Logits)
    decoder, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    tower = tower_of(config, image_size)
    lengths = _sequence_lengths(profile_of(visual_tokens, decoder.layers, tower.visual), text_tokens)
    model = _without_weights(config)
    with _meta(), FlopCounterMode(display=False) as counter:
        _encode(model, tower)
    counts = counter.get_flop_counts()
    patches = counts["Global"].get(torch.ops.aten.convolution, 0)
    projector = sum(_flops_inside(counts, name) for name in ("MultiModalProjector", "Connector", ".merger"))
    projector += sum(_flops_inside(counts, f".deepstack_merger_list.{place}") for place in range(decoder.layers))
    encoded = Flops(patches, sum(counts["Global"].values()) - patches - projector, projector)
    return add([encoded, _counted_language(model, lengths, None, 1 if logits == "last" else 0)])


@torch.no_grad()
def flops_counted_step(config: PreTrainedConfig, visual_tokens: int | Sequence[int], text_tokens: int) -> Flops:
    """Return the FLOPs that torch counts for one decoding step; arguments as of `flops_analytic_step`."""
    decoder, text_tokens = decoder_of(config), count("text_tokens", text_tokens)
    lengths = _sequence_lengths(profile_of(visual_tokens, decoder.layers), text_tokens)
    text: Any = config.get_text_config()
    cache = DynamicCache(config=text)
    for layer, length in enumerate(lengths):
        heads = text.num_key_value_heads
        held = torch.empty(1, heads, length, decoder.key // heads, device="meta")
        cache.update(held, held, layer)
    return _counted_language(_without_weights(config), lengths, cache, 1)


def _encode(model: Any, tower: Tower) -> None:
    """Encode an image or clip."""
    # Shapes depend on the values of the processor's output, so it is not on the meta device.
    pixels = torch.ones(tower.pixels)
    if tower.name == "input_features":
        # The model has no method that gives audio features alone.
        model.model.multi_modal_projector(model.model.audio_tower(pixels).last_hidden_state)
        return
    options: dict[str, Any] = {"interpolate_pos_encoding": True} if _interpolates(model.config) else {}
    beside = {name: torch.tensor(rows) for name, rows in tower.beside.items()}
    model.get_image_features(pixels, *beside.values(), return_dict=True, **options)


class _Meta(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Let real tensors, such as image sizes, meet tensors on the meta device.

    A bool that a model reads from the meta device is True: nothing is padding, and prompts are not packed.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        if function is torch.ops.aten._local_scalar_dense.default and tensors[0].is_meta:
            if tensors[0].dtype is not torch.bool:
                raise RuntimeError("the model asks for a number that is not known without weights")
            return True
        if len({tensor.is_meta for tensor in tensors}) > 1:
            given = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, given)
        return function(*given[0], **given[1])


_meta: Any = _Meta


def _interpolates(config: Any) -> bool:
    """Tell whether the tower needs `interpolate_pos_encoding` for images of another size."""
    kinds = ("llava", "paligemma", "video_llava")
    return config.model_type in kinds and config.vision_config.model_type != "dinov2"


def _sequence_lengths(profile: list[int], text_tokens: int) -> list[int]:
    """Return the length of the sequence in each layer; raises ValueError if it grows or is 0."""
    for layer, (before, after) in enumerate(itertools.pairwise(profile), 1):
        if after > before:
            raise ValueError(
                f"a layer cannot read tokens that were dropped; layer {layer} reads {after} after {before}"
            )
    if profile[-1] + text_tokens == 0:
        raise ValueError("a model cannot run on a prompt without tokens")
    return [tokens + text_tokens for tokens in profile]


def _without_weights(config: Any) -> Any:
    create: Any = AutoModelForMultimodalLM.from_config
    with torch.device("meta"):
        return create(config, attn_implementation="eager").eval()


def _flops_inside(counts: Mapping[str, Mapping[Any, int]], name: str) -> int:
    """Return the FLOPs that torch counted inside modules or classes whose name ends so."""
    return sum(sum(ops.values()) for module, ops in counts.items() if module.endswith(name))


def _counted_language(model: Any, lengths: list[int], cache: DynamicCache | None, logits_to_keep: int) -> Flops:
    first = lengths[0] if cache is None else 1
    embeddings = torch.empty(1, first, model.config.get_text_config().hidden_size, device="meta")
    if len(set(lengths)) > 1:
        for layer, length in zip(model.get_decoder().layers, lengths, strict=True):
            layer.register_forward_pre_hook(_cut(length, length + (cache is not None)), with_kwargs=True)
    with _meta(), FlopCounterMode(display=False) as counter:
        model(inputs_embeds=embeddings, **with_cache(model, cache), use_cache=True, logits_to_keep=logits_to_keep)
    counts = counter.get_flop_counts()
    # Eager attention multiplies batches of matrices, a linear layer never does.
    attention = counts["Global"].get(torch.ops.aten.bmm, 0)
    mlp, head = _flops_inside(counts, ".mlp"), _flops_inside(counts, ".lm_head")
    projections = sum(counts["Global"].values()) - attention - mlp - head
    return Flops(projections=projections, attention=attention, mlp=mlp, head=head)


def _cut(tokens: int, keys: int) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a hook that shortens a layer's input to some tokens and its mask to some keys."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = kwargs.get("attention_mask")
        short = {
            "attention_mask": None if mask is None else mask[..., :tokens, :keys],
            "position_embeddings": tuple(part[:, :tokens] for part in kwargs["position_embeddings"]),
        }
        return (args[0][:, :tokens], *args[1:]), kwargs | short

    return hook
