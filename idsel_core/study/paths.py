"""Where the embedded backbone, its data set, encodings and results lie, from the project folder."""

from pathlib import Path

DATA = Path("data/scenes")
MODEL = Path("data/backbone/assembled")
CACHE = Path(".cache/encodings")
ROWS = Path("results/rows")
TIMES = Path("results/times")
SWEEPS = Path("results/sweeps")
FIGURES = Path("results/figures")
TABLES = Path("results/tables")
TIMING = Path("results/timing.json")
