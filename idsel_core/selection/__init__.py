"""ID-Selection itself: `id_select`, its update rule (`suppression`) and three backends that pick the same tokens."""

from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.greedy import id_select
from idsel_core.selection.result import Selection

__all__ = ["Selection", "id_select", "resolve_budget"]
