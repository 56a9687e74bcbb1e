# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Comparison: does ID-Selection beat its peers when all of them answer the same questions?
#
# Every method of the registry, at equal numbers of visual tokens, on the test split, on which nothing was chosen. Each
# runs with the settings that its authors give; no method was tuned here. CDPruner and TRIM take relevance from the
# backbone's companion, which was tuned on questions like these about other scenes; this favours them. Methods that drop
# tokens inside the language model are asked for the budget as the mean over its layers, which a small model's first
# layers often rule out, and, at the budgets of the detailed figures, once more as what is left after the last drop;
# this is called *final*, and reads more tokens than the others do at that budget.

# %% tags=["parameters"]
split = "test"  # split of the data set
questions = 0  # about how many questions, 0 for all
budgets = [192, 128, 64, 32, 16, 8]  # visual tokens kept
methods = []  # names of methods, [] for all of the registry
shown_budgets = [64, 32, 16]  # budgets of the detailed figures, and of final budgets inside the language model
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results"  # folder of the result store

# %%
import os
import time
from dataclasses import replace
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))
started = time.perf_counter()

from IPython.display import Markdown

from idsel_core import get_method, list_methods
from idsel_core.methods import InLLM
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.evaluate import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.report import comparison
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

figures.use_theme()

# %% [markdown]
# Some methods read attention, keys or the [CLS] token of several layers, so the images are encoded with all of these.
# What a method needs and this backbone does not have is told, not guessed.

# %%
swept = [get_method(name, budget=budget) for name in methods or list_methods() for budget in budgets]
inside = [method for method in swept if isinstance(method, InLLM) and method.budget in shown_budgets]
swept += [replace(method, budget_convention="final") for method in inside]
tower_depths = sorted({depth for method in swept for depth in method.tower_depths})
study = open_study(split, limit=questions, tower_depths=tower_depths)
usable, missing = study.applicable(swept)
Markdown("\n".join(f"- {name}: {why}" for name, why in missing.items()) or "All methods run on this backbone.")

# %%
results = Results(results_dir)
rows = study.run([FULL, BLIND, *usable], checkpoint=results.checkpoint("06_comparison"))

# %%
names = ("split", "questions", "budgets", "methods", "shown_budgets", "missing")
parameters = {name: globals()[name] for name in names}
files = [*study.split.files, MODEL / "model.safetensors", MODEL / "companion" / "model.safetensors"]
results.write("06_comparison", rows, provenance(parameters, files, started=started))
rows = comparison.by_title(results.frame("06_comparison"))

# %% [markdown]
# ## Share of full performance
#
# Mean over question types of accuracy / accuracy with all tokens, with half the width of its 95 % paired bootstrap
# interval.

# %%
comparison.ranking_figure(rows, resamples)
# %% [markdown]
# ## At equal cost
#
# The same against the FLOPs of the language model's prefill, which count what each layer reads.

# %%
comparison.cost_figure(rows, resamples)
# %% [markdown]
# ## Who wins, ties and loses
#
# A win or loss is a paired difference of accuracy whose 95 % interval leaves out zero. There is no correction for the
# number of comparisons: with many peers and budgets, a few of them are chance.

# %%
versus_each = comparison.versus_each(rows, resamples=resamples)
comparison.versus_each_figure(versus_each, shown_budgets)
# %%
Markdown(comparison.about_comparison(versus_each))

# %% [markdown]
# ## Family by question type

# %%
comparison.question_types_figure(rows, shown_budgets[-1], resamples)
# %% [markdown]
# ## Easy and hard questions
#
# Of the questions that all tokens answer, those are easy that the smaller image answers too, at the same budget.

# %%
split = comparison.split_by_downsampling(rows)
comparison.split_figure(split, shown_budgets, resamples)
# %%
Markdown(comparison.about_split(split, shown_budgets, resamples=resamples))

# %% [markdown]
# ## The table

# %%
Markdown(comparison.comparison_table(rows, shown_budgets, resamples).to_markdown(index=False))
# %% [markdown]
# What could not run, and why:

# %%
Markdown(comparison.missing_table(missing).to_markdown(index=False))
