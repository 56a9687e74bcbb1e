"""The types of numbers that weights can be quantised to, and the packages that this needs."""

import importlib.util
from typing import Literal, get_args

Quantisation = Literal["int8", "int4"]


def check_packages(quantisation: object = None, device_map: object = None) -> None:
    """Refuse a quantisation that is unknown, and options that need a package which is not installed.

    Parameters
    ----------
    quantisation, device_map
        As for `load`.

    Raises
    ------
    ImportError
        Says which package, and how to install it.
    ValueError
        If the quantisation is unknown.
    """
    if isinstance(quantisation, str) and quantisation not in get_args(Quantisation):
        raise ValueError(f"quantisation must be one of {', '.join(get_args(Quantisation))}, not {quantisation!r}")
    for package in ("accelerate", "bitsandbytes") if isinstance(quantisation, str) else ():
        _need(package, f"quantisation={quantisation!r}")
    if device_map is not None:
        _need("accelerate", "device_map")


def _need(package: str, wanted_for: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{wanted_for} needs {package}: pip install 'idsel_core[quantised]'")
