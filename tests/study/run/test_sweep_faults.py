"""Sweeps that are killed, or whose disk fails: the next one finishes, and no row is lost or changed."""

import shutil
import time

import pytest

from tests.support.kills import moments, run_and_kill, unlocked
from tests.support.small import disk
from tests.support.sweeps import same, stamps, sweep, waiting


@pytest.mark.slow
def test_killed_at_random_moments_a_sweep_goes_on_and_loses_nothing(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "killed")
    kills = [run_and_kill(project, *moment, tmp_path / "log") for moment in moments(7, 3, seed=1, longest=4)]
    assert kills[0].stored < 7
    done = sweep(project)
    assert done.returncode == 0, done.stderr
    assert same(project, finished) and unlocked(project)


@pytest.mark.slow
def test_a_job_killed_while_it_writes_is_tried_again(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "dying")
    (project / "die").touch()
    done = sweep(project)
    assert done.returncode == 0, done.stderr
    assert "07_sweep.ipynb: Kernel died (where memory ran out, or something killed it)" in done.stderr
    assert same(project, finished)


@pytest.mark.slow
def test_where_only_the_script_is_killed_snakemake_keeps_others_out(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "headless")
    with waiting(project) as run:
        run.kill()
        run.wait()
        assert sweep(project).returncode == 2
        (project / "wait").unlink()
        deadline = time.monotonic() + 600
        while not unlocked(project):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    before = stamps(project)
    assert len(before) == 7
    assert sweep(project).returncode == 0
    assert stamps(project) == before
    assert same(project, finished)


@pytest.mark.slow
def test_after_a_full_disk_and_a_read_only_store_a_sweep_goes_on(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "full")
    with disk(project / "results", "size=60k") as remount:
        done = sweep(project, "--", "--retries", "0")
        assert done.returncode != 0
        assert "No space left on device" in done.stderr
        assert len(stamps(project)) < 7
        remount("size=8m,ro")
        done = sweep(project)
        assert done.returncode == 2
        assert "results/sweeps/grid: rows could not be stored: the folder cannot be written to" in done.stderr
        remount("rw")
        done = sweep(project)
        assert done.returncode == 0, done.stderr
        assert same(project, finished)
