"""Draw rich scenes: pictures of animals, food, vehicles and more among the coloured shapes, letters and digits."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from PIL import Image

from data.scenes.draw import (
    COLORS,
    DIGITS,
    LETTERS,
    SIDE,
    SIZES,
    Scene,
    Thing,
    draw_background,
    draw_noun,
    draw_thing,
    place,
)
from data.scenes.nouns import GROUPS, KINDS, PICTURED, doubts_of, members, names_of, picture_of

RichSplit = Literal["train", "validation", "test"]
RICH_SPLITS: tuple[RichSplit, ...] = ("train", "validation", "test")
PICTURED_SHARE = 0.6
"""Share of pictures among the objects that are not planned for a counting question."""

BLUR = 12.0
"""Pixels by which photographs are blurred: they show flowers, trees and houses, and questions are asked about these."""


def rich_rng(split: str, index: int) -> np.random.Generator:
    """Return the random source of the `index`-th rich scene of a split."""
    return np.random.default_rng((20261127, RICH_SPLITS.index(_known(split)), index))


def _known(split: str) -> RichSplit:
    for name in RICH_SPLITS:
        if split == name:
            return name
    raise ValueError(f"unknown split {split!r} of rich scenes; allowed: {', '.join(RICH_SPLITS)}")


def draw_member(rng: np.random.Generator, name: str, split: str) -> str:
    """Draw a noun of a kind or group; in the test split every second one is kept for it."""
    pool = members(name, bool(split == "test" and rng.random() < 0.5))
    return pool[rng.integers(len(pool))]


def _draw_look(rng: np.random.Generator, split: str) -> tuple[str, str]:
    if rng.random() < PICTURED_SHARE:
        return draw_member(rng, GROUPS[rng.integers(len(GROUPS))], split), ""
    return draw_noun(rng), list(COLORS)[rng.integers(len(COLORS))]


def plan_rich_looks(rng: np.random.Generator, split: str, low: int, high: int) -> list[tuple[str, str]]:
    """Plan (noun, color) of each object so that one noun or kind occurs exactly 1, 2, 3 or 4 times, each as often.

    No other object is of that noun or kind, nor might a person call it so. Half of the time it is a kind.
    """
    copies = int(rng.integers(1, min(4, high) + 1))
    total = int(rng.integers(max(low, copies), high + 1))
    by_kind = rng.random() < 0.5
    planned, color = _draw_look(rng, split)
    if by_kind:
        planned = list(KINDS)[rng.integers(len(KINDS))]
    looks = []
    for _ in range(copies):
        if by_kind:
            looks.append((draw_member(rng, planned, split), ""))
        else:
            looks.append((planned, color and list(COLORS)[rng.integers(len(COLORS))]))
    while len(looks) < total:
        noun, color = _draw_look(rng, split)
        if planned not in (*names_of(noun), *doubts_of(noun)):
            looks.append((noun, color))
    return [looks[i] for i in rng.permutation(total)]


@cache
def frequency(noun: str) -> float:
    """Return how often a noun with a picture is planned in a scene of 2 to 6 objects, compared to others like it.

    Of 4.4 objects in the mean, 2.5 are planned to be alike. A noun of a small kind is planned more often.
    """
    entry = PICTURED[noun]
    in_group = PICTURED_SHARE / len(GROUPS) / len(members(entry.group, entry.test_only)) * (1.9 + 0.5)
    missed = [(1 - 1 / len(members(kind, entry.test_only))) ** 2.5 for kind in entry.kinds]
    return in_group + 0.5 / len(KINDS) * sum(1 - share for share in missed)


def fit_picture(noun: str, edge: int, angle: float, mirrored: bool) -> Image.Image:
    """Return the picture of a noun turned by an angle in degrees, cropped, its longer side `edge` pixels long."""
    picture = picture_of(noun)
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    ink = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 24)).getbbox()
    picture = picture.crop(ink)
    scale = edge / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_rich_scene(rng: np.random.Generator, split: str, low: int = 2, high: int = 6, side: int = SIDE) -> Scene:
    """Draw one rich scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    split : {"train", "validation", "test"}
        Whose nouns, handwritten digits and photograph halves are used.
    low, high : int
        Least and largest number of objects.
    side : int
        Image side in pixels.

    Raises
    ------
    ValueError
        Where the split is not known.
    """
    _known(split)
    while True:
        looks = plan_rich_looks(rng, split, low, high)
        sizes = ["small" if rng.random() < 0.5 else "large" for _ in looks]
        edges = [int(rng.integers(*SIZES[size])) for size in sizes]
        texts = [
            {"letter": LETTERS, "digit": DIGITS}[noun][rng.integers(10)] if noun in ("letter", "digit") else ""
            for noun, _ in looks
        ]
        pictures = [
            fit_picture(noun, edge, float(rng.uniform(-12, 12)), bool(rng.random() < 0.5)) if noun in PICTURED else None
            for (noun, _), edge in zip(looks, edges, strict=True)
        ]
        extents = [p.size if p else (edge, edge) for p, edge in zip(pictures, edges, strict=True)]
        corners = place(rng, extents, side)
        if corners is not None:
            break
    things = tuple(
        Thing(noun, text, color, size, x, y, x + w, y + h)
        for (noun, color), text, size, (x, y), (w, h) in zip(looks, texts, sizes, corners, extents, strict=True)
    )
    canvas = draw_background(rng, split, side, blur=BLUR)
    for thing, picture in zip(things, pictures, strict=True):
        if picture is None:
            draw_thing(canvas, thing, rng, split)
        else:
            canvas.paste(picture, (thing.left, thing.top), picture)
    return Scene(canvas, things, side)
