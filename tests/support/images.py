"""Images of random tokens for tests of methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idsel_core import VisualTokens

SIDE = 6


def image(seed: int, rows: int = SIDE, columns: int = SIDE) -> dict[str, Tensor]:
    """Return random views of one image."""
    generator = torch.Generator().manual_seed(seed)
    count = rows * columns
    place = torch.arange(count)
    return {
        "features": torch.randn(count, 8, generator=generator),
        "encoder_features": torch.randn(count, 5, generator=generator),
        "cls_attention": torch.rand(count, generator=generator),
        "instruction_attention": torch.rand(count, generator=generator),
        "relevance": torch.rand(count, generator=generator),
        "received_attention": torch.rand(count, generator=generator),
        "received_attention@0.375": torch.rand(count, generator=generator),
        "word_similarity": torch.rand(count, 3, generator=generator),
        "cls_attention@0.25": torch.rand(count, generator=generator),
        "wide_cls_attention@1": torch.rand(count, generator=generator),
        "keys": torch.randn(count, 2, 4, generator=generator),
        "keys@1": torch.randn(count, 2, 4, generator=generator),
        "frames": place % 3,
        "grid": torch.stack([place // columns, place % columns], 1),
        "cls_features": torch.randn(5, generator=generator),
        "image_key": torch.tensor(1000 + seed),
    }


def batch(*images: dict[str, Tensor]) -> VisualTokens:
    """Return images as one batch, padded with what must not matter."""
    width = max(len(one["features"]) for one in images)

    def padded(name: str) -> Tensor:
        fill = math.nan if images[0][name].is_floating_point() else -1
        return torch.nn.utils.rnn.pad_sequence([one[name] for one in images], batch_first=True, padding_value=fill)

    mask = torch.arange(width) < torch.tensor([len(one["features"]) for one in images])[:, None]
    whole = {"cls_features", "image_key"}
    sources = {name: lambda *_, name=name: padded(name) for name in set(images[0]) - {"features", "grid"} - whole}
    sources |= {name: lambda name=name: torch.stack([one[name] for one in images]) for name in whole}
    sources["projector"] = lambda x: torch.cat([x, x[..., :3]], -1)
    return VisualTokens(padded("features"), mask, padded("grid"), sources)
