"""The methods that a run asks: their check, the tower depths that they read, and their titles."""

from __future__ import annotations

from collections.abc import Iterable

from idsel_core.methods import Method, drops_inside
from idsel_core.study.ends import BLIND, FULL


def checked_methods(methods: Iterable[Method | str]) -> list[Method | str]:
    """Return the methods of a run as a list; refuse names of methods and classes, which would mean another thing."""
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise TypeError(f"give a list of methods, for example [IDSelection(budget=64)], not {methods!r}")
    asked = list(methods)
    for method in asked:
        if not isinstance(method, Method) and method not in (FULL, BLIND):
            raise TypeError(
                f"{method!r} is no method: give one such as get_method('idselection', budget=64), or {FULL!r} for all "
                f"tokens, or {BLIND!r} for no image"
            )
    return asked


def tower_depths(methods: Iterable[Method | str]) -> list[float]:
    """Return all depths of the tower that methods read."""
    return sorted({depth for method in methods if isinstance(method, Method) for depth in method.tower_depths})


def title(method: Method) -> str:
    """Return the name of a method, and what its budget means where that is the tokens left at last."""
    final = drops_inside(method) and method.budget_convention == "final"
    return f"{method.name} (final)" if final else method.name
