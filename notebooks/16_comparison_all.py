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
# # Comparison on all questions: where does ID-Selection stand in its class?
#
# `make figures` asks 280 questions of the test split. Here all 1,050 are asked: every method of the registry with its
# defaults, and more settings of ID-Selection, each beside the methods of its own class. All of them were chosen before,
# on the validation split or by their papers. `make comparison` runs this notebook; it resumes where it was stopped.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "test"  # split of the data set
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
batch = 50  # questions at a time
budgets = [192, 128, 64, 32, 16]  # visual tokens kept
final_budgets = [
    64,
    32,
    16,
]  # budgets that methods inside the language model are also asked for as what is left at last
methods = []  # names of methods, [] for all of the registry
settings = []  # more settings: each a method, its knobs, and its budgets where they are others
ask = True  # False shows the rows that are stored
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures
tables_dir = "results/tables"  # folder for the tables

# %%
import time
from dataclasses import replace

started = time.perf_counter()

from idsel_core import get_method, list_methods
from idsel_core.methods import METHODS, drops_inside
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.knobs import build_method
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

# %% [markdown]
# ## Ask
#
# Methods inside the language model are asked for the budget as the mean over the layers, where the model's first layers
# allow it, and for some budgets as what is left after the last drop.

# %%
names = methods or [name for name in list_methods() if not METHODS[name].shares_budget]
swept = [get_method(name, budget=budget) for name in names for budget in budgets]
left_at_last = [method for method in swept if drops_inside(method) and method.budget in final_budgets]
swept += [replace(method, budget_convention="final") for method in left_at_last]
for setting in settings:
    knobs = {name: value for name, value in setting.items() if name not in ("method", "budgets")}
    swept += [build_method(setting["method"], knobs | {"budget": n}) for n in setting.get("budgets", budgets)]
depths = sorted({depth for method in swept for depth in method.tower_depths})
study = open_study(
    split, limit=questions, backbone=backbone, data=data, device=device, dtype=dtype, tower_depths=depths
)
results, job = Results(project_path(results_dir)), study.named("16_comparison_all")

# %%
if ask:
    usable, missing = study.applicable(swept)
    rows = study.run([FULL, BLIND, *usable], batch=batch, resume=results.resume_folder(job))
    asked = ("backbone", "data", "split", "questions", "device", "dtype", "batch", "budgets", "final_budgets")
    parameters = {name: globals()[name] for name in (*asked, "methods", "settings", "missing")}
    results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = results.frame(job)
drawn_from = results.origin(job, resamples=resamples)
