"""Tell an error by which this package refuses a call from any other."""

from __future__ import annotations

import dis
from pathlib import Path
from typing import Final

from idsel_core.study.paths import PACKAGE

_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def is_refusal(error: Exception) -> bool:
    """Tell whether an error is one by which this package refuses a call: a ValueError that it raised itself.

    An error that Python raises within a function of this package, such as that of ``int("x")`` or of a strict ``zip``,
    is a fault and no refusal. So the last instruction that ran must be a ``raise``.
    """
    last = error.__traceback__
    if last is None or not isinstance(error, ValueError):
        return False
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    return Path(code.co_filename).is_relative_to(PACKAGE) and code.co_code[last.tb_lasti] == _RAISE
