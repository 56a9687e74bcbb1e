"""Prune visual tokens of a model inside a ``with`` block."""

from idsel_core.pruning.api import prune
from idsel_core.pruning.records import DropRecord, ImageRecord

__all__ = ["DropRecord", "ImageRecord", "prune"]
