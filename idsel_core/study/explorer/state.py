"""What a person has chosen to look at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from idsel_core.methods import METHODS, IDSelection, Method, get_method
from idsel_core.selection.suppression import Update

MOST_NEW_TOKENS: Final = 1024
_DEFAULT = IDSelection(64)


@dataclass(frozen=True)
class Side:
    """A method with its knobs; knobs that a method lacks are left aside.

    Parameters
    ----------
    method : str
        Name in the registry.
    budget : int or float
        Number or share of tokens to keep.
    gamma, update, importance
        Knobs of `IDSelection`, with its values by default.
    """

    method: str = IDSelection.name
    budget: int | float = _DEFAULT.budget
    gamma: float | Literal["auto"] = _DEFAULT.gamma
    update: Update = _DEFAULT.update
    importance: str = _DEFAULT.importance

    def knobs(self) -> frozenset[str]:
        """Return the names of the knobs that the method has; none of a method that is not registered."""
        known = {knob.name for knob in fields(METHODS[self.method])} if self.method in METHODS else set()
        return frozenset({knob.name for knob in fields(self)} & known)

    def build(self) -> Method:
        """Build the method; raises as `get_method`."""
        return get_method(self.method, budget=self.budget, **{k: getattr(self, k) for k in self.knobs() - {"budget"}})


@dataclass(frozen=True)
class State:
    """All that a page shows depends on this alone.

    Parameters
    ----------
    picture : str or bytes
        Name of a sample, path of a file, or the content of one.
    question : str
        What is asked about the picture.
    sides : tuple of Side
        The methods that are compared.
    step : int
        Number of picks after which the suppression is shown.
    spot : tuple[float, float], optional
        Height and width, as shares of the picture from its upper left corner, of the token whose similarity to all
        others is shown; by default that is the first pick.
    backbone : str
        Hub id, or folder of a model.
    device : str
        As torch names it.
    new_tokens : int
        Most tokens of an answer.
    """

    picture: str | bytes = "temple"
    question: str = "What color is the object?"
    sides: tuple[Side, ...] = field(default_factory=lambda: (Side(), Side(method="topk")))
    step: int = 8
    spot: tuple[float, float] | None = None
    backbone: str = "data/backbone/assembled"
    device: str = "cpu"
    new_tokens: int = 1

    def check(self) -> None:
        """Raise ValueError if a number is out of its range; all else is checked where it is used."""
        for name, lowest, highest in (("step", 0, math.inf), ("new_tokens", 1, MOST_NEW_TOKENS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
                allowed = f"{lowest} or more" if highest == math.inf else f"from {lowest} to {highest}"
                raise ValueError(f"{name} must be a whole number, {allowed}, not {value!r}")
