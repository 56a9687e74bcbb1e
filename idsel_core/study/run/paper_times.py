"""The efficiency table of papers: times by phase, on random weights of full size, into the store of times."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from idsel_core.backbones import adapter_for
from idsel_core.hints import did_you_mean
from idsel_core.loading.random_models import build_random
from idsel_core.methods import get_method
from idsel_core.study.cost import read_config
from idsel_core.study.cost.models import tower_of
from idsel_core.study.devices import check_device, dtype_named
from idsel_core.study.paths import TIMES, project_path
from idsel_core.study.run.notebook_runner import load_parameters
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.times import Times
from idsel_core.study.timing.example_inputs import example_inputs
from idsel_core.study.timing.phases import time_methods
from idsel_core.study.timing.records import Timing

_KEYS: Final[Mapping[str, Any]] = {
    "time": [],
    "method": "idselection",
    "dtype": "float16",
    "device": "cuda",
    "text": 64,
    "batch": 1,
    "runs": 10,
}
_ENTRY: Final = ("model", "budgets", "image_size", "layers")


def is_timing(path: Path) -> bool:
    """Tell whether a table holds times, and not answers."""
    return "time" in load_parameters(path)


def read_timing(path: Path) -> dict[str, Any]:
    """Read a table of times and check it.

    Raises
    ------
    ValueError
        If a key, model, method or budget is not allowed.
    """
    table = load_parameters(path)
    for name in table:
        if name not in _KEYS:
            raise ValueError(
                f"{path}: unknown key {name!r}{did_you_mean(name, _KEYS, ';')} known are {', '.join(_KEYS)}"
            )
    table = {**_KEYS, **table}
    try:
        dtype_named(table["dtype"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for entry in table["time"]:
        if not isinstance(entry, dict) or not {"model", "budgets"} <= set(entry) <= set(_ENTRY):
            raise ValueError(
                f"{path}: each entry of time has model, budgets and if need be image_size, layers, not {entry!r}"
            )
        read_config(Path(entry["model"]))
        for budget in entry["budgets"]:
            get_method(table["method"], budget=budget)
    return table


def describe_timing(path: Path) -> str:
    """Say what a table of times would measure."""
    table = read_timing(path)
    lines = []
    dtype = dtype_named(table["dtype"])
    for entry in table["time"]:
        model = build_random(read_config(Path(entry["model"]))[0], dtype, "meta", layers=entry.get("layers"))
        size = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize / 2**30
        budgets = ", ".join(map(str, entry["budgets"]))
        lines.append(
            f"{entry['model']}: {budgets} visual tokens by {table['method']}, {size:.3g} GiB of random weights"
        )
    what = f"on {table['device']} in {table['dtype']}, no downloads; rows go to {TIMES}"
    return "\n".join([*lines, f"{len(lines)} models, one after the other, {what}."])


def run_timing(path: Path) -> None:
    """Measure a table of times and store it, a job a model.

    Raises
    ------
    ValueError
        As for `read_timing`, or if there is no such device.
    """
    table = read_timing(path)
    check_device(table["device"])
    times = Times(project_path(TIMES))
    for entry in table["time"]:
        started = time.perf_counter()
        rows = pd.DataFrame(_timings(entry, table)).assign(backbone=Path(entry["model"]).name)
        job = f"paper_{path.stem}_{Path(entry['model']).name}".replace(".", "_")
        parameters = {**entry, **{name: value for name, value in table.items() if name != "time"}}
        times.write(job, rows, provenance(parameters, [path], device=table["device"], started=started))
        print(f"{job}: {rows['device'].iloc[0]}, {len(rows)} rows in {times.root}", flush=True)


def _timings(entry: Mapping[str, Any], table: Mapping[str, Any]) -> list[Timing]:
    config, own = read_config(Path(entry["model"]))
    size = tuple(entry["image_size"]) if "image_size" in entry else own
    inputs = example_inputs(config, table["text"], size, table["batch"])
    whole = tower_of(config, size).visual
    methods = [None if budget == whole else get_method(table["method"], budget=budget) for budget in entry["budgets"]]
    backbone = adapter_for(
        build_random(config, dtype_named(table["dtype"]), table["device"], layers=entry.get("layers"))
    )
    inputs = {name: tensor.to(table["device"]) for name, tensor in inputs.items()}
    return time_methods(backbone, inputs, methods, runs=table["runs"], warmup=min(2, table["runs"]), new_tokens=8)
