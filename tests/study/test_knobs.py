"""Knobs are read by the types of their fields: from words of a command line, and from YAML."""

import dataclasses
from dataclasses import MISSING, fields
from typing import get_args, get_origin

import pytest

from idsel_core import get_method
from idsel_core.methods import METHODS
from idsel_core.study.knobs import build_method, knob_columns, knob_types, knobs_of_row, parse_knob

ALL = [(method, knob, kind) for method in METHODS for knob, kind in knob_types(method).items()]
FLAGS = [(method, knob) for method, knob, kind in ALL if kind is bool]
INF = float("inf")
NUMBERS = [(method, knob) for method, knob, kind in ALL if float in (kind, *get_args(kind)) and knob != "budget"]
INFINITE = {(method, "gamma") for method, knob, _ in ALL if knob == "gamma"}
"""Suppression at infinity spares all but duplicates."""
TUPLES = [(method, knob) for method, knob, kind in ALL if get_origin(kind) is tuple]


def test_there_are_flags_and_tuples():
    assert ("cdpruner", "negated") in FLAGS and len(FLAGS) > 10
    assert ("sparsevlm", "layers") in TUPLES and ("pyramiddrop", "layers") in TUPLES


@pytest.mark.parametrize(("method", "knob"), FLAGS)
def test_a_flag_is_true_or_false(method, knob):
    for text, value in (("true", True), ("True", True), ("false", False), ("False", False)):
        assert parse_knob(method, knob, text) is value
    for text in ("0", "no", "1", "", "[true]"):
        with pytest.raises(
            ValueError, match=f"knob {knob} of {method} must be true or false, not {text!r}".replace("[", r"\[")
        ):
            parse_knob(method, knob, text)
    for value in ("False", 0, 1, None, []):
        with pytest.raises(ValueError, match=f"knob {knob} of {method} must be true or false"):
            build_method(method, {"budget": 300, knob: value})
    assert getattr(build_method(method, {"budget": 300, knob: True}), knob) is True


@pytest.mark.parametrize(("method", "knob"), FLAGS)
@pytest.mark.parametrize("value", ["False", "", 0, 1, None])
def test_a_flag_of_a_method_is_a_bool_and_nothing_else(method, knob, value):
    with pytest.raises(ValueError, match=f"{knob} must be True or False, not {value!r}"):
        get_method(method, budget=300, **{knob: value})


@pytest.mark.parametrize(("method", "knob"), NUMBERS)
def test_infinity_is_a_number_where_it_has_a_meaning(method, knob):
    if (method, knob) in INFINITE:
        assert getattr(build_method(method, {"budget": 300, knob: parse_knob(method, knob, "inf")}), knob) == INF
    else:
        with pytest.raises(ValueError, match=f"{knob} must be .*, not inf"):
            build_method(method, {"budget": 300, knob: parse_knob(method, knob, "inf")})
    for value in (float("nan"), "nan"):
        with pytest.raises(ValueError, match=f"knob {knob} of {method} must be .*, not .?nan"):
            build_method(method, {"budget": 300, knob: value})
    with pytest.raises(ValueError, match=f"knob {knob} of {method} must be .*, not 'nan'"):
        parse_knob(method, knob, "nan")


@pytest.mark.parametrize(("method", "knob"), TUPLES)
def test_a_tuple_is_a_list(method, knob):
    assert parse_knob(method, knob, "[0.25, 2]") == (0.25, 2)
    assert [type(member) for member in parse_knob(method, knob, "[0.25,2]")] == [float, int]
    assert parse_knob(method, knob, "[]") == ()
    for text in ("0.25", "0.25, 0.5", "(0.25, 0.5)", "[a]", "[0.25,]", "[[1]]"):
        with pytest.raises(ValueError, match=f"knob {knob} of {method} must be a list such as"):
            parse_knob(method, knob, text)
    assert getattr(build_method(method, {"budget": 300, knob: [0.25, 2]}), knob) == (0.25, 2)
    for value in (0.25, "[0.25]", [True], ["a"], {"a": 1}):
        with pytest.raises(ValueError, match=f"knob {knob} of {method} must be a list such as"):
            build_method(method, {"budget": 300, knob: value})


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_come_back_from_their_words(method):
    given = {"budget": 300}
    for field in fields(METHODS[method]):
        if field.default is not MISSING:
            text = str(list(field.default)) if isinstance(field.default, tuple) else str(field.default)
            given[field.name] = parse_knob(method, field.name, text)
            assert (given[field.name], type(given[field.name])) == (field.default, type(field.default))
    assert build_method(method, given) == get_method(method, budget=300)


