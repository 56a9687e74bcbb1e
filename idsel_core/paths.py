"""Where the embedded backbone, its data set and configurations lie, from the project folder."""

from pathlib import Path

DATA = Path("data/scenes")
MODEL = Path("data/backbone/assembled")
CONFIGS = Path("data/configs")
CACHE = Path(".cache/encodings")
