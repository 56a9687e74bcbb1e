# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweep: one job of a grid
#
# One backbone, one split, one method with its knobs, at one or several budgets. `make sweep` runs this notebook once
# for each combination of a grid such as `config/grids/example.yaml`.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "validation"  # split of the data set
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
quantisation = ""  # of the language model by bitsandbytes, "int8" or "int4"; "" for none
device_map = ""  # "auto" spreads the model over all GPUs; "" leaves it on device
batch = 50  # questions at a time
method = "idselection"  # name of the method; "full" for all tokens, "no-image" for none
budgets = [64]  # visual tokens kept
knobs = {}  # other settings of the method, such as gamma
job = "sweep"  # what the store calls the rows
results_dir = "results/rows"  # folder of the stored rows

# %%
import time

started = time.perf_counter()

from IPython.display import Markdown

from idsel_core.study.asked_methods import tower_depths
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.knobs import build_method
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report.tables import accuracy
from idsel_core.study.run.sweeps import encodings
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

# %%
methods = (
    [method] if method in (FULL, BLIND) else [build_method(method, {"budget": budget, **knobs}) for budget in budgets]
)
study = open_study(
    split,
    limit=questions,
    backbone=backbone,
    data=data,
    cache=encodings(project_path(backbone), project_path(data)),
    device=device,
    dtype=dtype,
    quantisation=quantisation,
    device_map=device_map,
    tower_depths=tower_depths(methods) or None,
)

# %%
results = Results(project_path(results_dir))
rows = study.run(methods, batch=batch, resume=results.resume_folder(job))
names = (
    "backbone",
    "data",
    "split",
    "questions",
    "device",
    "dtype",
    "quantisation",
    "device_map",
    "batch",
    "method",
    "budgets",
    "knobs",
    "job",
)
note = provenance({name: globals()[name] for name in names}, study.files, device=device, started=started)
results.write(job, rows, note | {"seed": knobs.get("seed", 0)})

# %%
Markdown(accuracy(rows).mul(100).round(1).reset_index().to_markdown(index=False))