@pytest.mark.parametrize(
    ("method", "knob", "text", "value"),
    [
        ("idselection", "budget", "64", 64),
        ("idselection", "budget", "0.1", 0.1),
        ("idselection", "gamma", "5", 5.0),
        ("idselection", "gamma", "1e-1", 0.1),
        ("idselection", "gamma", "inf", float("inf")),
        ("idselection", "gamma", "Infinity", float("inf")),
        ("idselection", "update", "multiply", "multiply"),
        ("vscan", "layer", "none", None),
        ("vscan", "layer", "3", 3),
        ("vscan", "layer", "0.5", 0.5),
        ("random", "seed", " 7 ", 7),
    ],
)
def test_words_become_values(method, knob, text, value):
    found = parse_knob(method, knob, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("method", "knob", "text", "message"),
    [
        ("random", "seed", "1.5", "knob seed of random must be an int, not '1.5'"),
        ("idselection", "gamma", "high", "knob gamma of idselection must be a number or one of auto, not 'high'"),
        ("idselection", "gamma", "nan", "must be a number or one of auto, not 'nan'"),
        ("idselection", "update", "add", "must be one of subtract, multiply, not 'add'"),
        ("vscan", "layer", "last", "must be an int or a number or none, not 'last'"),
        ("idselection", "gama", "1", "has no knob 'gama', did you mean 'gamma'"),
        ("idselecton", "gamma", "1", "unknown method 'idselecton', did you mean 'idselection'"),
    ],
)
def test_words_of_another_type_are_refused(method, knob, text, message):
    with pytest.raises(ValueError, match=message):
        parse_knob(method, knob, text)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"importance": "saliency", "normalise": "raw", "features": "encoder"},
        {"update": "subtract", "exhausted": "continue", "gamma": 20.0},
        {"instruction_layer": 2, "instruction_tokens": "last"},
    ],
    ids=str,
)
def test_a_stored_row_tells_the_knobs_of_id_selection(knobs):
    method = get_method("idselection", budget=16, **knobs)
    assert get_method("idselection", budget=16, **knobs_of_row(knob_columns(method))) == method


OTHERS = {
    "importance": "saliency",
    "normalise": "raw",
    "features": "encoder",
    "gamma": 3.0,
    "update": "subtract",
    "exhausted": "continue",
    "budget_convention": "final",
    "layers": (1, 2),
    "demand": "both",
    "chooser": "divprune",
    "threshold": 0.5,
}


@pytest.mark.parametrize("name", METHODS)
def test_two_settings_of_a_method_differ_in_their_columns(name):
    plain = get_method(name, budget=300)
    assert knob_columns(plain)["knobs"] is None
    for field in fields(plain):
        value = getattr(plain, field.name)
        if field.name == "budget":
            continue
        if field.name in OTHERS:
            other = OTHERS[field.name]
        elif field.name == "attention":
            other = {"cls": "received", "received": "cls"}[value]
        elif isinstance(value, bool):
            other = not value
        elif field.name == "instruction_tokens":
            plain, other = dataclasses.replace(plain, instruction_layer=1), "last"
        else:
            other = value + 1 if isinstance(value, int) else value / 2 or 0.25
        assert knob_columns(dataclasses.replace(plain, **{field.name: other})) != knob_columns(plain), field.name
