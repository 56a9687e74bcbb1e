"""Videos and long audio: many tokens are selected in little memory."""

import subprocess
import sys

import pytest

from tests.support.project import PROJECT

CODE = """
import resource, sys, time, torch
from idsel_core import id_select
from benchmarks.selection import gap

torch.set_num_threads(1)
torch.manual_seed(0)
kind, tokens, budget, width = sys.argv[1], *map(int, sys.argv[2:])
x, centres = torch.empty(tokens, width), torch.randn(400, width)
for part in x.split(100):  # without a second copy, which would hide what the selection takes
    part.normal_(std=0.5).add_(centres[torch.randint(400, (len(part),))])
scores = torch.ones(tokens) if kind == "equal" else torch.rand(tokens)
id_select(x[:64], scores[:64], 8)
unit = 1 if sys.platform == "darwin" else 1024
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
started = time.perf_counter()
order = id_select(x, scores, budget).order[0]
seconds = time.perf_counter() - started
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(f"{seconds:.2f} s, {(after - before) / 2**20:.0f} MiB")
assert len(order.unique()) == budget
assert after - before <= 2**30, (before, after)
behind = gap(x, scores, order)
print(f"worst pick {behind:.1e} of the highest score below the best token")
assert behind <= 1e-6
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uniform", "equal"])
def test_a_video_is_selected_within_one_gibibyte_beside_its_features(kind):
    """16,000 tokens of width 3,584: a table of all pairs alone would take a gibibyte in float32, two in float64."""
    command = [sys.executable, "-c", CODE, kind, "16000", "1024", "3584"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
