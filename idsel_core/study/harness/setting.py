"""How the calls of a model are pruned: a method with its budget, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from idsel_core.backbones._shared.short_prompts import POSITIONS
from idsel_core.methods import METHODS, Method
from idsel_core.pruning.budget_scope import Scope, check_scope
from idsel_core.study.dataset import FULL
from idsel_core.study.knobs import build_method, parse_knob


class Unpruned(ValueError):
    """A setting, or a request, that `prune` refuses."""


@dataclass(frozen=True)
class Setting:
    """What `prune` is called with.

    Attributes
    ----------
    method : Method or None
        None leaves all visual tokens.
    positions, budget_scope
        As for `prune`.
    """

    method: Method | None = None
    positions: Literal["compact", "keep"] | None = None
    budget_scope: Scope = "image"

    @property
    def name(self) -> str:
        """The name of the method in stored rows."""
        return FULL if self.method is None else self.method.name

    @property
    def title(self) -> str:
        """The method and its budget, for people."""
        return self.name if self.method is None else f"{self.name} at {self.method.budget:g}"


def setting_from(
    method: str = FULL,
    budget: int | float | None = None,
    positions: Literal["compact", "keep"] | None = None,
    budget_scope: Scope = "image",
    knobs: Mapping[str, Any] | None = None,
) -> Setting:
    """Build a setting from words of a command line.

    Parameters
    ----------
    method : str
        A name of `list_methods`, or ``full`` for all visual tokens.
    budget : int or float, optional
        Visual tokens to keep, or a share of them; needed unless `method` is ``full``.
    positions, budget_scope
        As for `prune`.
    knobs : Mapping, optional
        Further knobs of the method: values of their type, or text such as ``[2,0.5]``.

    Raises
    ------
    ValueError
        If something is unknown, missing, or has no meaning for this method.
    """
    given = dict(knobs or {})
    if positions not in (None, *POSITIONS):
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {positions!r}")
    if method == FULL:
        if budget is not None or given:
            raise ValueError(f"{FULL} keeps all visual tokens, so {next(iter(given), 'budget')} means nothing")
        return Setting()
    if method not in METHODS:
        build_method(method, {})
    if budget is None:
        raise ValueError(f"{method} needs a budget: visual tokens to keep such as 64, or a share such as 0.1")
    parsed = {
        name: parse_knob(method, name, value) if isinstance(value, str) else value for name, value in given.items()
    }
    built = build_method(method, {"budget": budget, **parsed})
    check_scope(budget_scope, built)
    return Setting(built, positions, budget_scope)
