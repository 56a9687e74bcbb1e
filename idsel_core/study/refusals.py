"""Tell an error by which this package refuses a call from any other."""

from __future__ import annotations

import dis
from typing import Final

_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def is_refusal(error: Exception, own: str = "idsel_core") -> bool:
    """Tell whether an error is one by which this package refuses a call: a ValueError that it raised itself.

    An error that Python raises within a function of this package, such as that of ``int("x")`` or of a strict ``zip``,
    is a fault and no refusal. So the last instruction that ran must be a ``raise``.

    Parameters
    ----------
    error : Exception
        The error.
    own : str
        A module beside this package whose ``raise`` refuses as well, such as that of a method of the user's own.
    """
    last = error.__traceback__
    if last is None or not isinstance(error, ValueError):
        return False
    while last.tb_next is not None:
        last = last.tb_next
    module = last.tb_frame.f_globals.get("__name__", "")
    code = last.tb_frame.f_code.co_code
    return (module == own or module.split(".")[0] == "idsel_core") and code[last.tb_lasti] == _RAISE
