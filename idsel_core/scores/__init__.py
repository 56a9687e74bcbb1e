"""Importance scores of visual tokens."""

from idsel_core.scores.registry import IMPORTANCE, Combination, importance_scores

__all__ = ["IMPORTANCE", "Combination", "importance_scores"]
