"""What an error says, for a person who made no mistake in the code."""

from __future__ import annotations


def error_text(error: Exception) -> str:
    """Return what an error says, that of a file without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error) or type(error).__name__
