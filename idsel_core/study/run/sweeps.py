"""Sweeps: a grid in one YAML file stands for many jobs, each one run of one notebook with one parquet file."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from idsel_core.methods import METHODS, get_method
from idsel_core.study.dataset import BLIND, FULL, read_split
from idsel_core.study.devices import check_device
from idsel_core.study.paths import CACHE, DATA, MODEL
from idsel_core.study.run.notebook_runner import load_parameters
from idsel_core.study.store.results import Results

NOTEBOOK: Final = Path("notebooks/07_sweep.ipynb")

_FIXED: Final = {"questions": 0, "device": "cpu", "data": str(DATA)}
_AXES: Final = {"backbone": [str(MODEL)], "split": ["validation"], "method": [], "budget": [64]}

# Of the embedded backbone on one CPU core; used until a job has been measured. A job's own clock starts late.
_START, _SECONDS, _ENCODING_SECONDS, _BYTES, _JOB_BYTES = 8.0, 0.02, 0.2, 40, 60_000


def encodings(backbone: str | Path, data: str | Path = DATA) -> Path:
    """Return the folder of a backbone's encodings of a data set."""
    if (Path(backbone), Path(data)) == (MODEL, DATA):
        return CACHE
    key = hashlib.sha256(f"{backbone} {data}".encode()).hexdigest()[:8]
    return CACHE / f"{Path(backbone).name}-{key}"


