"""Which scenes the model learns from, and endless batches of them: of questions, and of what lies under patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.backbone.features import Crowd, EncodedScenes, patch_targets, shuffled
from data.backbone.hints import GLYPHS, NOUN_NAMES, asked_targets, gaze_targets, middle_targets, vote_targets
from data.scenes.ask import Question, ask
from data.scenes.draw import COLORS, SIDE, Scene, Thing, draw_scene, draw_tile, scene_rng
from data.scenes.nouns import allowed
from data.scenes.rich import draw_rich_scene, rich_rng

BACKGROUND, PART = 0.05, 100
"""Where patches are sampled: the share of those of background that are used, and scenes read at once."""
RICH_NOUNS = [*NOUN_NAMES, *allowed("train")]
"""The nouns of rich scenes, those of other scenes first."""
Asker = Callable[..., list[Question]]


@dataclass(frozen=True)
class RichCrowd(Crowd):
    """A kind of rich scenes to train on; none of them is hard."""

    def scene(self, k: int) -> Scene:
        """Draw the `k`-th scene of this kind."""
        return draw_rich_scene(rich_rng("train", self.first + k), "train", self.low, self.high, self.side)


@dataclass(frozen=True)
class TileCrowd(Crowd):
    """A kind of scenes of tiles alone, each with a letter or a digit, which are slowest to be told apart."""

    def scene(self, k: int) -> Scene:
        """Draw the `k`-th scene of this kind."""
        rng = scene_rng("train", self.first + k)
        return draw_scene(rng, "train", self.low, self.high, side=self.side, noun_of=draw_tile)


HELD_OUT = {
    False: Crowd("held-out-small", 196, 1, 3, 0.0, 95_000_000),
    True: Crowd("held-out", SIDE, 2, 6, 0.0, 90_000_000),
}
"""Scenes of the log's accuracy, by whether scenes are full; none of them is in any stored part."""
TILES = {
    False: TileCrowd("tiles-small", 196, 2, 3, 0.0, 20_000_000),
    True: TileCrowd("tiles", SIDE, 5, 8, 0.0, 30_000_000),
}
"""Scenes of tiles, by whether scenes are full; what lies under patches is learned from them, and no question asked."""
RICH = {False: RichCrowd("rich-small", 196, 1, 3, 0.0, 0), True: RichCrowd("rich", SIDE, 2, 6, 0.0, 10_000_000)}
HELD_OUT_RICH = {
    False: RichCrowd("held-out-rich-small", 196, 1, 3, 0.0, 95_000_000),
    True: RichCrowd("held-out-rich", SIDE, 2, 6, 0.0, 90_000_000),
}
"""Rich scenes to train on, and those of the log's accuracy, by whether scenes are full."""


def told_targets(things: list[tuple[Thing, ...]], side: int, nouns: list[str] = NOUN_NAMES) -> list[Tensor]:
    """Return what lies under each patch, (scenes, tokens, 6), and which are middles of objects, (scenes, tokens)."""
    under = np.stack([patch_targets(t, side, nouns, list(COLORS), GLYPHS) for t in things])
    return [torch.from_numpy(under), torch.from_numpy(np.stack([middle_targets(t, side) for t in things]))]


def patch_batches(
    scenes: EncodedScenes, size: int, seed: int, nouns: list[str] = NOUN_NAMES
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless shuffled batches without questions: features, and targets of patches and middles."""
    for features, things in shuffled(scenes, size, np.random.default_rng(seed)):
        yield features, told_targets(things, scenes.side, nouns)


def batches(
    scenes: EncodedScenes,
    size: int,
    questions: int,
    seed: int,
    types: list[str],
    nouns: list[str] = NOUN_NAMES,
    asker: Asker = ask,
) -> Iterator[tuple[Tensor, list[list[Question]], list[Tensor]]]:
    """Yield endless shuffled batches: features, questions, and targets of patches, middles, asked, gaze, votes."""
    rng = np.random.default_rng(seed)
    for features, things in shuffled(scenes, size, rng):
        asked = [asker(rng, Scene(None, t, scenes.side), questions, types=types) for t in things]
        pairs = [(t, q, scenes.side) for t, qs in zip(things, asked, strict=True) for q in qs]
        tables = [np.stack([asked_targets(*pair, nouns) for pair in pairs])]
        tables += [np.stack([of(*pair) for pair in pairs]) for of in (gaze_targets, vote_targets)]
        yield features, asked, [*told_targets(things, scenes.side, nouns), *map(torch.from_numpy, tables)]


def mixed(sources: list[Iterator], share: float, seed: int) -> Iterator:
    """Yield endlessly from the last of two sources in that share of turns, else from the first; or from one alone."""
    rng = np.random.default_rng(seed)
    while True:
        yield next(sources[-1 if rng.random() < share else 0])


def telling_batches(
    kinds: list[EncodedScenes],
    tiles: list[EncodedScenes],
    size: int,
    seed: int,
    nouns: list[str] = NOUN_NAMES,
    rich: float = 0.0,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless batches of what lies under patches, every second one, by chance, of tiles if there are any."""
    every = (*kinds, *tiles)
    sources = [patch_batches(scenes, min(size, len(scenes.things)), seed, nouns) for scenes in every]
    scenes = mixed(sources[: len(kinds)], rich, seed)
    return mixed([scenes, *sources[len(kinds) :]], 0.5, seed)


def sampled_patches(
    kinds: list[EncodedScenes], size: int, seed: int, nouns: list[str] = NOUN_NAMES
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Yield endless batches of patches of all scenes, those of objects and some of background, as `patch_batches`."""
    rng = np.random.default_rng(seed)
    features, targets, middles = [], [], []
    for scenes in kinds:
        for at in range(0, len(scenes.things), PART):
            part = slice(at, at + PART)
            under, middle = told_targets(scenes.things[part], scenes.side, nouns)
            chosen = (under[..., 0] >= 0) | torch.from_numpy(rng.random(under.shape[:2]) < BACKGROUND)
            features.append(scenes.features[part][chosen])
            targets.append(under[chosen])
            middles.append(middle[chosen])
    every = torch.cat(features), torch.cat(targets), torch.cat(middles)
    while True:
        for batch in torch.from_numpy(rng.permutation(len(every[0]))).split(size):
            told = [table[batch] for table in every]
            yield told[0], told[1:]
