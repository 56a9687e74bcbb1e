"""The triton backend picks the same tokens as torch: under triton's interpreter on a CPU, and on a GPU if there is one.

Triton decides at import whether it interprets kernels, so the interpreter runs in a process of its own.
"""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings

from idsel_core.selection.greedy import id_select
from tests.support.project import PROJECT
from tests.support.selections import EXHAUSTED, GAMMAS, UPDATES, problems, resembles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
kernel = pytest.mark.skipif(
    DEVICE.type == "cpu" and not INTERPRETED, reason="has no GPU; see the interpreter's process"
)
outside = pytest.mark.skipif(INTERPRETED, reason="is not about the interpreter")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **variables}
    return subprocess.run([sys.executable, *command], cwd=PROJECT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@outside
def test_the_kernel_passes_these_tests_under_the_interpreter():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def both(**arguments):
    arguments = {name: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
    return (id_select(**arguments, backend=backend).order.cpu() for backend in ("triton", "torch"))


@kernel
@given(problems(torch.float64, batch=3))
@settings(max_examples=40, deadline=None)
def test_triton_picks_the_same_tokens_as_torch_in_ragged_batches(problem):
    ours, wanted = both(**problem)
    for row, count in enumerate((wanted >= 0).sum(1).tolist()):
        assert (ours[row, count:] == -1).all()
        assert torch.equal(ours[row], wanted[row]) or resembles(ours[row, :count], wanted[row, :count], problem, row)


@kernel
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("gamma", [*GAMMAS, 1e-3, "auto"])
def test_triton_orders_all_tokens_like_torch_for_every_gamma(gamma, update):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 40, 6, generator=generator)
    s = torch.rand(2, 40, generator=generator)
    for exhausted in EXHAUSTED:
        ours, wanted = both(features=x, scores=s, budget=40, gamma=gamma, update=update, exhausted=exhausted)
        assert torch.equal(ours, wanted)
    assert ours.sort(dim=1).values.tolist() == [list(range(40))] * 2


@kernel
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_triton_picks_the_same_tokens_as_torch_in_every_dtype(dtype, update):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 60, 16, generator=generator).to(dtype)
    s = torch.rand(3, 60, generator=generator).to(dtype)
    mask = torch.rand(3, 60, generator=generator) < 0.7
    x[~mask], s[~mask] = math.nan, -1
    ours, wanted = both(features=x, scores=s, budget=0.6, update=update, mask=mask)
    assert torch.equal(ours, wanted)


@kernel
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("gamma", [0.5, 20.0, math.inf])
def test_ties_go_to_the_lowest_index(gamma, update):
    """Cosines of these vectors are exact, and so duplicates stay tied."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(2, (2, 70, 4), generator=generator).mul(2).sub(1).float()
    x[:, ::7] = 0
    s = torch.randint(1, 4, (2, 70), generator=generator) / 4
    problem = {
        "features": x,
        "scores": s,
        "mask": torch.ones(2, 70, dtype=torch.bool),
        "gamma": gamma,
        "update": update,
    }
    ours, wanted = both(**problem, budget=70)
    # Products that are equal but for the order of their factors may differ in the last digit.
    for row in range(2):
        same = torch.equal(ours[row], wanted[row])
        assert same or (update == "multiply" and resembles(ours[row], wanted[row], problem, row))
    ours, _ = both(features=x, scores=torch.zeros(2, 70), budget=9, gamma=gamma, update=update)
    assert ours.tolist() == [list(range(9))] * 2


@kernel
def test_picks_do_not_depend_on_the_size_of_the_workspace(monkeypatch):
    from idsel_core.selection import gpu_triton as triton_select

    generator = torch.Generator().manual_seed(3)
    problem = {
        "features": torch.randn(5, 30, 8, generator=generator),
        "scores": torch.rand(5, 30, generator=generator),
        "mask": torch.rand(5, 30, generator=generator) < 0.8,
        "budget": 0.5,
    }
    wanted, _ = both(**problem)
    monkeypatch.setattr(triton_select, "WORKSPACE", 2 * 30 * 30 * 4)
    ours, _ = both(**problem)
    assert torch.equal(ours, wanted)


@kernel
def test_numbers_of_tokens_beside_a_power_of_two():
    for n in (1, 2, 3, 33, 64):
        generator = torch.Generator().manual_seed(n)
        x, s = torch.randn(1, n, 5, generator=generator), torch.rand(1, n, generator=generator)
        ours, wanted = both(features=x, scores=s, budget=n)
        assert torch.equal(ours, wanted)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from idsel_core.selection.gpu_triton import _rounds
for floats, block, multiply in (("fp32", 1024, False), ("fp64", 64, True)):
    types = ["*" + floats, "*" + floats, "*fp64", "*i64", "*" + floats, "*fp64", "*i64", "i32", "i32"]
    signature = dict(zip(_rounds.arg_names, types + 4 * ["constexpr"], strict=True))
    constants = {"LEAST": 2.0**-18, "MULTIPLY": multiply, "RESTART": not multiply, "BLOCK": block}
    source = ASTSource(_rounds, signature, constants)
    assert len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"])
"""


@outside
def test_the_kernel_compiles_without_a_gpu(tmp_path):
    done = run("-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr


@outside
def test_triton_is_imported_only_when_it_is_used():
    code = "import sys, torch, idsel_core; idsel_core.id_select(torch.ones(3, 2), torch.rand(3), 2); "
    done = run(
        "-c", code + "assert 'idsel_core.selection.gpu_triton' not in sys.modules and 'triton' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
