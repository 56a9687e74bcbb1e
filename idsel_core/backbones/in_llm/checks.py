"""Which language models and caches allow tokens to leave between layers."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicLayer


def check_decoder(decoder: Any) -> None:
    """Raise ValueError unless tokens can leave between the layers of this language model."""
    name = type(decoder).__name__
    if hasattr(decoder, "_orig_mod"):
        raise ValueError(
            "tokens cannot be dropped inside a language model that torch.compile() has wrapped: compile it in place, "
            "by language_model.compile(), or leave it as it is"
        )
    missing = [part for part in ("layers", "norm", "rotary_emb") if not hasattr(decoder, part)]
    if missing:
        raise ValueError(f"tokens cannot be dropped inside {name}, which lacks {', '.join(missing)}")
    kinds = set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or getattr(decoder.config, "sliding_window", None) is not None:
        raise ValueError(f"tokens cannot be dropped inside {name}, whose layers do not all attend to the whole prompt")
    if getattr(decoder.config, "use_bidirectional_attention", None):
        raise ValueError(f"tokens cannot be dropped inside {name}, whose tokens attend to later ones")
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise ValueError("tokens cannot be dropped under gradient checkpointing, which runs layers twice")


def check_cache(cache: Any) -> None:
    """Raise ValueError unless the layers of a cache may differ in length."""
    kinds: set[Any] = {type(layer) for layer in cache.layers} or {getattr(cache, "layer_class_to_replicate", None)}
    if kinds != {DynamicLayer}:
        raise ValueError(
            f"tokens can be dropped inside the language model with a DynamicCache, whose layers may differ in length, "
            f"not with {type(cache).__name__}"
        )
