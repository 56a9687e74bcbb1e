"""Answer several questions about one image from one prefill of what they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from idsel_core.backbones._shared.caches import cache_in, with_cache

FAMILIES = ("idefics3", "internvl", "llava", "llava_next", "smolvlm")
"""Model families whose prompts are read from left to right and whose positions have one axis."""


def generate_sharing(model: Any, inputs: Mapping[str, Any], owner: Tensor, **options: Any) -> Tensor:
    """Generate from prompts of which several begin with the same image; each such beginning is prefilled once.

    The tokens are those of ``model.generate`` up to the rounding of sums. It pays where questions outnumber images;
    where prompts that are said to begin alike do not, or the model's
    family attends to later tokens, ``model.generate`` is called as it is.

    Parameters
    ----------
    model : PreTrainedModel
        With ``generate`` and ``mm_encoder_outputs``.
    inputs : Mapping[str, Any]
        ``input_ids`` and ``attention_mask`` (B, L), padded on the left, and ``mm_encoder_outputs`` of one image a row.
    owner : Tensor
        Rows of one number have the same beginning, up to the last image token, and the same visual tokens; int64 (B,).
    options
        Of ``generate``.

    Returns
    -------
    Tensor
        New tokens alone, int64 (B, T).
    """
    input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
    if not _can_share(model, inputs):
        return model.generate(**inputs, **options)[:, input_ids.shape[1] :]
    first, owner = _first_rows(owner)
    images = input_ids == model.config.image_token_id
    after = images.shape[1] - images.flip(1).byte().argmax(1)
    starts = images.shape[1] - mask.sum(1)
    lengths = (after - starts).tolist()
    alike = len(set(lengths)) == 1 and bool(images.any(1).all()) and bool(mask[:, -1].all())
    if len(first) == len(owner) or not alike:
        return model.generate(**inputs, **options)[:, input_ids.shape[1] :]
    columns = torch.arange(lengths[0], device=input_ids.device)
    beginnings = input_ids.gather(1, starts[:, None] + columns)  # (B, beginning)
    encoded = inputs["mm_encoder_outputs"]["image"]
    if not _same_beginnings(beginnings, encoded.pooler_output, first[owner].tolist()):
        return model.generate(**inputs, **options)[:, input_ids.shape[1] :]
    features = [encoded.pooler_output[row] for row in first.tolist()]
    output = model(
        input_ids=beginnings[first],
        mm_encoder_outputs={"image": type(encoded)(pooler_output=features)},
        use_cache=True,
        logits_to_keep=1,
    )
    cache = cache_in(output)
    cache.batch_select_indices(owner)
    # What is left of each prompt, its padding still on its left: between the beginning and the question.
    rest = int(after.min())
    real = torch.arange(rest, input_ids.shape[1], device=input_ids.device) >= after[:, None]
    whole = torch.cat([beginnings, input_ids[:, rest:].masked_fill(~real, 0)], 1)
    output = model.generate(
        input_ids=whole,
        attention_mask=torch.cat([torch.ones_like(beginnings), real.long()], 1),
        **with_cache(model, cache),
        **options,
    )
    return output[:, whole.shape[1] :]


def can_share(model: Any) -> bool:
    """Tell whether the beginning of a prompt of this model can be read by itself."""
    return model.config.model_type in FAMILIES


def _can_share(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Tell whether the beginning of a prompt can be read by itself: nothing in it attends to what follows."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    given = {name for name, value in inputs.items() if value is not None}
    return (
        can_share(model)
        and given == {"input_ids", "attention_mask", "mm_encoder_outputs"}
        and set(encoded) == {"image"}
        and isinstance(encoded["image"].pooler_output, list)
        and len(encoded["image"].pooler_output) == len(inputs["input_ids"])
    )


def _same_beginnings(beginnings: Tensor, features: list[Tensor], first: list[int]) -> bool:
    """Tell whether each row begins with the same tokens and the same visual tokens as the row that it follows."""
    return all(
        torch.equal(beginnings[row], beginnings[lead]) and torch.equal(features[row], features[lead])
        for row, lead in enumerate(first)
    )


def _first_rows(owner: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first row of each number, and which of those each row follows."""
    _, first, place = np.unique(owner.cpu().numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(first).to(owner), torch.from_numpy(place).to(owner)
