"""Sweeps: a grid in one YAML file stands for many jobs, each one run of one notebook with one parquet file."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import torch

from idsel_core.families import INPUT_KINDS
from idsel_core.hints import did_you_mean
from idsel_core.methods import EVS, METHODS, InLLM, Method, VidCom2, drops_inside
from idsel_core.methods._shared.by_frames import FrameByFrame
from idsel_core.methods._shared.by_importance import Scored
from idsel_core.quantisation import Quantisation, check_packages
from idsel_core.study.backbone_folders import check_evaluable, check_reads, is_hub_id
from idsel_core.study.dataset import BLIND, FULL, Split, read_data, read_split
from idsel_core.study.devices import check_device
from idsel_core.study.knobs import build_method, knob_types
from idsel_core.study.paths import CACHE, DATA, MODEL, ROWS, SWEEPS
from idsel_core.study.run.notebook_runner import load_parameters
from idsel_core.study.sources.scenes import has_scenes
from idsel_core.study.sources.split import PLURAL
from idsel_core.study.store.provenance import sha256
from idsel_core.study.store.results import Results

NOTEBOOK: Final = Path("notebooks/07_sweep.ipynb")

_FIXED: Final = {"questions": 0, "device": "cpu", "dtype": "auto", "batch": 50, "quantisation": "", "device_map": ""}
_LOADED_WITH: Final = ("quantisation", "device_map")
"""Keys that are left out of jobs where they are empty, so that the names of jobs stay what they were without them."""
_AXES: Final = {
    "backbone": [str(MODEL)],
    "data": [str(DATA)],
    "split": ["validation"],
    "method": [],
    "budget": [64],
}
_FORMER: Final = {
    "part": "split",
    "task": "data",
    "model": "backbone",
    "models": "backbone",
    "backbones": "backbone",
    "methods": "method",
    "limit": "questions",
}
"""Keys that grids had before or that people try, which no comparison of letters finds."""

_MOST_JOBS: Final = 100_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._,+-]*")
"""Names that become folders below `results/sweeps`, and words of a shell command."""

# Of the embedded backbone on one CPU core; used until a job has been measured. A job's own clock starts late.
_START, _SECONDS, _ENCODING_SECONDS, _BYTES, _JOB_BYTES = 8.0, 0.02, 0.2, 40, 60_000


def encodings(backbone: str | Path, data: str | Path = DATA) -> Path:
    """Return the folder of a backbone's encodings of a data set."""
    if (Path(backbone), Path(data)) == (MODEL, DATA):
        return CACHE
    key = hashlib.sha256(f"{backbone} {data}".encode()).hexdigest()[:8]
    return CACHE / f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(backbone).name)}-{key}"


def are_stored(backbone: str, data: str) -> bool:
    """Tell whether encodings of a data set by a backbone are made once, before the jobs, and stored."""
    if is_hub_id(backbone) or not has_scenes(Path(data)):
        return False
    return check_evaluable(backbone).get("model_type") == "llava"


@functools.cache
def asked_hash(data: str, split: str, questions: int) -> str:
    """Return a hash of the questions that a job asks and of the images, or clips, that they show; "" of tasks.

    The times of files do not tell: a picture that is a file of its own is not the table that names it, and one that
    takes the place of another may be older than the rows.
    """
    if not Path(data).exists():
        return ""
    asked = read_data(data, split, questions, check_images=False)
    return hashlib.sha256(f"{asked.questions.to_json()} {asked.images_hash}".encode()).hexdigest()


@functools.cache
def settings_hash(backbone: str) -> str:
    """Return a hash of the settings, words and chat template in a folder of a model; "" of a hub id."""
    whole = hashlib.sha256()
    if is_hub_id(backbone):
        return ""
    for path in sorted([*Path(backbone).glob("*.json"), *Path(backbone).glob("*.jinja")]):
        whole.update(f"{path.name} {sha256(path)} ".encode())
    return whole.hexdigest()


