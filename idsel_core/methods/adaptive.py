"""A budget for each image of a batch by how much there is in it, at the same total."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from idsel_core.methods._shared.allocation import allocate, energy_curves, mass_curves
from idsel_core.methods._shared.base import Method, keep_all
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.methods._shared.checks import check_share
from idsel_core.methods._shared.in_llm import InLLM
from idsel_core.selection.budget import is_above, resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

Demand = Literal["energy", "importance", "both"]


@dataclass(frozen=True)
class AdaptiveBudget(Scored):
    """Give each image of a batch the tokens that it needs, and choose them by another method.

    The total is exactly that of a fixed budget: the sum over the batch of what `resolve_budget` gives. It is
    distributed so that all images reach the same share of what there is in them, as nearly as whole tokens allow. With
    *energy*, K tokens of an image hold the share of its K largest squared singular values, of the features that the
    language model reads, in the sum of all. So an image of many alike tokens gets few. With *importance* they hold the
    share of its K largest importance scores; *both* is the mean of the two. Each image gets at least `least` times its
    fixed budget. A batch of one image gets its fixed budget. What an image gets depends on the other images of its
    batch but not on their order. An image with fewer tokens than the budget adds them all to the total, and may get
    fewer; it stays whole, with nothing merged, if it gets all.

    With a `threshold` each image gets the fewest tokens that hold that share, whatever its batch, and `budget` sets the
    least alone; `threshold_of` gives the threshold at which a batch, or all images of a data set as one, has the mean
    that is wanted.

    Source: *energy* is the criterion of E-AdaPrune, arXiv 2603.05950, at a given mean; the paper's centring and bounds
    could not be read, and its singular values are drawn at random where these are exact. *importance* and *both* are
    this package's own.

    Parameters
    ----------
    demand : {"energy", "importance", "both"}
        What the budget is distributed by.
    chooser : str
        Name of the method that chooses the tokens: one that selects before the language model, and keeps as many
        tokens of each image as its budget says. It takes the knobs of the importance from this one, and its own
        defaults otherwise. A subclass of a method counts if it has a name of its own.
    least : float
        Least share of its fixed budget that an image gets, rounded down, one token at least.
    threshold : float, optional
        Share of the demand, above 0 and up to 1, that every image reaches.
    """

    name: ClassVar[str] = "adaptive"
    label: ClassVar[str] = "adaptive budget"
    shares_budget: ClassVar[bool] = True

    _: KW_ONLY
    demand: Demand = "energy"
    chooser: str = "idselection"
    least: float = 0.25
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.demand not in get_args(Demand):
            raise ValueError(f"demand must be one of {', '.join(get_args(Demand))}, not {self.demand!r}")
        check_share("least", self.least)
        if self.threshold is not None:
            check_share("threshold", self.threshold)
            if self.threshold == 0:
                raise ValueError(f"threshold must be above 0, not {self.threshold!r}")
        kind = _chooser(self.chooser)
        if lacking := [field.name for field in fields(kind) if _is_required(field) and field.name not in self._shared]:
            raise ValueError(
                f"chooser must be a method whose knobs have defaults: {self.chooser!r} needs {', '.join(lacking)}"
            )

    @property
    def inner(self) -> Method:
        """The method that chooses the tokens, at this method's budget."""
        kind = _chooser(self.chooser)
        shared = self._shared & {field.name for field in fields(kind)}
        return kind(**{name: getattr(self, name) for name in shared})

    @property
    def _shared(self) -> set[str]:
        """Knobs that the chooser takes from this method."""
        return {field.name for field in fields(Scored)}

    @property
    def tower_depths(self) -> tuple[float, ...]:
        """Depths of the vision tower that the chooser reads, other than the layer that feeds the projector."""
        return self.inner.tower_depths

    def curves(self, tokens: VisualTokens) -> Tensor:
        """Return the share of each image's demand that its first K tokens hold, (B, N) for K of 1 to N, rising to 1."""
        curves = []
        if self.demand in ("energy", "both"):
            curves.append(energy_curves(tokens.features, tokens.mask))
        if self.demand in ("importance", "both"):
            curves.append(mass_curves(self.scores(tokens), tokens.mask))
        return torch.stack(curves).mean(0)

    def bounds(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Return the least tokens of each image, and its fixed budget, int64 (B,) each."""
        fixed = resolve_budget(self.budget, tokens.lengths)
        return (fixed.double() * self.least).floor().long().clamp_min(1), fixed

    def counts(self, tokens: VisualTokens) -> Tensor:
        """Return the number of tokens that each image gets, int64 (B,)."""
        least, fixed = self.bounds(tokens)
        if self.threshold is None and torch.equal(fixed, tokens.lengths):
            return fixed
        curves = self.curves(tokens)
        if self.threshold is None:
            return allocate(curves, least, tokens.lengths, int(fixed.sum()))[0]
        # The curve passes the threshold at the first K that reaches it.
        needed = ((curves < self.threshold) & tokens.mask).sum(1) + 1
        return torch.maximum(needed.minimum(tokens.lengths), least)

    def threshold_of(self, tokens: VisualTokens) -> float:
        """Return the share of the demand that every image of a batch reaches at this mean, up to its last token."""
        least, fixed = self.bounds(tokens)
        return allocate(self.curves(tokens), least, tokens.lengths, int(fixed.sum()))[1]

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        counts = self.counts(tokens)
        whole = is_above(self.budget, tokens.lengths) & (counts == tokens.lengths)
        inner, parts = self.inner, []
        for count in sorted(set(counts[~whole].tolist())):
            rows = (~whole & (counts == count)).nonzero()[:, 0]
            chosen = replace(inner, budget=count).select(tokens.take(rows))
            if bool((chosen.counts != count).any()):
                raise ValueError(
                    f"chooser must keep as many tokens as its budget; {self.chooser!r} keeps {chosen.counts.tolist()} "
                    f"of {count}"
                )
            parts.append((rows, chosen))
        if bool(whole.any()):
            rows, merged = whole.nonzero()[:, 0], any(chosen.features is not None for _, chosen in parts)
            parts.append((rows, keep_all(tokens.take(rows), self.budget, merged)))
        return Selection.join(parts, self.budget)


def _chooser(name: str) -> type[Method]:
    """Return the method of a name that chooses tokens of an image, at any budget, before the language model.

    Raises
    ------
    ValueError
        If no method of this name does, or more than one.
    """
    usable: dict[str, dict[str, type[Method]]] = {}
    for kind in _below(Method):
        # A class that inherits its name is another form of the method that has it, not the method.
        if "name" in vars(kind) and not (
            inspect.isabstract(kind) or kind.shares_budget or kind.acts_on_pixels or issubclass(kind, InLLM)
        ):
            # A class that was defined again, as in a notebook, takes the place of the first.
            usable.setdefault(kind.name, {})[f"{kind.__module__}.{kind.__qualname__}"] = kind
    if name not in usable:
        raise ValueError(f"chooser must be one of {', '.join(sorted(usable))}, not {name!r}")
    if len(usable[name]) > 1:
        raise ValueError(f"chooser must be the name of one method; {name!r} is that of {' and '.join(usable[name])}")
    return next(iter(usable[name].values()))


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _below(kind: Any) -> Iterator[type[Method]]:
    for below in kind.__subclasses__():
        yield from _below(below)
        yield below
