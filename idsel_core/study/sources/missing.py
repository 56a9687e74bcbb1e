"""What a file that is missing may be called instead."""

from __future__ import annotations

import re
from pathlib import Path


def hint(source: Path | bytes) -> str:
    """Return what to do where there is no such file, to be put behind a message."""
    text = str(source)
    if re.search(r"\b[a-z]+:/", text):
        return "; files are read from disk, so download it first"
    if "\\" in text and Path(text.replace("\\", "/")).is_file():
        return "; write / instead of \\ between folders"
    return "; paths count from the folder of the table"
