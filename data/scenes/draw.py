"""Draw scenes of coloured shapes, letter tiles and handwritten-digit tiles on textured and photographic backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.datasets import load_digits, load_sample_images

SIDE = 336
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "heart")
LETTERS = ("A", "C", "E", "H", "K", "L", "M", "S", "T", "X")
DIGITS = tuple("0123456789")
NOUNS = (*SHAPES, "letter", "digit")
COLORS = {
    "red": (214, 34, 34),
    "green": (28, 150, 44),
    "blue": (36, 62, 220),
    "yellow": (244, 226, 40),
    "purple": (140, 40, 176),
    "orange": (246, 132, 22),
    "cyan": (48, 212, 226),
    "white": (248, 248, 248),
}
SIZES = {"small": (60, 68), "large": (88, 100)}
TINY = (40, 46)
SPLITS = ("train", "validation", "test", "hard")
FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")
_MASK_SIDE = 192


@dataclass(frozen=True)
class Thing:
    """One drawn object: what it is, how it looks and its box in pixels; a picture of a noun has no `color`, ""."""

    noun: str
    text: str
    color: str
    size: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def phrase(self) -> str:
        return f"{self.color} {self.noun}".strip()

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True)
class Scene:
    """An image of `side` x `side` pixels and the objects in it."""

    image: Image.Image
    things: tuple[Thing, ...]
    side: int


@cache
def shape_mask(noun: str) -> Image.Image:
    """Return the alpha mask of a shape on a square canvas."""
    s = _MASK_SIDE
    mask = Image.new("L", (s, s), 0)
    pen = ImageDraw.Draw(mask)
    match noun:
        case "circle":
            pen.ellipse([6, 6, s - 7, s - 7], fill=255)
        case "square":
            pen.rectangle([14, 14, s - 15, s - 15], fill=255)
        case "triangle":
            pen.polygon([(s / 2, 6), (s - 6, s - 14), (6, s - 14)], fill=255)
        case "diamond":
            pen.polygon([(s / 2, 2), (s - 26, s / 2), (s / 2, s - 2), (26, s / 2)], fill=255)
        case "cross":
            pen.rectangle([66, 6, s - 67, s - 7], fill=255)
            pen.rectangle([6, 66, s - 7, s - 67], fill=255)
        case "star":
            radius = [97, 40]
            angles = np.arange(10) * np.pi / 5
            pen.polygon(
                [(s / 2 + radius[k % 2] * np.sin(a), 102 - radius[k % 2] * np.cos(a)) for k, a in enumerate(angles)],
                fill=255,
            )
        case "ring":
            pen.ellipse([6, 6, s - 7, s - 7], fill=255)
            pen.ellipse([58, 58, s - 59, s - 59], fill=0)
        case "heart":
            pen.ellipse([8, 14, 104, 110], fill=255)
            pen.ellipse([88, 14, 184, 110], fill=255)
            pen.polygon([(15, 84), (177, 84), (96, 188)], fill=255)
        case _:
            raise ValueError(f"unknown shape {noun!r}; allowed: {', '.join(SHAPES)}")
    return mask


@cache
def tile_mask(aspect: float = 1.0) -> Image.Image:
    """Return the alpha mask of a rounded tile whose width is `aspect` times its height."""
    width = round(_MASK_SIDE * aspect)
    mask = Image.new("L", (width, _MASK_SIDE), 0)
    ImageDraw.Draw(mask).rounded_rectangle([8, 8, width - 9, _MASK_SIDE - 9], 30, fill=255)
    return mask


@cache
def text_mask(text: str, font: str) -> Image.Image:
    """Return printed text, cropped to its ink."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    face = ImageFont.truetype(str(path), 150)
    canvas = Image.new("L", (200 * len(text) + 100, 320), 0)
    ImageDraw.Draw(canvas).text((50, 60), text, fill=255, font=face)
    return canvas.crop(canvas.getbbox())


@cache
def handwriting(split: str) -> dict[str, np.ndarray]:
    """Return the handwritten 8 x 8 samples of a split, by digit; no sample is shared between splits."""
    digits = load_digits()
    fold = np.arange(len(digits.target)) % 10
    folds = {"train": fold < 7, "validation": fold == 7, "test": fold == 8, "hard": fold == 9}
    return {d: digits.images[folds[split] & (digits.target == int(d))] for d in DIGITS}


