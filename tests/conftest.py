"""Record which features of which model family the tests saw work.

pytest -m feature --record-families

A test says with ``@pytest.mark.feature("name")`` what it shows of the family that it runs on.
"""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from tests.support.project import RECORD

pytest_plugins = ["tests.support.sweeps"]

SLOW = ("test_sweep.py", "test_sweep_faults.py", "test_workflow.py", "test_notebooks.py")
"""Files that take minutes: workers begin with them."""


def pytest_addoption(parser):
    parser.addoption("--record-families", action="store_true", help=f"write {RECORD.name}, which README.md draws from")


def pytest_configure(config):
    config.addinivalue_line("markers", "feature(name): what a test shows of a model family")
    if config.getoption("--record-families") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def shown(item):
    """Return the feature that a test shows and the family that it shows it of, if any."""
    mark = item.get_closest_marker("feature")
    if mark is None:
        return None
    given = getattr(item, "callspec", None)
    named = given.params if given else {}
    return mark.args[0], named.get("family") or named.get("case") or "llava"


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in SLOW)
    for item in items:
        if found := shown(item):
            item.user_properties.append(("feature", found))


class Recorder:
    def __init__(self):
        self.outcomes = defaultdict(lambda: defaultdict(set))

    def pytest_runtest_logreport(self, report):
        for name, value in report.user_properties:
            if name == "feature" and (report.when == "call" or report.outcome != "passed"):
                feature, family = value
                self.outcomes[feature][family].add(report.outcome)

    def pytest_sessionfinish(self):
        # One test that failed is enough to doubt a feature; one that was skipped is not.
        found = {
            feature: {
                family: next(outcome for outcome in ("failed", "passed", "skipped") if outcome in outcomes)
                for family, outcomes in sorted(families.items())
            }
            for feature, families in sorted(self.outcomes.items())
        }
        RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.fixture
def features(request):
    """What the tests of this session show, and of which families; skip where only some were asked for."""
    if (
        request.config.option.keyword
        or request.config.option.markexpr
        or any("::" in given for given in request.config.args)
    ):
        pytest.skip("not all tests were asked for")
    found = defaultdict(set)
    for item in request.session.items:
        if pair := shown(item):
            found[pair[0]].add(pair[1])
    return found
