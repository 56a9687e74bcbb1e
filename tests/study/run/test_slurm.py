"""Sweeps on a real Slurm with two pretended GPUs; `make test-slurm` runs these tests, `make test` does not."""

import os
import re
import signal
import subprocess
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from idsel_core.study.store.results import Results
from tests.support.kills import at_work, unlocked
from tests.support.small import build, command, environment, same, sweep, write_grid
from tests.support.start_slurm import missing, slurm

pytestmark = pytest.mark.slurm

GRID = {"method": ["full", "random"], "budget": [64], "seed": [0, 1]}
MORE = GRID | {"seed": [0, 1, 2, 3]}


@pytest.fixture(scope="module", autouse=True)
def packages():
    if missing():
        pytest.fail(missing())


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Run the larger grid without Slurm, to compare with."""
    project = build(tmp_path_factory.mktemp("local") / "project", MORE)
    done = sweep(project)
    assert done.returncode == 0, done.stderr
    return project


@pytest.fixture(scope="module")
def cluster():
    with slurm() as environ:
        yield environment() | environ


def profile(project: Path, **changes: object) -> tuple[str, str]:
    """Make a profile as workflow/profiles/slurm, with a GPU for each job and less waiting."""
    settings = yaml.safe_load((project / "workflow/profiles/slurm/config.yaml").read_text())
    for resources in settings["set-resources"].values():
        resources["gpu"] = 1
    settings |= {"slurm-init-seconds-before-status-checks": 2, "seconds-between-status-checks": 2, **changes}
    folder = project / "workflow/profiles/test"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return "--profile", "workflow/profiles/test"


def ask(cluster: dict[str, str], *question: str) -> str:
    return subprocess.run(question, env=cluster, capture_output=True, text=True, check=True, timeout=60).stdout


def asked(cluster: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return what Slurm knows of each job that it remembers."""
    told = ask(cluster, "scontrol", "--all", "--oneliner", "show", "job")
    jobs = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in told.splitlines()]
    return {job["JobId"]: job for job in jobs if "JobId" in job}


def wait_for(condition, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def running(cluster: dict[str, str]) -> list[str]:
    return ask(cluster, "squeue", "--noheader", "--states=RUNNING", "--format=%A").split()


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """Run the smaller grid on Slurm, and cancel a job in mid-way."""
    project = build(tmp_path_factory.mktemp("cluster") / "project", GRID)
    run = subprocess.Popen(
        command(*profile(project)),
        cwd=project,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(lambda: len(running(cluster)) == 2 or run.poll() is not None)
        cancelled = running(cluster)[-1]
        ask(cluster, "scancel", cancelled)
        said, _ = run.communicate(timeout=900)
    finally:
        run.kill()
    assert run.returncode == 0, said
    return project, cancelled


def test_the_store_equals_that_of_a_local_run(finished, local):
    project, _ = finished
    jobs = Results(project / "results/sweeps/grid").jobs()
    assert len(jobs) == 3
    mine, theirs = Results(project / "results/sweeps/grid"), Results(local / "results/sweeps/grid")
    assert [mine.origin(job)["results"][f"rows/{job}"]["sha256"] for job in jobs] == [
        theirs.origin(job)["results"][f"rows/{job}"]["sha256"] for job in jobs
    ]


def test_jobs_run_side_by_side_each_with_a_gpu_of_its_own(finished):
    project, _ = finished
    store = Results(project / "results/sweeps/grid")
    notes = [store.provenance(job) for job in store.jobs()]
    assert {note["allocation"]["CUDA_VISIBLE_DEVICES"] for note in notes} == {"0", "1"}
    spans = []
    for note in notes:
        end = datetime.fromisoformat(note["created"])
        spans.append((end - timedelta(seconds=note["seconds"]), end, note["allocation"]["CUDA_VISIBLE_DEVICES"]))
    side_by_side = [(a[2], b[2]) for a in spans for b in spans if a is not b and a[0] < b[1] and b[0] < a[1]]
    assert side_by_side
    assert all(one != other for one, other in side_by_side)


def test_each_rule_asks_for_its_time_and_memory_and_for_more_when_tried_again(cluster, finished):
    _, cancelled = finished
    jobs = asked(cluster)
    assert {job["TresPerJob"] for job in jobs.values()} == {"gres:gpu:1"}
    limits = [(job["TimeLimit"], re.search(r"mem=(\w+)", job["TRES"])[1]) for job in jobs.values()]
    assert sorted(limits) == [("01:00:00", "16000M"), *[("04:00:00", "16000M")] * 3, ("08:00:00", "32000M")]
    assert jobs[cancelled]["JobState"] == "CANCELLED"
    assert [job["JobState"] for job in jobs.values()].count("COMPLETED") == 4


def test_a_killed_run_goes_on_and_cancels_what_it_left_in_the_queue(cluster, finished, local):
    project, _ = finished
    write_grid(project, **MORE)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command(*profile(project)), cwd=project, env=cluster, start_new_session=True, **quiet)
    wait_for(lambda: len(running(cluster)) == 2 or run.poll() is not None)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    left = running(cluster)
    assert left
    done = sweep(project, *profile(project), environ=cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Cancelling {len(left)} Slurm jobs that a killed run of this sweep left in the queue." in done.stdout
    assert {asked(cluster)[job]["JobState"] for job in left} == {"CANCELLED"}
    assert same(project, local)
    assert unlocked(project) and not at_work(project)


def test_a_node_without_the_gpu_that_a_grid_asks_for_says_so(cluster, tmp_path):
    project = build(tmp_path / "project", {"method": "full", "device": "cuda"})
    done = sweep(project, *profile(project), "--", "--retries", "0", environ=cluster)
    assert done.returncode != 0
    assert "What the jobs printed is in .snakemake/slurm_logs/" in done.stderr
    logs = "".join(path.read_text() for path in (project / ".snakemake/slurm_logs").rglob("*.log"))
    assert "device 'cuda' was asked for, but torch sees no GPU on this machine; use device: cpu" in logs


def test_with_an_accounting_database_sacct_tells_how_jobs_went(tmp_path, local):
    if missing(accounting=True):
        pytest.skip(missing(accounting=True))
    project = build(tmp_path / "project", {"method": "full", "budget": [64]})
    with slurm(accounting=True) as environ:
        cluster = environment() | environ
        done = sweep(project, *profile(project, **{"slurm-status-command": "sacct"}), environ=cluster)
        assert done.returncode == 0, done.stdout + done.stderr
        states = ask(cluster, "sacct", "--allocations", "--noheader", "--format=State").split()
    assert states == ["COMPLETED"] * 2
    (job,) = Results(project / "results/sweeps/grid").jobs()
    assert (
        Results(project / "results/sweeps/grid").origin(job)["results"][f"rows/{job}"]["sha256"]
        == Results(local / "results/sweeps/grid").origin(job)["results"][f"rows/{job}"]["sha256"]
    )


def test_a_cluster_leaves_nothing_behind():
    with slurm() as environ:
        folder = Path(environ["SLURM_CONF"]).parent
        assert ask(environment() | environ, "sinfo", "--noheader", "--format=%T %G") == "idle gpu:2\n"
        ask(environment() | environ, "sbatch", "--mem=10", "--output=/dev/null", "--wrap=sleep 600")
        wait_for(lambda: running(environment() | environ))
    assert not folder.exists()
    mine = [path for path in Path("/proc").glob("[0-9]*/environ") if str(folder).encode() in readable(path)]
    assert mine == []


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