@cache
def photographs(split: str) -> tuple[Image.Image, ...]:
    """Return the photographs' left halves for training and their right halves for all other splits."""
    photos = [Image.fromarray(p) for p in load_sample_images().images]
    return tuple(
        p.crop((0, 0, p.width // 2, p.height) if split == "train" else (p.width // 2, 0, p.width, p.height))
        for p in photos
    )


def draw_background(rng: np.random.Generator, split: str, side: int, blur: float = 0.0) -> Image.Image:
    """Draw a photograph's crop (one scene in three) or a smooth two-colour texture, some of them striped.

    Photographs are blurred by a Gaussian of `blur` pixels.
    """
    if rng.random() < 1 / 3:
        photo = photographs(split)[rng.integers(len(photographs(split)))]
        edge = int(rng.integers(120, min(photo.size) + 1))
        x, y = (int(rng.integers(0, extent - edge + 1)) for extent in photo.size)
        crop = photo.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + edge, y + edge))
        if blur:
            crop = crop.filter(ImageFilter.GaussianBlur(blur))
        muted = Image.new("RGB", crop.size, tuple(np.asarray(crop).reshape(-1, 3).mean(0).astype(int)))
        return Image.blend(crop, muted, 0.35)
    cells = int(rng.integers(3, 9))
    noise = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    blend = np.asarray(noise, np.float32) / 255
    if rng.random() < 0.4:
        y, x = np.mgrid[:side, :side].astype(np.float32)
        angle, pitch = rng.random() * np.pi, rng.uniform(0.06, 0.3)
        blend = blend + 0.25 * np.sin(pitch * (np.cos(angle) * x + np.sin(angle) * y))
    base = rng.uniform(50, 150) + rng.uniform(-25, 25, 3)
    other = base + rng.uniform(-45, 45, 3)
    pixels = base + (other - base) * blend[..., None] + rng.normal(0, 6, (side, side, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _paste(canvas: Image.Image, mask: Image.Image, rgb: tuple[int, int, int], box: tuple[int, int, int, int]) -> None:
    small = mask.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    outline = small.filter(ImageFilter.MaxFilter(5))
    canvas.paste((24, 24, 24), box[:2], outline)
    canvas.paste(rgb, box[:2], small)


def draw_thing(canvas: Image.Image, thing: Thing, rng: np.random.Generator, split: str) -> None:
    """Draw one object into its box: a rotated shape, or a tile with a letter, a word or a handwritten digit on it."""
    jitter = rng.integers(-12, 13, 3)
    rgb = tuple(int(v) for v in np.clip(np.array(COLORS[thing.color]) + jitter, 0, 255))
    box = (thing.left, thing.top, thing.right, thing.bottom)
    angle = float(rng.uniform(-12, 12))
    if thing.noun in SHAPES:
        _paste(canvas, shape_mask(thing.noun).rotate(angle, Image.Resampling.BICUBIC), rgb, box)
        return
    width, height = thing.right - thing.left, thing.bottom - thing.top
    _paste(canvas, tile_mask(width / height), rgb, box)
    if thing.noun == "digit":
        samples = handwriting(split)[thing.text]
        ink = Image.fromarray((samples[rng.integers(len(samples))] / 16 * 255).astype(np.uint8))
        ink = ink.resize((int(width * 0.78), int(height * 0.78)), Image.Resampling.BICUBIC)
    else:
        ink = text_mask(thing.text, FONTS[rng.integers(len(FONTS))])
        scale = min(0.72 * height / ink.height, 0.82 * width / ink.width)
        ink = ink.resize(
            (max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS
        )
    if len(thing.text) == 1:
        ink = ink.rotate(angle, Image.Resampling.BICUBIC)
    dark = np.dot(rgb, (0.299, 0.587, 0.114)) > 110
    corner = (thing.left + (width - ink.width) // 2, thing.top + (height - ink.height) // 2)
    canvas.paste((16, 16, 16) if dark else (250, 250, 250), corner, ink)


def place(rng: np.random.Generator, extents: list[tuple[int, int]], side: int) -> list[tuple[int, int]] | None:
    """Place boxes of the given (width, height) at random without overlap, largest first; None where they do not fit."""
    gap = 6
    placed: dict[int, tuple[int, int, int, int]] = {}
    for i in sorted(range(len(extents)), key=lambda i: -extents[i][0] * extents[i][1]):
        width, height = extents[i]
        for _ in range(60):
            x, y = int(rng.integers(2, side - width - 1)), int(rng.integers(2, side - height - 1))
            if all(
                x > r + gap or left > x + width + gap or y > b + gap or top > y + height + gap
                for left, top, r, b in placed.values()
            ):
                placed[i] = (x, y, x + width, y + height)
                break
        else:
            return None
    return [placed[i][:2] for i in range(len(extents))]


def draw_noun(rng: np.random.Generator) -> str:
    """Draw a shape (three in five), a letter or a digit."""
    kind = rng.random()
    if kind < 0.6:
        return SHAPES[rng.integers(len(SHAPES))]
    return "letter" if kind < 0.8 else "digit"


def draw_tile(rng: np.random.Generator) -> str:
    """Draw a letter or a digit."""
    return "letter" if rng.random() < 0.5 else "digit"


def scene_rng(split: str, index: int) -> np.random.Generator:
    """Return the random source of the `index`-th scene of a split: any scene can be drawn again on its own."""
    return np.random.default_rng((20260405, SPLITS.index(split), index))


def plan_looks(
    rng: np.random.Generator, low: int, high: int, noun_of: Callable[[np.random.Generator], str] = draw_noun
) -> list[tuple[str, str]]:
    """Plan (noun, color) of each object so that one look occurs exactly 1, 2, 3 or 4 times, each as often.

    Counting questions ask for the planned look, so that their answers are balanced by construction. `noun_of` draws
    the nouns.
    """
    copies = int(rng.integers(1, min(4, high) + 1))
    total = int(rng.integers(max(low, copies), high + 1))
    by_color = rng.random() < 0.5
    planned = (noun_of(rng), list(COLORS)[rng.integers(len(COLORS))])
    looks = []
    while len(looks) < total:
        noun, color = noun_of(rng), list(COLORS)[rng.integers(len(COLORS))]
        if len(looks) < copies:
            looks.append((noun, planned[1]) if by_color else (planned[0], color))
        elif (color != planned[1]) if by_color else (noun != planned[0]):
            looks.append((noun, color))
    return [looks[i] for i in rng.permutation(total)]


def draw_scene(
    rng: np.random.Generator,
    split: str,
    low: int = 2,
    high: int = 6,
    hard: bool = False,
    side: int = SIDE,
    noun_of: Callable[[np.random.Generator], str] = draw_noun,
) -> Scene:
    """Draw one scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all randomness.
    split : {"train", "validation", "test", "hard"}
        Whose handwritten digits and photograph halves are used.
    low, high : int
        Least and largest number of objects.
    hard : bool
        Tiny objects (about three patches of 14 pixels) and a word of four to six letters on one tile.
    side : int
        Image side in pixels.
    noun_of : callable
        Draws the noun of an object.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}")
    while True:
        looks = plan_looks(rng, low, high, noun_of)
        sizes = ["small" if hard or rng.random() < 0.5 else "large" for _ in looks]
        edges = [int(rng.integers(*(TINY if hard else SIZES[s]))) for s in sizes]
        texts = [
            {"letter": LETTERS, "digit": DIGITS}[n][rng.integers(10)] if n in ("letter", "digit") else ""
            for n, _ in looks
        ]
        extents = [(e, e) for e in edges]
        if hard:
            word = "".join(rng.permutation(LETTERS)[: rng.integers(4, 7)])
            looks.append(("word", list(COLORS)[rng.integers(len(COLORS))]))
            sizes.append("large")
            texts.append(word)
            extents.append((36 * len(word), 52))
        corners = place(rng, extents, side)
        if corners is not None:
            break
    things = tuple(
        Thing(noun, text, color, size, x, y, x + w, y + h)
        for (noun, color), text, size, (x, y), (w, h) in zip(looks, texts, sizes, corners, extents, strict=True)
    )
    canvas = draw_background(rng, split, side)
    for thing in things:
        draw_thing(canvas, thing, rng, split)
    return Scene(canvas, things, side)
