"""Pairs of runs: means, the paired difference and who is above whom follow the rows."""

import numpy as np
import pandas as pd
import pytest

from idsel_core.study.report.pairs import paired_table
from tests.support.rows import make_rows


@pytest.fixture(scope="module")
def rows():
    plain = make_rows(questions=40, budgets=(64, 16))
    right = np.tile(np.arange(40) < 20, 2)
    more = np.where(plain["budget"] == 64, np.tile(np.arange(40) < 36, 2), right)
    return pd.concat(
        [plain.assign(positions="compact", correct=right), plain.assign(positions="keep", correct=more)],
        ignore_index=True,
    )


def test_the_second_stands_above_the_first_where_the_test_says_so(rows):
    table = paired_table(rows, ["method", "budget"], "positions", "compact", "keep", 200).set_index("budget")
    assert table["outcome"].to_dict() == {64: "above", 16: "tie"}
    assert table.at[64, "compact"].startswith("50.0 [") and table.at[64, "keep"].startswith("90.0 [")
    assert table.at[64, "difference"].startswith("+40.0 [") and table.at[16, "difference"] == "+0.0 [+0.0, +0.0]"
    turned = paired_table(rows, ["method", "budget"], "positions", "keep", "compact", 200)
    assert turned["outcome"].tolist() == ["below", "tie"]


def test_a_setting_that_lacks_one_of_the_two_is_named(rows):
    lacking = rows[(rows["budget"] == 64) | (rows["positions"] == "keep")]
    with pytest.raises(ValueError, match=r"'budget': 16.*has no rows with positions 'compact'"):
        paired_table(lacking, ["method", "budget"], "positions", "compact", "keep", 200)


def test_a_setting_with_a_missing_knob_keeps_its_row(rows):
    table = paired_table(rows.assign(knobs=None), ["method", "budget", "knobs"], "positions", "compact", "keep", 200)
    assert table["budget"].tolist() == [64, 16] and table["knobs"].isna().all()
