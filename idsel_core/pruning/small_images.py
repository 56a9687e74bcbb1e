"""Images with fewer tokens than the budget, which are left whole."""

from __future__ import annotations

from idsel_core.methods import Method
from idsel_core.methods._shared.base import keep_all
from idsel_core.selection.budget import is_above
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


def select_from_larger(method: Method, tokens: VisualTokens) -> Selection:
    """Let a method select from the images that have at least as many tokens as its budget, and leave the others whole.

    A whole image keeps its features: nothing is merged, and its scores are not used. A method whose images share a
    budget selects from all of them, because what one keeps depends on the others.

    Parameters
    ----------
    method : Method
        Of any kind. A budget that is a share is never above the tokens of an image.
    tokens : VisualTokens
        I images.

    Returns
    -------
    Selection
        I rows. A whole image's picks are in raster order, and its scores equal.

    Raises
    ------
    TypeError
        If the method's ``select`` does not return a selection of so many rows.
    """
    small = is_above(method.budget, tokens.full_lengths).to(tokens.mask.device)
    if method.shares_budget or not small.any():
        return _selected(method, tokens)
    if small.all():
        return keep_all(tokens, method.budget)
    larger, whole = (~small).nonzero()[:, 0], small.nonzero()[:, 0]
    chosen = _selected(method, tokens.take(larger))
    kept = keep_all(tokens.take(whole), method.budget, merged=chosen.features is not None)
    return Selection.join([(larger, chosen), (whole, kept)], method.budget)


def _selected(method: Method, tokens: VisualTokens) -> Selection:
    selection = method.select(tokens)
    if not isinstance(selection, Selection) or len(selection) != len(tokens):
        found = f"{len(selection)} rows" if isinstance(selection, Selection) else type(selection).__name__
        raise TypeError(
            f"select() of method {method.name!r} must return a Selection with {len(tokens)} rows, one an image, not "
            f"{found}; see take_best() and Selection.from_order()"
        )
    return selection
