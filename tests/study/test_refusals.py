"""What counts as a refusal of this package, and what as a fault."""

import pytest
import torch

from idsel_core import id_select
from idsel_core.selection import Selection
from idsel_core.study.refusals import is_refusal


def error_of(call):
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def raised_here():
    raise ValueError("by a test")


@pytest.mark.parametrize(
    ("call", "refused"),
    [
        (lambda: id_select(torch.ones(4, 3), torch.ones(4), 2, gamma=-1.0), True),
        (lambda: Selection.join([], 2), False),  # an index of nothing
        (lambda: id_select(torch.ones(4, 3), [1.0], 2), False),  # a TypeError is no refusal of a call
        (raised_here, False),
        (lambda: int("x"), False),
    ],
)
def test_a_refusal_is_raised_by_a_statement_of_this_package(call, refused):
    assert is_refusal(error_of(call)) == refused


def test_a_module_of_the_users_own_may_refuse_as_well():
    error = error_of(raised_here)
    assert is_refusal(error, __name__)
    assert not is_refusal(error, "another_module")
    assert not is_refusal(error_of(lambda: [].index(1)), __name__)


def test_what_python_raises_in_this_package_is_a_fault():
    from idsel_core.study.commands._arguments import number_or_share
    from idsel_core.study.common_batches import _joined
    from idsel_core.study.knobs import build_method

    assert is_refusal(error_of(lambda: number_or_share("--budget", "many")))
    assert is_refusal(error_of(lambda: build_method("topk", {"budget": 64, "no_such": 1})))
    error = error_of(lambda: _joined([[[1], [2]], [[1]]]))  # a strict zip
    assert isinstance(error, ValueError) and not is_refusal(error)
