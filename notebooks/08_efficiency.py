# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Efficiency: does the clock follow the tokens?
#
# Fewer visual tokens mean fewer FLOPs, but what is waited for is time. Here both are measured on the device at hand: an
# answer by phase (encode, select, prefill, decode), against the ideal of a prompt that was cut by hand, with the
# accuracy that the comparison found, and the selection of every method by itself. Full-size models are counted by their
# configurations, without weights. Times of a CPU say nothing about a GPU; `benchmarks/efficiency.py` measures there.
#
# All that is compared takes turns in one process, on one image of noise and a prompt of random words.

# %% tags=["parameters"]
curve = [384, 288, 192, 128, 64, 32, 16, 8]  # budgets of ID-Selection
budgets = [192, 128, 64, 32, 16, 8]  # budgets of all methods, among those of the comparison
final_budgets = [64, 32, 16]  # budgets that are meant as left at last, too, by methods inside the language model
methods = []  # names of methods, [] for all of the registry
runs = 5  # turns that are measured
ideal_budgets = [192, 64, 16]  # budgets that are compared with a prompt cut by hand
ideal_runs = 15  # turns of this comparison
text_tokens = 24  # tokens of the prompt that are not visual
new_tokens = 4  # tokens decoded after the first one
cases = ["144:16", "288:32", "576:64", "1152:128"]  # tokens:kept of the selections by themselves
case_runs = 7  # turns of these
models = {"llava-1.5-7b": [336, 336], "llava-next-7b": [672, 672]}  # configurations, height and width of an image
model_text = 64  # tokens of their prompts that are not visual
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results"  # folder of the result store

# %%
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))
started = time.perf_counter()

import pandas as pd
from IPython.display import Markdown
from tqdm.auto import tqdm

from idsel_core import IDSelection, get_method, list_methods
from idsel_core.methods import InLLM
from idsel_core.study.cost import read_config
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL
from idsel_core.study.report import efficiency
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times, selection_rows
from idsel_core.study.timing import phases as latency

figures.use_theme()

# %%
backbone, _ = open_backbone(MODEL)
config, size = read_config(MODEL)
inputs = latency.example_inputs(config, text_tokens, size)
swept = [get_method(name, budget=budget) for name in methods or list_methods() for budget in budgets]
swept += [IDSelection(budget) for budget in curve if IDSelection(budget) not in swept]
inside = [method for method in swept if isinstance(method, InLLM) and method.budget in final_budgets]
swept += [replace(method, budget_convention="final") for method in inside]
usable, missing = latency.runnable(backbone, inputs, swept)
Markdown("\n".join(f"- {name}: {why}" for name, why in missing.items()) or "All methods run on this backbone.")

# %% [markdown]
# ## Measure
#
# First all methods by phase, then whole answers against the ideal, then selections by themselves: on random tokens,
# with `benchmarks/peers.py`, as if all that a method reads of the model were at hand already.

# %%
with tqdm(total=runs + 1) as bar:
    timings = latency.time_methods(
        backbone,
        inputs,
        [None, *usable],
        runs=runs,
        warmup=1,
        new_tokens=new_tokens,
        progress=lambda done, total: bar.update(),
    )
for budget in ideal_budgets:
    timings += latency.time_ideal(backbone, inputs, IDSelection(budget), runs=ideal_runs, new_tokens=new_tokens)
rows = pd.DataFrame(timings).assign(backbone="embedded")

# %%
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "benchmarks/peers.py", "--cases", *cases, "--rounds", str(case_runs)]
    command += ["--methods", *(methods or list_methods()), "--width", "1024", "--out", f"{folder}/times.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 0, done.stderr
    alone = selection_rows(pd.read_parquet(f"{folder}/times.parquet"))
rows = pd.concat([rows, alone], ignore_index=True)
names = ("curve", "budgets", "final_budgets", "methods", "runs", "ideal_budgets", "ideal_runs", "text_tokens")
names += ("new_tokens", "cases", "case_runs", "models", "model_text", "missing")
parameters = {name: globals()[name] for name in names}
times = Times(results_dir)
times.write("08_efficiency", rows, provenance(parameters, [MODEL / "model.safetensors"], started=started))
rows = times.frame("08_efficiency")
Markdown(f"Measured on {latency.circumstances(timings[0])}.")

# %% [markdown]
# ## Time by phase
#
# What is left of the time when the language model reads fewer tokens: the tower pass, which no selection saves.

# %%
efficiency.phases_figure(rows)
# %%
efficiency.scaling_figure(rows)
# %%
Markdown(efficiency.efficiency_table(rows).to_markdown(index=False) + "\n\n" + efficiency.about_efficiency(rows))

# %% [markdown]
# ## Against the ideal
#
# The ideal is the same model on a prompt that was cut by hand: the same tower pass, then only the rows of the tokens
# that were chosen beforehand, without hooks and without a selection. What `prune` takes beyond it is selection and
# overhead.

# %%
ideal = efficiency.ideal_table(rows)
Markdown(ideal.round(3).to_markdown(index=False) + "\n\n" + efficiency.about_ideal(ideal))

# %% [markdown]
# ## Accuracy against measured time
#
# The share of full performance is that of the comparison (06), the time is measured here. Whatever is on the front is
# beaten by nothing in both.

# %%
compared = Results(results_dir).frame("06_comparison")
front = efficiency.accuracy_against_time(compared, rows, resamples)
efficiency.pareto_figure(front)
# %%
Markdown(efficiency.about_front(front))

# %% [markdown]
# ## The selection of every method by itself

# %%
efficiency.selection_figure(rows)
# %% [markdown]
# ## Models of full size, by their configurations
#
# The literature's formula counts visual tokens in the language model alone; a prompt has text, and an image a tower.

# %%
costs = efficiency.model_costs("data/configs", models, model_text, "idselection")
efficiency.models_figure(costs)