@dataclass(frozen=True)
class Sweep:
    """The jobs of a grid.

    Attributes
    ----------
    name : str
        Name of the grid's file; its rows are in ``results/sweeps/<name>``, its executed notebooks in ``logs/<name>``.
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
        """The store that the rows go to."""
        return Results(SWEEPS / self.name)

    def check(self, here: bool = True) -> None:
        """Check that all jobs can run, without running any.

        Parameters
        ----------
        here : bool
            Whether they run on this machine.

        Raises
        ------
        FileNotFoundError, ImportError, ValueError
            If weights, a split, the GPU asked for or a package for quantised models are missing, or a method cannot run
            with a model, or a model cannot be asked about a data set.
        """
        if here:
            check_device(self.device)
            for job in self.jobs.values():
                check_packages(job.get("quantisation") or None, job.get("device_map") or None)
        configs = {
            backbone: check_evaluable(backbone) for backbone in sorted({j["backbone"] for j in self.jobs.values()})
        }
        for job in self.jobs.values():
            for method in _methods(job):
                _check_runs(method, job["backbone"], configs[job["backbone"]])
        for backbone, source in sorted({(job["backbone"], _source(job)) for job in self.jobs.values()}):
            check_reads(backbone, self._splits[source])

    def estimate(self, cores: int = 1) -> str:
        """Say how many jobs there are, how long those left may take and how much disk they need.

        Parameters
        ----------
        cores : int
            How many jobs run side by side.
        """
        done = [job for job in self.store.jobs() if job in self.jobs]
        left = [parameters for name, parameters in self.jobs.items() if name not in done]
        finished = _finished()
        seconds, answers, size, like, guessed = 0.0, 0, 0.0, set(), 0
        for job in left:
            asked = len(self._splits[_source(job)].questions) * len(job["budgets"] or [0])
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
        basis += self._above()
        free = shutil.disk_usage(Path.cwd()).free
        minutes = math.ceil(seconds / 60 / min(cores, len(left) or 1))
        duration = f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
        return (
            f"{len(self.jobs)} jobs, {len(done)} of them stored, {len(left)} to run: {answers} answers, "
            f"about {duration} on {cores}, {size / 2**20:.0f} MiB of disk "
            f"({free / 2**20:.0f} MiB free)" + (f"; {', '.join(basis)}" if basis else "")
        )

    @functools.cached_property
    def _splits(self) -> Mapping[tuple[str, str, int], Split]:
        """What is asked, by what `read_data` is given; large data sets take minutes to read, so once."""
        return {source: read_data(*source) for source in sorted({_source(job) for job in self.jobs.values()})}

    def _above(self) -> list[str]:
        """Say which budgets are above the tokens of an image, as far as the configurations of backbones tell."""
        budgets: dict[str, set[int]] = {}
        for job in self.jobs.values():
            budgets.setdefault(job["backbone"], set()).update(b for b in job["budgets"] if isinstance(b, int))
        said = []
        for backbone, asked in budgets.items():
            config = Path(backbone) / "config.json"
            whole = json.loads(config.read_text()).get("image_seq_length") if config.is_file() else None
            above = sorted(budget for budget in asked if whole is not None and budget > whole)
            if above:
                numbers = ", ".join(map(str, above))
                said.append(f"budgets above the {whole} tokens of an image of {backbone} keep all: {numbers}")
        return said

    @staticmethod
    def _wanted(jobs: list[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
        wanted = sorted({(job["backbone"], job["data"], job["split"]) for job in jobs})
        return [
            (b, d, p) for b, d, p in wanted if not (encodings(b, d) / f"{p}.safetensors").exists() and are_stored(b, d)
        ]


def _source(job: Mapping[str, Any]) -> tuple[str, str, int]:
    """Return what `read_data` is given for a job."""
    return job["data"], job["split"], job["questions"]


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
    for path in sorted([*SWEEPS.glob("*/_provenance/*.json"), *ROWS.glob("_provenance/*.json")]):
        store = path.parents[1]
        try:
            note = json.loads(path.read_text())
            asked = {"backbone": str(MODEL), "device": note["device"], "method": "", **note["parameters"]}
            executed = Path("logs", *store.relative_to(SWEEPS).parts if SWEEPS in store.parents else ())
            files = [path, store / f"{path.stem}.parquet", executed / f"{path.stem}.ipynb"]
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
        A YAML file: `backbone` (hub ids or folders), `data` (folders, tables or lmms:TASK), `split`, `method` and any
        knobs of these (`budget`, `gamma`, `importance`, `seed`, ...), each a value or a list of values; and
        `questions`, `device`, `dtype` and `batch`, one value each. A knob is
        given to those methods that have it. A list of budgets inside the list is one job, as is a list inside the list
        for a knob that is a tuple.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no grid, or a key, method or knob is unknown or has a value that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.yaml"))
        raise FileNotFoundError(f"no grid {path}; in its folder are: {', '.join(there) or 'none'}")
    if not _NAME.fullmatch(path.stem):
        raise ValueError(
            f"the grid's name {path.stem!r} becomes a folder of results: it may hold letters, digits, spaces and ._,+- "
            "behind a first letter or digit"
        )
    grid = load_parameters(path)
    _check_keys(path, grid)
    fixed = {name: grid.pop(name, default) for name, default in _FIXED.items()}
    for name, value in fixed.items():
        if isinstance(value, bool) or type(value) is not type(_FIXED[name]):
            raise ValueError(f"{path}: {name} must be one {type(_FIXED[name]).__name__}, not {value!r}")
    axes = {name: value if isinstance(value, list) else [value] for name, value in (_AXES | grid).items()}
    _check_axes(path, axes)
    if fixed["quantisation"] not in ("", *get_args(Quantisation)):
        allowed = ", ".join(get_args(Quantisation))
        raise ValueError(f"{path}: quantisation must be one of {allowed}, not {fixed['quantisation']!r}")
    fixed = {name: value for name, value in fixed.items() if value or name not in _LOADED_WITH}
    jobs = {}
    whole = ("backbone", "data", "split", "method")
    for backbone, data, split, method in itertools.product(*(axes[name] for name in whole)):
        known = _knobs_of(method)
        own = {name: values for name, values in axes.items() if name not in _AXES and name in known}
        for values in itertools.product(*own.values()):
            settings = dict(zip(own, values, strict=True))
            for budget in axes["budget"] if known else [[]]:
                budgets = budget if isinstance(budget, list) else [budget]
                parameters = {"backbone": backbone, "data": data, "split": split, "method": method}
                parameters |= {"budgets": budgets, "knobs": settings, **fixed}
                try:
                    _methods(parameters)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
                key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:10]
                name = f"{method}-{key}"
                jobs[name] = parameters | {"job": name, "results_dir": str(SWEEPS / path.stem)}
    return Sweep(path.stem, fixed["device"], jobs)


def _knobs_of(method: str) -> set[str]:
    return set() if method in (FULL, BLIND) else set(knob_types(method))


def _check_keys(path: Path, grid: Mapping[str, Any]) -> None:
    """Refuse keys that are neither the grid's own nor a knob of any method."""
    known = [*_FIXED, *_AXES, *sorted({knob for method in METHODS for knob in knob_types(method)} - set(_AXES))]
    for name in grid:
        if name not in known:
            hint = did_you_mean(_FORMER.get(name, name), known, ".")
            raise ValueError(f"{path}: unknown key {name!r}{hint} Known are {', '.join(known)}")


