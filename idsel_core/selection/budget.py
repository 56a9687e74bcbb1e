"""The number of tokens that a budget keeps."""

from __future__ import annotations

import numbers
import sys

from torch import Tensor


def resolve_budget(budget: int | float, lengths: Tensor) -> Tensor:
    """Return the number of tokens to keep of each row.

    Parameters
    ----------
    budget : int or float
        An int is a number of tokens; a row with fewer tokens keeps all. A float in (0, 1] is a share of each row's
        length, rounded half up, at least one token.
    lengths : Tensor
        Long (B,); number of tokens of each row.

    Returns
    -------
    Tensor
        Long (B,).

    Raises
    ------
    TypeError
        If the budget is not a number.
    ValueError
        If the budget is out of range.
    """
    allowed = "a number of tokens (int, 1 or more) or a share of them (float, above 0 and up to 1)"
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise TypeError(f"budget must be {allowed}, not {budget!r}")
    if isinstance(budget, numbers.Integral):
        if budget < 1:
            raise ValueError(f"budget must be {allowed}, not {budget!r}")
        return lengths.clamp_max(min(int(budget), sys.maxsize))
    if not 0 < budget <= 1:
        raise ValueError(f"budget must be {allowed}, not {budget!r}")
    return (lengths.double() * float(budget) + 0.5).floor().long().clamp_min(1)


def is_above(budget: int | float, lengths: Tensor) -> Tensor:
    """Tell which rows have fewer tokens than a budget asks for, bool (B,); a share is above none.

    Parameters
    ----------
    budget : int or float
        As of `resolve_budget`.
    lengths : Tensor
        Long (B,); number of tokens of each row.
    """
    number = min(int(budget), sys.maxsize) if isinstance(budget, numbers.Integral) else 0
    return lengths < number
