"""Numbers of tokens as authors' programs count them, where that differs from `resolve_budget`."""

from __future__ import annotations

import numbers

from torch import Tensor

from idsel_core.selection.budget import resolve_budget


def is_share(budget: int | float) -> bool:
    """Return whether a budget is a share of the tokens, not a number of them."""
    return not isinstance(budget, numbers.Integral)


def share_rounded_down(budget: int | float, lengths: Tensor) -> Tensor:
    """Return the number of tokens to keep of each row, with shares rounded down instead of half up.

    The product is taken in float64, as Python takes it, so a product just below a whole number loses one: 0.29 of 100
    tokens are 28.

    Parameters
    ----------
    budget : int or float
        Number or share of tokens, see `resolve_budget`.
    lengths : Tensor
        Long (B,); number of tokens of each row.

    Returns
    -------
    Tensor
        Long (B,); 0 or more.
    """
    if not is_share(budget):
        return resolve_budget(budget, lengths)
    return (lengths.double() * float(budget)).floor().long()


def share_rounded_to_even(budget: int | float, lengths: Tensor) -> Tensor:
    """Return the number of tokens to keep of each row, with shares rounded half to even, as Python's ``round`` does.

    Parameters and result are those of `share_rounded_down`.
    """
    if not is_share(budget):
        return resolve_budget(budget, lengths)
    return (lengths.double() * float(budget)).round().long()
