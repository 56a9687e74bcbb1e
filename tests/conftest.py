"""Sort tests into fast and slow ones, and record how long they took and what of which model family they saw work.

pytest -m feature --record-families
make test ARGS="--record-time test"

A test says with ``@pytest.mark.feature("name")`` what it shows of the family that it runs on.
``@pytest.mark.slow`` leaves a test to `make test-all`, ``@pytest.mark.fast_for(family=["llava"])`` all but some of its
parameters.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.project import PROJECT, RECORD, TIMES

pytest_plugins = ["tests.support.sweeps"]

FIRST = ("tests/notebooks", "tests/study/run", "tests/project", "tests/pruning", "tests/study")
"""Folders whose files take longest: workers begin with them."""
COLLECTED = pytest.StashKey[list]()
"""All tests that were found, also those that `-m` and `-k` leave out."""


def pytest_addoption(parser):
    parser.addoption("--record-families", action="store_true", help=f"write {RECORD.name}, which the docs draw from")
    parser.addoption("--record-time", metavar="TARGET", help=f"write into {TIMES} how long the tests of a target took")


def pytest_configure(config):
    config.addinivalue_line("markers", "feature(name): what a test shows of a model family")
    config.addinivalue_line("markers", "fast_for(parameter=values): the test is slow for all other values")
    if config.getoption("--record-families") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())
    if config.getoption("--record-time") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Clock(config.getoption("--record-time")))


def parameters(item) -> dict[str, object]:
    """Return the parameters of a test by name."""
    given = getattr(item, "callspec", None)
    return given.params if given else {}


def shown(item):
    """Return the feature that a test shows and the family that it shows it of, if any."""
    mark = item.get_closest_marker("feature")
    if mark is None:
        return None
    named = parameters(item)
    family = named.get("family") or named.get("case") or "llava"
    return mark.args[0], getattr(family, "name", family)


def is_sampled(item) -> bool:
    """Tell whether the parameters of a test are among those that its `fast_for` marks name."""
    named = parameters(item)
    return all(
        getattr(named[name], "name", named[name]) in values
        for mark in item.iter_markers("fast_for")
        for name, values in mark.kwargs.items()
    )


def order(item) -> int:
    """Return the place of a test's folder in `FIRST`."""
    path = item.path.relative_to(PROJECT).as_posix()
    return next((place for place, folder in enumerate(FIRST) if path.startswith(folder)), len(FIRST))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    items.sort(key=order)
    config.stash[COLLECTED] = list(items)
    for item in items:
        if not is_sampled(item):
            item.add_marker(pytest.mark.slow)
        if found := shown(item):
            item.user_properties.append(("feature", found))


class Recorder:
    """Collect the outcomes of the tests that show a feature."""

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


class Clock:
    """Measure the seconds from now to the end of the tests; those that fail leave no time."""

    def __init__(self, target):
        self.target, self.began, self.tests = target, time.monotonic(), 0

    def pytest_runtest_logreport(self, report):
        self.tests += report.when == "call"

    def pytest_sessionfinish(self, session, exitstatus):
        if exitstatus:
            return
        times = json.loads(TIMES.read_text()) if TIMES.exists() else {}
        times[self.target] = {
            "seconds": round(time.monotonic() - self.began),
            "tests": self.tests,
            "workers": session.config.getoption("numprocesses", None) or 1,
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
        TIMES.parent.mkdir(exist_ok=True)
        TIMES.write_text(json.dumps(times, indent=1) + "\n")


@pytest.fixture
def collected(request) -> list[pytest.Item]:
    """Return all tests of the project, whatever marks were asked for; skip where only some files were."""
    found = request.config.stash[COLLECTED]
    files = {path for path in Path(__file__).parent.rglob("test_*.py") if "support" not in path.parts}
    if any("::" in given for given in request.config.args) or not files <= {item.path for item in found}:
        pytest.skip("not all files with tests were asked for")
    return found


@pytest.fixture
def features(collected) -> dict[str, set[str]]:
    """Return what the tests of the project show, and of which families."""
    found = defaultdict(set)
    for item in collected:
        if pair := shown(item):
            found[pair[0]].add(pair[1])
    return found
