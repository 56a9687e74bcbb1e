"""The method: pick the best token, suppress the tokens that look like it, repeat."""

from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.greedy import id_select
from idsel_core.selection.result import Selection

__all__ = ["Selection", "id_select", "resolve_budget"]
