"""The one table of colours and markers of all figures.

Each method has a colour and a marker that never change. No two methods have the same marker and colours that a person
who does not see red, green or blue would take for one. The colours are seaborn's for the colour-blind, and indigo, wine
and olive of Paul Tol's.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from itertools import product
from typing import Any, Final

BLUE, ORANGE, GREEN, VERMILION = "#0173b2", "#de8f05", "#029e73", "#d55e00"
PINK, TAN, SKY, INDIGO = "#cc78bc", "#ca9161", "#56b4e9", "#332288"
WINE, OLIVE = "#882255", "#999933"
COLOURS: Final = (BLUE, ORANGE, GREEN, VERMILION, PINK, TAN, SKY, INDIGO, WINE, OLIVE)
MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X", "d", "<", ">", "p", "h", "*", "8")

INK, LINE, FAINT, CROWD, GRID = "0.15", "0.35", "0.6", "0.75", "0.9"
"""Greys: text, lines that are read off, lines that guide, the crowd behind what is named, and the grid."""
EMPTY: Final = "0.96"
"""Behind the cells of a heat map that hold nothing."""

METHODS: Final = {
    "idselection": (BLUE, "o"),
    "idselection-inside": (BLUE, "p"),
    "topk": (ORANGE, "s"),
    "diversity": (GREEN, "D"),
    "random": (VERMILION, "^"),
    "uniform": (PINK, "v"),
    "downsample": (TAN, "P"),
    "full": (INK, "X"),
    "no-image": (FAINT, "d"),
    "other-image": (LINE, "d"),
    "cdpruner": (WINE, "<"),
    "trim": (OLIVE, ">"),
    "vscan": (SKY, "X"),
    "divprune": (INDIGO, "s"),
    "scope": (WINE, "h"),
    "mmtok": (INDIGO, "^"),
    "mmr": (SKY, "D"),
    "holov": (OLIVE, "o"),
    "fastervlm": (ORANGE, "d"),
    "vispruner": (GREEN, "v"),
    "hired": (PINK, "8"),
    "hiprune": (TAN, "<"),
    "prunesid": (SKY, "^"),
    "adaptive": (ORANGE, "X"),
    "visionzip": (VERMILION, "*"),
    "prumergeplus": (WINE, "P"),
    "tome": (INDIGO, "o"),
    "evs": (BLUE, "s"),
    "vidcom2": (GREEN, "h"),
    "dycoke": (PINK, "h"),
    "fastvid": (TAN, "^"),
    "holitom": (BLUE, "D"),
    "fastv": (INDIGO, "*"),
    "sparsevlm": (OLIVE, "v"),
    "pyramiddrop": (WINE, "s"),
    "dart": (SKY, "P"),
    "DCP-Prune": (VERMILION, "h"),
    "EADP": (GREEN, "p"),
    "EvoCut": (ORANGE, "D"),
    "FlowCut": (VERMILION, "P"),
    "IDPruner": (INDIGO, "X"),
    "OccamToken": (WINE, "v"),
    "ProViP": (SKY, "s"),
    "ProViP (first stage)": (SKY, ">"),
    "VisionSelector": (PINK, "*"),
}
"""Colour and marker of each registered method, of the ends of the scale, and of methods that papers report."""

OUTCOMES: Final = {"win": (BLUE, ">"), "tie": (FAINT, "o"), "loss": (VERMILION, "<")}
"""How a comparison of two methods ends."""
TIED, APART = BLUE, FAINT
"""Settings that are tied with the best one, and the others."""

SHARES: Final = "viridis"
"""Colour map of heat maps."""
PICTURE, SCORES = "gray", "magma"
"""Colour maps of a picture, and of the scores over it."""
PICKS: Final = "rocket_r"
"""Colours of the borders of kept tokens, from the first pick to the last."""
PICK, PICKED, DROPPED = "#00e5ff", "white", SKY
"""Borders over a picture: the last pick, those before it, and dropped tokens that lie on objects."""


def of_method(name: str) -> tuple[str, str]:
    """Return colour and marker of a method; one that the table does not hold gets a free pair by its name alone."""
    if name in METHODS:
        return METHODS[name]
    taken = set(METHODS.values())
    free = [pair for pair in product(COLOURS, MARKERS) if pair not in taken]
    return free[zlib.crc32(name.encode()) % len(free)]


def of_series(names: Iterable[Any]) -> dict[Any, dict[str, Any]]:
    """Return colour and marker of a few series that are no methods, by their order."""
    pairs = zip(COLOURS, MARKERS, strict=False)
    return {name: {"color": colour, "marker": marker} for name, (colour, marker) in zip(names, pairs, strict=False)}
