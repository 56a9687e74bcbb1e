"""Read the knobs of methods from words and from YAML, by the types of their fields."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from idsel_core.methods import METHODS, Method, drops_inside, get_method
from idsel_core.methods._shared.by_importance import Scored


def knob_types(method: str) -> dict[str, Any]:
    """Return the type of each knob of a method, the budget among them.

    Raises
    ------
    ValueError
        If the method is unknown; names the known ones.
    """
    if method not in METHODS:
        get_method(method)
    hints = get_type_hints(METHODS[method])
    return {field.name: hints[field.name] for field in fields(METHODS[method])}


def parse_knob(method: str, knob: str, text: str) -> Any:
    """Return the value of a knob that a command line gives as text.

    Parameters
    ----------
    method, knob : str
        Names of the method and of one of its knobs.
    text : str
        ``true`` or ``false`` for a flag, ``[0.25, 0.5]`` for a tuple, ``none`` where a knob may be None, ``inf`` where
        a number may be infinite.

    Raises
    ------
    ValueError
        If the method or the knob is unknown, or the text is no value of its type.
    """
    kinds = knob_types(method)
    if knob not in kinds:
        get_method(method, **{knob: text})
    try:
        return _parsed(text.strip(), kinds[knob])
    except _NoValue as error:
        raise ValueError(f"knob {knob} of {method} must be {_described(kinds[knob])}, not {text!r}") from error


def build_method(method: str, knobs: Mapping[str, Any]) -> Method:
    """Build a method whose knobs come from YAML or JSON, where a tuple is a list.

    Parameters
    ----------
    method : str
        Name of the method.
    knobs : Mapping
        Its knobs, ``budget`` among them.

    Raises
    ------
    ValueError
        If the method or a knob is unknown, or a value is not of the knob's type or not allowed.
    """
    kinds, values = knob_types(method), {}
    for knob, value in knobs.items():
        if knob not in kinds:
            get_method(method, **{knob: value})
        try:
            values[knob] = _fitting(value, kinds[knob])
        except _NoValue as error:
            raise ValueError(f"knob {knob} of {method} must be {_described(kinds[knob])}, not {value!r}") from error
    try:
        return get_method(method, **values)
    except TypeError as error:
        raise ValueError(f"{method}: {error}") from error


def knob_columns(method: Method | str) -> dict[str, Any]:
    """Return the columns of stored rows that tell the knobs of a method.

    Parameters
    ----------
    method : Method or str
        A method, or the name of an end of the scale, which has no knobs.

    Returns
    -------
    dict
        importance, normalise, features, update, instruction, gamma, convention, knobs, seed; see
        `idsel_core.study.store.schema`.
    """
    update, exhausted = getattr(method, "update", None), getattr(method, "exhausted", "restart")
    gamma = getattr(method, "gamma", math.nan)
    return {
        **{knob: getattr(method, knob, None) for knob in ("importance", "normalise", "features")},
        "update": update if update is None or exhausted == "restart" else f"{update}, {exhausted}",
        "instruction": f"{method.instruction_tokens}@{method.instruction_layer}"
        if isinstance(method, Scored)
        else None,
        "gamma": -1.0 if gamma == "auto" else float(gamma),
        "convention": method.budget_convention if not isinstance(method, str) and drops_inside(method) else None,
        "knobs": None if isinstance(method, str) else _other_knobs(method),
        "seed": getattr(method, "seed", 0),
    }


_TOLD = {"budget", "importance", "normalise", "features", "update", "exhausted", "gamma", "seed"}
_TOLD |= {"instruction_tokens", "instruction_layer", "budget_convention"}
"""Knobs that have columns of their own."""


def _other_knobs(method: Method) -> str | None:
    given = [(field.name, getattr(method, field.name), field.default) for field in fields(method)]
    told = [f"{name}={value!r}" for name, value, default in given if name not in _TOLD and value != default]
    return ", ".join(told) or None


def knobs_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs of ID-Selection that a stored row tells, as its class takes them: what `knob_columns` wrote.

    Parameters
    ----------
    row : mapping
        A row of the store, of a method with these knobs.
    """
    update, _, exhausted = row["update"].partition(", ")
    return {
        **{knob: row[knob] for knob in ("importance", "normalise", "features")},
        "update": update,
        "exhausted": exhausted or "restart",
        "gamma": "auto" if row["gamma"] < 0 else row["gamma"],
        **instruction_knobs(row["instruction"]),
    }


def instruction_knobs(name: str) -> dict[str, Any]:
    """Return the knobs of instruction attention by their name in rows, such as "words@0": query tokens and layer."""
    which, _, layer = name.partition("@")
    return {"instruction_tokens": which, "instruction_layer": int(layer)}


class _NoValue(Exception):
    """The text or value is not of the type."""


def _options(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, the strictest first, or the type alone."""
    if get_origin(kind) not in (Union, types.UnionType):
        return (kind,)
    strictness = {types.NoneType: 0, bool: 1, int: 2, float: 3, str: 5}
    return tuple(sorted(get_args(kind), key=lambda member: strictness.get(member, 4)))


def _parsed(text: str, kind: Any) -> Any:
    for option in _options(kind):
        try:
            return _parsed_one(text, option)
        except _NoValue:
            continue
    raise _NoValue


def _parsed_one(text: str, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return _fitting_one(text, kind)
    if get_origin(kind) is tuple:
        if not (text.startswith("[") and text.endswith("]")):
            raise _NoValue
        words = [word.strip() for word in text[1:-1].split(",")]
        return tuple(_parsed(word, get_args(kind)[0]) for word in words if word or len(words) > 1)
    if kind is types.NoneType and text.lower() in ("none", "null"):
        return None
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if kind is float and re.fullmatch(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?)", text, re.IGNORECASE):
        return float(text)
    if kind is str and text:
        return text
    raise _NoValue


def _fitting(value: Any, kind: Any) -> Any:
    for option in _options(kind):
        try:
            return _fitting_one(value, option)
        except _NoValue:
            continue
    raise _NoValue


def _fitting_one(value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
        return value
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_fitting(member, get_args(kind)[0]) for member in value)
    if kind is types.NoneType and value is None:
        return None
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value):
        return value
    if kind is str and isinstance(value, str):
        return value
    raise _NoValue


def _described(kind: Any) -> str:
    """Return what a value of a type looks like, in words."""
    if get_origin(kind) in (Union, types.UnionType):
        words = [_described(option) for option in _options(kind)]
        return " or ".join([*words[1:], words[0]] if words[0] == "none" else words)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"a list such as [2, 0.5] whose members are {_described(get_args(kind)[0])}"
    return {bool: "true or false", int: "an int", float: "a number", str: "a word", types.NoneType: "none"}.get(
        kind, str(kind)
    )
