"""The folder of the project."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
RECORD = PROJECT / "docs/families.json"
"""What the tests saw work on each model family, which docs/families.md is drawn from."""
TIMES = PROJECT / "results/test_times.json"
"""How long the tests of the make targets took."""
