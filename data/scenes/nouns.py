r"""The nouns of rich scenes: what they are called, of which kinds they are, and their pictures.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 --pack-destination .cache/emoji
    python -m data.scenes.nouns --package .cache/emoji/lobehub-fluent-emoji-3d-1.1.0.tgz

writes `nouns.parquet` again: the pictures of nouns.csv, unchanged, from the package pinned by SHA-256 in emoji.txt.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
import tarfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
from PIL import Image

from data.scenes.draw import NOUNS, SHAPES

HERE = Path(__file__).parent
KINDS = {
    "animal": ("an animal", "animals"),
    "food": ("some food", "food items"),
    "vehicle": ("a vehicle", "vehicles"),
    "tool": ("a tool", "tools"),
    "musical instrument": ("a musical instrument", "musical instruments"),
    "piece of clothing": ("a piece of clothing", "pieces of clothing"),
    "plant": ("a plant", "plants"),
    "building": ("a building", "buildings"),
    "bird": ("a bird", "birds"),
    "insect": ("an insect", "insects"),
    "fruit": ("a fruit", "fruits"),
    "vegetable": ("a vegetable", "vegetables"),
    "flower": ("a flower", "flowers"),
    "ball": ("a ball", "balls"),
}
"""Hypernyms: what one of the kind is called with its article, and what several are."""
MAIN_KINDS = tuple(KINDS)[:8]
"""The kinds of which no noun has two."""
GROUPS = (*MAIN_KINDS, "")
"""Groups of nouns that are drawn equally often; the last one holds nouns of no main kind."""


@dataclass(frozen=True)
class Noun:
    """A noun with a picture.

    Attributes
    ----------
    noun, plural : str
        What one and several are called.
    picture : str
        Code point of the picture.
    kinds : tuple[str, ...]
        The kinds that it is of without doubt, the main one first.
    doubts : tuple[str, ...]
        Other nouns and kinds that a person might call it. Where it is drawn, nothing is asked about these.
    test_only : bool
        Whether it is kept for the test split: neither drawn nor named in any other.
    """

    noun: str
    plural: str
    picture: str
    kinds: tuple[str, ...]
    doubts: tuple[str, ...]
    test_only: bool

    @property
    def group(self) -> str:
        """The main kind, or "" where there is none."""
        return next((kind for kind in self.kinds if kind in MAIN_KINDS), "")


def _listed(cell: str) -> tuple[str, ...]:
    return tuple(cell.split(";")) if cell else ()


def _read_table() -> dict[str, Noun]:
    with (HERE / "nouns.csv").open(newline="") as table:
        rows = [
            Noun(
                row["noun"],
                row["plural"],
                row["picture"],
                _listed(row["kinds"]),
                _listed(row["doubts"]),
                row["test_only"] == "yes",
            )
            for row in csv.DictReader(table)
        ]
    return {row.noun: row for row in rows}


PICTURED = _read_table()
"""All nouns with pictures, by name."""


def names_of(noun: str) -> tuple[str, ...]:
    """Return what an object is called without doubt: its noun, and the kinds of it."""
    return (noun, *PICTURED[noun].kinds) if noun in PICTURED else (noun,)


def doubts_of(noun: str) -> tuple[str, ...]:
    """Return what else a person might call an object."""
    return PICTURED[noun].doubts if noun in PICTURED else ()


def allowed(split: str) -> tuple[str, ...]:
    """Return the nouns with pictures that a split may draw and name: all for "test", else those not kept for it."""
    return tuple(name for name, noun in PICTURED.items() if split == "test" or not noun.test_only)


@cache
def members(name: str, test_only: bool) -> tuple[str, ...]:
    """Return the nouns of a kind or group, either those kept for the test split or the others."""
    return tuple(
        noun.noun
        for noun in PICTURED.values()
        if noun.test_only == test_only and (name in noun.kinds or name == noun.group)
    )


@cache
def siblings(noun: str) -> tuple[str, ...]:
    """Return the nouns of the same group, both kept for the test split or both not, and the noun itself.

    The shapes are one group. A letter and a digit are each other's sibling.
    """
    if noun in PICTURED:
        return members(PICTURED[noun].group, PICTURED[noun].test_only)
    return SHAPES if noun in SHAPES else tuple(n for n in NOUNS if n not in SHAPES)


@cache
def options_like(noun: str) -> tuple[str, ...]:
    """Return the nouns with pictures that may stand beside one as options, and itself.

    They are of its group. Groups of fewer than ten nouns are one here, as some of their nouns exclude each other.
    """

    def pool(group: str) -> str:
        return group if sum(noun.group == group for noun in PICTURED.values()) >= 10 else "small"

    return tuple(name for name, other in PICTURED.items() if pool(other.group) == pool(PICTURED[noun].group))


@cache
def _pictures() -> dict[str, bytes]:
    table = pd.read_parquet(HERE / "nouns.parquet")
    return dict(zip(table["noun"], table["picture"].map(bytes), strict=True))


@cache
def picture_of(noun: str) -> Image.Image:
    """Return the picture of a noun, RGBA with 256 x 256 pixels."""
    return Image.open(io.BytesIO(_pictures()[noun])).convert("RGBA")


def write_pictures(package: Path, out: Path) -> None:
    """Write the pictures of all nouns from the package.

    Raises
    ------
    ValueError
        If the file is not the pinned one.
    """
    content = package.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    wanted = (HERE / "emoji.txt").read_text().strip().rpartition("sha256:")[2]
    if digest != wanted:
        raise ValueError(f"{package} has sha256 {digest}; expected {wanted}: delete it and fetch it again")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = [archive.extractfile(f"package/assets/{noun.picture}.webp") for noun in PICTURED.values()]
        frame = pd.DataFrame({"noun": list(PICTURED), "picture": [file.read() for file in files if file]})
    temporary = out.with_name(f".{out.name}.tmp")
    frame.to_parquet(temporary, index=False)
    temporary.replace(out)


def main() -> int:
    """Run from the command line; returns 0, or 1 if the package is missing or not the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the pinned package of pictures")
    parser.add_argument("--out", type=Path, default=HERE / "nouns.parquet", help="file to write")
    given = parser.parse_args()
    try:
        write_pictures(given.package, given.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
