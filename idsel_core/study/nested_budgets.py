"""Select once for several budgets, where the picks of a small one are the first picks of a large one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from idsel_core.methods import Method
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


class NestedSelections:
    """The selections of one batch of images; methods that differ in nothing but the budget share one.

    Parameters
    ----------
    methods : iterable of Method or str
        All that will select; only methods whose class says that its picks are ``nested`` share anything.
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
            self._widest[apart, of] = select_tokens(self._largest(method, tokens.lengths), tokens)
        widest = self._widest[apart, of]
        if bool((widest.counts < counts.to(widest.counts.device)).any()):
            return select_tokens(method, tokens)
        counts = counts.to(widest.order.device)
        first = widest.order[:, : int(counts.max())]
        first = first.masked_fill(torch.arange(first.shape[1], device=first.device) >= counts[:, None], -1)
        return Selection.from_order(first, widest.scores, method.budget)

    def _largest(self, method: Method, lengths: Tensor) -> Method:
        """Return the method with the largest of its budgets that these rows allow."""
        allowed = []
        for budget in self._budgets[_apart_from_budget(method)]:
            try:
                allowed.append((int(resolve_budget(budget, lengths).sum()), budget))
            except ValueError:
                continue
        return replace(method, budget=max(allowed)[1])


def _nested(method: Method | str) -> TypeGuard[Method]:
    # Not inherited: a subclass may select in another way.
    return isinstance(method, Method) and bool(vars(type(method)).get("nested"))


def _apart_from_budget(method: Method) -> Method:
    return replace(method, budget=1)
