"""Time answers with fewer visual tokens, by phase and whole: python benchmarks/efficiency.py.

By default the embedded backbone on a CPU; with --device cuda and --model, a model of full size with random weights:

    python benchmarks/efficiency.py
    python benchmarks/efficiency.py --device cuda --model llava-1.5-7b --dtype bfloat16 --budgets 192 64 16

All tokens, each budget, and for each budget a prompt that was cut by hand (the ideal) take turns. Medians and quartiles
are printed and written to results/times/JOB.parquet.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks._gpu_answers import time_answers
from idsel_core import get_method
from idsel_core.backbones import adapter_for
from idsel_core.loading.random_models import architecture_file, build_random, list_architectures
from idsel_core.study.cost import full_budget, read_config
from idsel_core.study.cost.shapes import SIZE_HELP, size_given
from idsel_core.study.devices import check_device
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL, TIMES
from idsel_core.study.report import efficiency_sentences, efficiency_tables
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.times import Times
from idsel_core.study.timing.example_inputs import example_inputs


def load(name: str, dtype: str, device: str, attention: str | None) -> tuple[Any, Any, Any]:
    """Return the backbone, its configuration and the size of its images, pixels or None."""
    folder = Path(name)
    if folder.is_dir():
        backbone, _ = open_backbone(folder, device)
        return backbone, *read_config(folder)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{dtype!r} is no torch dtype; for example float16, bfloat16, float32")
    check_device(device)
    model = build_random(name, kind, device, attention=attention)
    return adapter_for(model), *read_config(Path(name))


def main() -> int:
    """Measure, print and store; return 0, or 2 if the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(list_architectures())
    parser.add_argument("--model", default=str(MODEL), help=f"model folder (default: %(default)s), or one of {names}")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="torch dtype of random weights (default: %(default)s)")
    parser.add_argument(
        "--attention", help="attention implementation of a model with random weights (default: transformers' choice)"
    )
    parser.add_argument("--method", default="idselection", help="method that selects (default: %(default)s)")
    parser.add_argument(
        "--budgets", type=int, nargs="+", default=[192, 64, 16], metavar="K", help="visual tokens (default: 192 64 16)"
    )
    parser.add_argument("--image-size", type=int, nargs="+", metavar="PIXELS", help=SIZE_HELP)
    parser.add_argument("--text", type=int, default=64, help="text tokens of a prompt (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="prompts at a time (default: %(default)s)")
    parser.add_argument("--new", type=int, default=8, help="tokens decoded after the first one (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="turns that are measured (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="turns before them that are not (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=TIMES, help="store of times (default: %(default)s)")
    parser.add_argument("--job", help="name in the store (default: efficiency, the model's and the device's)")
    given = parser.parse_args()
    started = time.perf_counter()
    options = {"runs": given.runs, "warmup": given.warmup, "new_tokens": given.new}
    try:
        backbone, config, size = load(given.model, given.dtype, given.device, given.attention)
        size = size_given(given.image_size) or size
        whole = full_budget(config, size)
        inputs = example_inputs(config, given.text, size, given.batch)
        inputs = {name: values.to(given.device) for name, values in inputs.items()}
        for name in {"pixel_values", "input_features"} & inputs.keys():
            inputs[name] = inputs[name].to(backbone.model.dtype)
        methods = [get_method(given.method, budget=budget) for budget in given.budgets if budget < whole]
        timings, missing = time_answers(backbone, inputs, methods, options)
        name = Path(given.model).name
        rows = pd.DataFrame(timings).assign(backbone="embedded" if Path(given.model) == MODEL else name)
        job = given.job or f"efficiency-{name.replace('.', '_')}-{torch.device(given.device).type}"
        parameters = {name: value for name, value in vars(given).items() if not isinstance(value, Path)}
        files = sorted(Path(given.model).glob("*.safetensors")) or [architecture_file(given.model)]
        note = provenance({**parameters, "missing": missing}, files, device=timings[0].device, started=started)
        path = Times(given.results).write(job, rows, note)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    said = efficiency_tables.summary(rows, given.method)
    print(f"\n{given.model}: {whole} visual and {given.text} text tokens\n\n{said}\n")
    ideal = efficiency_tables.ideal_table(rows)
    if len(ideal):
        print(f"{ideal.round(3).to_markdown(index=False)}\n\n{efficiency_sentences.about_ideal(ideal)}")
    for what, why in missing.items():
        print(f"left out: {what}: {why}")
    known = rows.dropna(subset="peak_bytes")
    if len(known):
        peaks = known.groupby(["method", "kept_tokens", "phase"])["peak_bytes"].max() / 2**30
        print("\nmost memory of tensors, GiB\n" + peaks.unstack().astype(float).round(2).to_string())
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
