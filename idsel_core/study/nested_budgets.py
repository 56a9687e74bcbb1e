"""Select once for several settings: small budgets are the first picks of a large one, and gammas share cosines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor

from idsel_core.methods import DiversityOnly, IDSelection, Method, TopK
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.study.common_greedy import alike_but_for_suppression, select_together
from idsel_core.visual_tokens import VisualTokens

M = TypeVar("M", bound=Method)

NESTED: tuple[type[Method], ...] = (IDSelection, TopK, DiversityOnly)
"""Methods whose picks at a small budget are the first picks at a large one; a subclass may select in another way."""


class NestedSelections:
    """The selections of one batch of images.

    Methods that differ in nothing but the budget share one; those of ID-Selection that differ in budget, gamma and
    update alone are run together.

    Parameters
    ----------
    methods : iterable of Method or str
        All that will select; only methods of a class in `NESTED` share anything.
    """

    def __init__(self, methods: Iterable[Method | str]) -> None:
        self._budgets: dict[Method, list[int | float]] = {}
        for method in methods:
            if _nested(method):
                self._budgets.setdefault(_apart_from_budget(method), []).append(method.budget)
        self._widest: dict[Hashable, Selection] = {}

    def __call__(self, method: Method, tokens: VisualTokens, of: Hashable = None) -> Selection:
        """Return what `select_tokens` returns for these tokens, which are the same at each call with the same `of`."""
        if not _nested(method):
            return select_tokens(method, tokens)
        apart = _apart_from_budget(method)
        kin = self._kin(method)
        if len(self._budgets.get(apart, ())) < 2 and len(kin) < 2:
            return select_tokens(method, tokens)
        counts = resolve_budget(method.budget, tokens.lengths)
        if (apart, of) not in self._widest:
            # In the order of the picks also where the budget is above the tokens of an image.
            together = select_together([self._largest(one, tokens.lengths) for one in kin], tokens) if kin else None
            if together is None:
                kin, together = [apart], [self._largest(method, tokens.lengths).select(tokens)]
            self._widest |= {(one, of): selection for one, selection in zip(kin, together, strict=True)}
        widest = self._widest[apart, of]
        if bool((widest.counts < counts.to(widest.counts.device)).any()):
            return select_tokens(method, tokens)
        counts = counts.to(widest.order.device)
        first = widest.order[:, : int(counts.max())]
        first = first.masked_fill(torch.arange(first.shape[1], device=first.device) >= counts[:, None], -1)
        return Selection.from_order(first, widest.scores, method.budget)

    def _kin(self, method: Method) -> list[IDSelection]:
        """Return the settings of ID-Selection, apart from their budgets, that this one is run together with."""
        if type(method) is not IDSelection:
            return []
        alike = alike_but_for_suppression(method)
        known = [one for one in self._budgets if type(one) is IDSelection]
        return [one for one in known if alike_but_for_suppression(one) == alike]

    def _largest(self, method: M, lengths: Tensor) -> M:
        """Return the method with the largest of its budgets for these rows."""
        budgets = self._budgets[_apart_from_budget(method)]
        return replace(method, budget=max(budgets, key=lambda budget: int(resolve_budget(budget, lengths).sum())))


def _nested(method: Method | str) -> TypeGuard[Method]:
    return type(method) in NESTED


def _apart_from_budget(method: M) -> M:
    return replace(method, budget=1)
