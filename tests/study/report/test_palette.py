"""Methods keep their colour and marker, and people who do not see all colours tell them apart."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from skimage.color import deltaE_ciede2000, rgb2lab

from idsel_core.methods import METHODS
from idsel_core.study.report import palette, theme
from idsel_core.study.report.reported import read_reported
from tests.support.project import PROJECT

# Machado, Oliveira and Fernandes, 2009: what a person sees who lacks one kind of cone, in linear RGB.
SEEN = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def as_seen(colour, eyes):
    given = np.array(to_rgb(colour))
    linear = np.where(given <= 0.04045, given / 12.92, ((given + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(SEEN[eyes]) @ linear, 0, 1)
    return rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))


def difference(one, other):
    """The difference of two colours to the eyes that see it least."""
    return min(float(deltaE_ciede2000(as_seen(one, eyes), as_seen(other, eyes))) for eyes in SEEN)


def test_methods_of_one_marker_have_colours_that_all_eyes_tell_apart():
    near = [
        (one, other)
        for (one, (colour, marker)), (other, (color, shape)) in combinations(palette.METHODS.items(), 2)
        if marker == shape and difference(colour, color) < 10
    ]
    assert near == []


def test_the_test_of_colours_can_fail():
    assert difference("#ff0000", "#a08000") < 10 < difference(palette.BLUE, palette.ORANGE)


def test_every_method_that_figures_may_draw_is_in_the_table():
    assert set(METHODS) | set(theme.ENDS) | set(read_reported()["method"]) <= set(palette.METHODS)


def test_a_method_of_ones_own_has_a_look_that_no_other_has():
    looks = palette.of_method("mine"), palette.of_method("mine too")
    assert looks[0] == palette.of_method("mine") and not set(looks) & set(palette.METHODS.values())


def test_a_final_budget_keeps_the_colour_and_opens_the_marker():
    plain, final = theme.styles(["vscan", "vscan (final)"]).values()
    assert (plain["color"], plain["marker"]) == (final["color"], final["marker"])
    assert final["linestyle"] == "--" and "linestyle" not in plain


@pytest.mark.parametrize("folder", ["idsel_core/study/report", "notebooks"])
def test_no_colour_is_typed_outside_the_table(folder):
    typed = re.compile(r"""color(?:s|_palette)?\s*=\s*["']|color_palette\(["']|cmap=["']|["']#[0-9a-fA-F]{6}["']""")
    found = [
        f"{path.name}: {match[0]}"
        for path in sorted((PROJECT / folder).rglob("*.py"))
        if path.name != "palette.py"
        for match in typed.finditer(path.read_text())
    ]
    assert found == []
