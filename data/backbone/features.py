"""Draw training scenes and encode each once with the frozen tower, into shards that can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import BaseImageProcessor, Dinov2Model

from data.scenes.draw import SIDE, Scene, Thing, draw_scene, scene_rng

SHARD = 200


@dataclass(frozen=True)
class Crowd:
    """A kind of training scene: image side in pixels, object counts, how many scenes, and where their indices start."""

    name: str
    side: int
    low: int
    high: int
    hard_share: float
    first: int

    def scene(self, k: int) -> Scene:
        """Draw the `k`-th scene of this kind."""
        rng = scene_rng("train", self.first + k)
        if rng.random() < self.hard_share:
            return draw_scene(rng, "train", 7, 10, hard=True, side=self.side)
        return draw_scene(rng, "train", self.low, self.high, side=self.side)


SMALL = Crowd("small", 196, 1, 3, 0.0, 0)
FULL = Crowd("full", SIDE, 2, 6, 0.12, 10_000_000)


def _write_shard(path: Path, scenes: list[Scene], features: torch.Tensor) -> None:
    things = json.dumps([[t.as_dict() for t in s.things] for s in scenes])
    temporary = path.with_suffix(".part")
    save_file({"features": features}, temporary, metadata={"things": things})
    temporary.rename(path)


@torch.inference_mode()
def encode_shards(
    tower: Dinov2Model,
    processor: BaseImageProcessor,
    crowd: Crowd,
    count: int,
    folder: Path,
    batch: int = 20,
) -> None:
    """Encode scenes 0 to `count` of a kind; shards already on disk are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    parameter = next(tower.parameters())
    for first in tqdm(range(0, count, SHARD), desc=f"encode {crowd.name}", unit="shard"):
        path = folder / f"{crowd.name}-{first:06d}.safetensors"
        if path.exists():
            continue
        scenes = [crowd.scene(first + k) for k in range(SHARD)]
        parts = []
        for k in range(0, SHARD, batch):
            images = [s.image for s in scenes[k : k + batch]]
            size = {"height": crowd.side, "width": crowd.side}
            pixels = processor(images=images, size=size, return_tensors="pt")["pixel_values"]
            hidden = tower(pixels.to(parameter), output_hidden_states=True).hidden_states[-1]
            parts.append(hidden[:, 1:].half().cpu())
        _write_shard(path, scenes, torch.cat(parts))


@dataclass
class EncodedScenes:
    """Encoder features (count, tokens, width) in float16 with the objects of each scene."""

    features: torch.Tensor
    things: list[tuple[Thing, ...]]
    side: int


def shuffled(
    scenes: EncodedScenes, size: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, list[tuple[Thing, ...]]]]:
    """Yield endless batches of features and objects of scenes, in a new order in each pass over them."""
    if size > len(scenes.things):
        raise ValueError(f"a batch of {size} scenes from {len(scenes.things)}: draw more, or ask for smaller batches")
    while True:
        order = rng.permutation(len(scenes.things))
        for at in range(0, len(order) - size + 1, size):
            chosen = order[at : at + size]
            yield scenes.features[chosen], [scenes.things[i] for i in chosen]


def load_shards(crowd: Crowd, folder: Path, limit: int | None = None) -> EncodedScenes:
    """Read all the shards of a kind that are on disk."""
    features, things = [], []
    for path in sorted(folder.glob(f"{crowd.name}-[0-9]*.safetensors"))[
        : None if limit is None else -(-limit // SHARD)
    ]:
        with safe_open(path, "pt") as shard:
            features.append(shard.get_tensor("features"))
            things += [tuple(Thing(**t) for t in ts) for ts in json.loads(shard.metadata()["things"])]
    if not features:
        raise FileNotFoundError(f"no encoded {crowd.name} scenes in {folder}: run with --encode first")
    return EncodedScenes(torch.cat(features), things, crowd.side)


def describe(thing: Thing, side: int, nouns: list[str], colors: list[str], glyphs: list[str]) -> list[float]:
    """Describe an object: noun, colour, glyph (-1 for none), large, column and row of its centre (-1 to 1)."""
    x, y = thing.center
    glyph = glyphs.index(thing.text) if len(thing.text) == 1 else -1
    large = float(thing.size == "large")
    return [nouns.index(thing.noun), colors.index(thing.color), glyph, large, 2 * x / side - 1, 2 * y / side - 1]


def covers(thing: Thing, side: int) -> np.ndarray:
    """Return the patches, bool (tokens,), whose middle lies in the box of an object."""
    middle = np.arange(side // 14) * 14 + 7
    rows = (middle >= thing.top) & (middle < thing.bottom)
    columns = (middle >= thing.left) & (middle < thing.right)
    return (rows[:, None] & columns).reshape(-1)


def patch_targets(
    things: tuple[Thing, ...], side: int, nouns: list[str], colors: list[str], glyphs: list[str]
) -> np.ndarray:
    """Describe the object under the middle of each patch, (tokens, 6) float32; -1 on background."""
    table = np.full(((side // 14) ** 2, 6), -1, np.float32)
    for thing in things:
        table[covers(thing, side)] = describe(thing, side, nouns, colors, glyphs)
    return table