@dataclass(frozen=True)
class Sweep:
    """The jobs of a grid.

    Attributes
    ----------
    name : str
        Name of the grid's file; its rows are in ``results/<name>``, its executed notebooks in ``logs/<name>``.
    device : str
        As torch names it.
    jobs : Mapping[str, Mapping[str, Any]]
        The notebook's parameters of each job. A job's name depends on these alone, so that a larger grid of the same
        name keeps what is done.
    """

    name: str
    device: str
    jobs: Mapping[str, Mapping[str, Any]]

    @property
    def store(self) -> Results:
        """Where the rows go."""
        return Results(Path("results") / self.name)

    def check(self, here: bool = True) -> None:
        """Check that all jobs could start.

        Parameters
        ----------
        here : bool
            Whether they run on this machine.

        Raises
        ------
        FileNotFoundError, ValueError
            If weights, a split or the GPU asked for are missing.
        """
        if here:
            check_device(self.device)
        for backbone in {job["backbone"] for job in self.jobs.values()}:
            if not any(Path(backbone).glob("*.safetensors")):
                raise FileNotFoundError(f"{backbone} holds no weights (*.safetensors)")
        for split, data, questions in {(job["split"], job["data"], job["questions"]) for job in self.jobs.values()}:
            read_split(split, Path(data), questions)

    def estimate(self, cores: int = 1) -> str:
        """Say how many jobs there are, how long those left may take and how much disk they need.

        Parameters
        ----------
        cores : int
            How many jobs run side by side.
        """
        done = [job for job in self.store.jobs() if job in self.jobs]
        left = [parameters for name, parameters in self.jobs.items() if name not in done]
        splits = {
            (job["split"], job["data"], job["questions"]): read_split(job["split"], Path(job["data"]), job["questions"])
            for job in left
        }
        finished = _finished()
        seconds, answers, size, like, guessed = 0.0, 0, 0.0, set(), 0
        for job in left:
            asked = len(splits[job["split"], job["data"], job["questions"]].questions) * len(job["budgets"] or [0])
            near = _nearest(finished, job)
            like |= set(near)
            guessed += not near
            answers += asked
            measured = sum(one.answers for one in near)
            seconds += _START + asked * (sum(one.seconds for one in near) / measured if near else _SECONDS)
            size += _JOB_BYTES + asked * (sum(one.size for one in near) / measured if near else _BYTES)
        wanted = self._wanted(left)
        images = sum(len(read_split(split, Path(data)).images) for _, data, split in wanted)
        seconds += _START * len(wanted) + _ENCODING_SECONDS * images
        size += sum(map(_encoding_bytes, wanted))
        basis = [f"as measured in {len(like)} finished jobs"] if like else []
        basis += [f"a guess for {guessed} jobs, as none with their backbone and device has finished"] if guessed else []
        basis += [f"a guess for encoding {images} images"] if images else []
        free = shutil.disk_usage(Path.cwd()).free
        minutes = math.ceil(seconds / 60 / min(cores, len(left) or 1))
        return (
            f"{len(self.jobs)} jobs, {len(done)} of them stored, {len(left)} to run: {answers} answers, "
            f"about {minutes} min on {cores}, {size / 2**20:.0f} MiB of disk "
            f"({free / 2**20:.0f} MiB free)" + (f"; {', '.join(basis)}" if basis else "")
        )

    @staticmethod
    def _wanted(jobs: list[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
        wanted = sorted({(job["backbone"], job["data"], job["split"]) for job in jobs})
        return [(b, d, p) for b, d, p in wanted if not (encodings(b, d) / f"{p}.safetensors").exists()]


@dataclass(frozen=True)
class _Finished:
    """What a finished job took: seconds, and bytes on disk with its executed notebook."""

    backbone: str
    device: str
    method: str
    answers: int
    seconds: float
    size: float


def _finished() -> list[_Finished]:
    """Look up what the jobs of all sweeps here took, and those of `make figures`, which run the embedded backbone."""
    found = []
    for path in sorted([*Path("results").glob("*/*.json"), *Path("results").glob("*.json")]):
        try:
            note = json.loads(path.read_text())
            asked = {"backbone": str(MODEL), "device": note["device"], "method": "", **note["parameters"]}
            files = [path, path.with_suffix(".parquet"), Path("logs", *path.parts[1:]).with_suffix(".ipynb")]
            size = sum(file.stat().st_size for file in files if file.exists())
            job = _Finished(asked["backbone"], asked["device"], asked["method"], note["rows"], note["seconds"], size)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found += [job] if job.answers and job.seconds else []
    return found


def _nearest(finished: list[_Finished], job: Mapping[str, Any]) -> list[_Finished]:
    """Choose those of the same backbone and device, and of the same method if there are any."""
    alike = [one for one in finished if (one.backbone, one.device) == (job["backbone"], job["device"])]
    return [one for one in alike if one.method == job["method"]] or alike


def _encoding_bytes(wanted: tuple[str, str, str]) -> int:
    backbone, data, split = wanted
    tower = json.loads((Path(backbone) / "config.json").read_text()).get("vision_config", {})
    tokens = (tower.get("image_size", 336) // tower.get("patch_size", 14)) ** 2
    return len(read_split(split, Path(data)).images) * tokens * int(tower.get("hidden_size", 1024)) * 4


def read_sweep(path: str | Path) -> Sweep:
    """Read a grid and expand it.

    Parameters
    ----------
    path : str or Path
        A YAML file: `backbone` (folders), `split`, `method` and any knobs of these (`budget`, `gamma`, `importance`,
        `seed`, ...), each a value or a list of values; and `questions`, `device` and `data`, one value each. A knob is
        given to those methods that have it. A list of budgets inside the list is one job.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no grid, or a method or knob is unknown or has a value that is not allowed.
    """
    grid = load_parameters(path)
    fixed = {name: grid.pop(name, default) for name, default in _FIXED.items()}
    axes = {name: value if isinstance(value, list) else [value] for name, value in (_AXES | grid).items()}
    if not axes["method"]:
        raise ValueError(f"{path} names no method; known are {[FULL, BLIND, *METHODS]}")
    knobs = {name: axes[name] for name in axes if name not in _AXES}
    idle = set(knobs)
    jobs = {}
    for backbone, split, method in itertools.product(axes["backbone"], axes["split"], axes["method"]):
        known = set() if method in (FULL, BLIND) else {field.name for field in fields(get_class(method))}
        idle -= known
        own = {name: values for name, values in knobs.items() if name in known}
        for values in itertools.product(*own.values()):
            settings = dict(zip(own, values, strict=True))
            for budget in axes["budget"] if known else [[]]:
                budgets = budget if isinstance(budget, list) else [budget]
                _check(path, method, budgets, settings)
                parameters = {"backbone": backbone, "split": split, "method": method, "budgets": budgets}
                parameters |= {"knobs": settings, **fixed}
                key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:10]
                name = f"{method}-{key}"
                jobs[name] = parameters | {"job": name, "results_dir": f"results/{Path(path).stem}"}
    if idle:
        raise ValueError(f"{path}: no method of {axes['method']} has the knobs {sorted(idle)}")
    return Sweep(Path(path).stem, fixed["device"], jobs)


def get_class(method: str) -> type[Any]:
    """Return the class of a method, or refuse an unknown name as `get_method` does."""
    return METHODS[method] if method in METHODS else type(get_method(method))


def _check(path: str | Path, method: str, budgets: list[Any], settings: Mapping[str, Any]) -> None:
    for budget in budgets:
        try:
            get_method(method, budget=budget, **settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {method} with budget {budget!r} and {dict(settings)}: {error}") from error
