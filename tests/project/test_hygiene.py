"""What is committed is clean: style, types, and no trace of the machines it was made on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PROJECT

# Written in pieces, so that this file passes its own test.
TRACES = {
    "a folder of some machine": r"(?<![\w.~])/(?:work|root|home|Users|opt|tmp)/\w",
    "a host of a package registry": r"py"
    r"pi\.org|python"
    r"hosted\.org|ana"
    r"conda\.(?:org|com)|registry\.n"
    r"pmjs"
    r"|download\.py"
    r"torch\.org|files\.python",
    "an issue or a session": r"(?i)\b(?:issue|session)s? #?\d|(?<![\w./])shared/\w",
    "a local address": r"127\.0\.0\.\d|local" r"host:\d",
}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    return [PROJECT / name for name in listed.stdout.split("\0") if name and (PROJECT / name).is_file()]


@pytest.mark.parametrize("trace", TRACES)
def test_no_file_names(trace):
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(PROJECT)}: {match[0]}" for match in re.finditer(TRACES[trace], text)]
    assert found == []


def test_no_file_is_larger_than_what_may_be_committed():
    assert [path.name for path in tracked() if path.stat().st_size > 16 * 2**20] == []


@pytest.mark.parametrize("tool", [["ruff", "check"], ["mypy"]], ids=["ruff", "mypy"])
@pytest.mark.fast_for(tool=[["ruff", "check"]])
def test_tool_is_content(tool):
    done = subprocess.run([sys.executable, "-m", *tool], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
