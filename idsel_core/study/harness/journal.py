"""A journal of answered requests, from which a killed run resumes at the next request."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(value: Any) -> str:
    """Return a hash of what JSON can hold, whatever the order of its keys, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Journal:
    """Answered requests, one JSON object a line, each on disk before the next request begins.

    Parameters
    ----------
    path : Path or None
        The file; its folder is made. None keeps nothing.
    key : Mapping
        All that every answer depends on, ready for JSON: method, weights, code. Lines of another key are left alone and
        not used.

    Raises
    ------
    OSError
        If the file cannot be read or written.
    """

    def __init__(self, path: Path | None, key: Mapping[str, Any]) -> None:
        self.path, self._key = path, digest(key)
        self._answers: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if lines and lines[-1]:
            # A kill tore the last line: end it, so that the next line stands alone.
            with path.open("ab") as file:
                file.write(b"\n")
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["key"] == self._key:
                    self._answers[entry["request"]] = entry["answer"]
            except (ValueError, TypeError, KeyError):
                continue

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: str) -> dict[str, Any] | None:
        """Return what was kept of a request, given by its `digest`, or None."""
        return self._answers.get(request)

    def add(self, request: str, answer: dict[str, Any]) -> None:
        """Keep what came of a request, given by its `digest`; it is on disk when this returns."""
        if self.path is None:
            return
        self._answers[request] = answer
        line = json.dumps({"key": self._key, "request": request, "answer": answer}) + "\n"
        with self.path.open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
