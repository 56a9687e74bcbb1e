"""Where the embedded backbone, its data set and configurations lie, from the project folder."""

from pathlib import Path

DATA = Path("data/scenes")
MODEL = Path("data/backbone/assembled")
CACHE = Path(".cache/encodings")