def _check_axes(path: Path, axes: Mapping[str, list[Any]]) -> None:
    """Refuse axes that are no lists of plain values, methods that are unknown, and knobs that no method has."""
    for name, values in axes.items():
        if not values and name != "method":
            raise ValueError(f"{path}: {name} is an empty list, so there is no job")
        nested = [member for value in values for member in (value if isinstance(value, list) else [value])]
        if any(isinstance(member, dict | list) for member in nested):
            raise ValueError(f"{path}: {name} must be a value or a list of values, not {_shortened(values)}")
        if name == "budget" and [] in values:
            raise ValueError(f"{path}: budget holds an empty list, so one job would ask nothing")
        if name in ("backbone", "data", "split", "method") and not all(isinstance(value, str) for value in values):
            raise ValueError(f"{path}: {name} must be a name or a list of names, not {_shortened(values)}")
    for split in axes["split"]:
        if not _NAME.fullmatch(split):
            raise ValueError(f"{path}: split {split!r} is no name; letters, digits, spaces and ._,+- are allowed")
    methods = axes["method"]
    if not methods:
        raise ValueError(f"{path} names no method; known are {[FULL, BLIND, *METHODS]}")
    knobs = [_knobs_of(method) for method in methods]
    idle = sorted(set(axes) - set(_AXES) - set().union(*knobs))
    if idle:
        raise ValueError(f"{path}: no method of {methods} has the knobs {idle}")
    jobs = sum(
        math.prod(len(values) for name, values in axes.items() if name not in _AXES and name in own)
        * (len(axes["budget"]) if own else 1)
        for own in knobs
    ) * len(axes["backbone"]) * len(axes["data"]) * len(axes["split"])  # fmt: skip
    if jobs > _MOST_JOBS:
        raise ValueError(f"{path} stands for {jobs} jobs, more than {_MOST_JOBS}; split it into several grids")


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _methods(job: Mapping[str, Any]) -> list[Method]:
    """Return the methods of a job, one a budget; none for all tokens and for no image."""
    if job["method"] in (FULL, BLIND):
        return []
    return [build_method(job["method"], {"budget": budget, **job["knobs"]}) for budget in job["budgets"]]


def _check_runs(method: Method, backbone: str, config: Mapping[str, Any]) -> None:
    """Refuse a method that cannot run with a model, as far as its configuration tells."""
    kind = INPUT_KINDS[config["model_type"]]
    if isinstance(method, EVS | VidCom2 | FrameByFrame):
        raise ValueError(f"{method.name} compares frames of a video, and the data set holds {PLURAL[kind]}")
    if method.acts_on_pixels and kind == "audio":
        raise ValueError(f"{method.name} makes images smaller, and {backbone} takes {PLURAL[kind]}")
    text = config.get("text_config") or {}
    # LLaVA's configuration leaves out what is as in Llama's.
    layers = text.get("num_hidden_layers", 32)
    if isinstance(method, Scored) and method.instruction_layer >= layers:
        raise ValueError(
            f"{method.name} with instruction_layer {method.instruction_layer}: the language model of {backbone} has "
            f"{layers} layers, from 0 to {layers - 1}"
        )
    if drops_inside(method):
        try:
            method.drop_layers(layers)
            # Others choose before the language model as well, and how many enter is theirs to say.
            if type(method).select is InLLM.select and "image_seq_length" in config:
                whole = torch.tensor([config["image_seq_length"]])
                method.counts(whole, whole, layers)
        except ValueError as error:
            raise ValueError(f"{method.name} with {backbone}: {error}") from error
