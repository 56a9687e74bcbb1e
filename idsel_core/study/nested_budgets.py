"""Select once for several budgets, where the picks of a small one are the first picks of a large one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from idsel_core.methods import DiversityOnly, IDSelection, Method, TopK
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

NESTED: tuple[type[Method], ...] = (IDSelection, TopK, DiversityOnly)
"""Methods whose picks at a small budget are the first picks at a large one; a subclass may select in another way."""


class NestedSelections:
    """The selections of one batch of images; methods that differ in nothing but the budget share one.

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
        if not _nested(method) or len(self._budgets.get(apart := _apart_from_budget(method), ())) < 2:
            return select_tokens(method, tokens)
        counts = resolve_budget(method.budget, tokens.lengths)
        if (apart, of) not in self._widest:
            # In the order of the picks also where the budget is above the tokens of an image.
            self._widest[apart, of] = self._largest(method, tokens.lengths).select(tokens)
        widest = self._widest[apart, of]
        if bool((widest.counts < counts.to(widest.counts.device)).any()):
            return select_tokens(method, tokens)
        counts = counts.to(widest.order.device)
        first = widest.order[:, : int(counts.max())]
        first = first.masked_fill(torch.arange(first.shape[1], device=first.device) >= counts[:, None], -1)
        return Selection.from_order(first, widest.scores, method.budget)

    def _largest(self, method: Method, lengths: Tensor) -> Method:
        """Return the method with the largest of its budgets for these rows."""
        budgets = self._budgets[_apart_from_budget(method)]
        return replace(method, budget=max(budgets, key=lambda budget: int(resolve_budget(budget, lengths).sum())))


def _nested(method: Method | str) -> TypeGuard[Method]:
    return type(method) in NESTED


def _apart_from_budget(method: Method) -> Method:
    return replace(method, budget=1)
