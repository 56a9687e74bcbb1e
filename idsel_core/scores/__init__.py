"""Importance scores of visual tokens."""

from idsel_core.scores.registry import IMPORTANCE, importance_scores

__all__ = ["IMPORTANCE", "importance_scores"]
