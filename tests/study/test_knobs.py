"""Knobs are read by the types of their fields: from words of a command line, and from YAML."""

from dataclasses import MISSING, fields
from typing import get_origin

import pytest

from idsel_core import get_method
from idsel_core.methods import METHODS
from idsel_core.study.knobs import build_method, knob_types, parse_knob

ALL = [(method, knob, kind) for method in METHODS for knob, kind in knob_types(method).items()]
FLAGS = [(method, knob) for method, knob, kind in ALL if kind is bool]
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
