# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablation: how sharply should a pick suppress its likes, and by which rule?
#
# ID-Selection lowers the scores of tokens that look like a pick by `w = exp(-gamma d^2)`, d being the cosine distance.
# At gamma 0 every pick suppresses all tokens alike; at gamma to infinity none is suppressed and top-K by importance
# remains. The rule is either *subtract* (`S_j - w S_i`) or *multiply* (`S_j (1 - w)`).

# %% tags=["parameters"]
split = "validation"  # split of the data set; hyper-parameters are chosen on validation alone
questions = 0  # about how many questions, 0 for all
gammas = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]  # sharpness of the suppression
updates = ["subtract", "multiply"]  # rules
budgets = [128, 64, 32, 16]  # visual tokens kept
importance = "unified"  # importance score
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results"  # folder of the result store

# %%
import os
import time
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))
started = time.perf_counter()

from IPython.display import Markdown

from idsel_core import IDSelection, get_method
from idsel_core.study.dataset import FULL
from idsel_core.study.evaluate import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.report import ablation_sentences as words
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

figures.use_theme()

# %% [markdown]
# Every setting answers the same questions; each image was encoded once for all of them.

# %%
methods = [
    IDSelection(budget=budget, gamma=gamma, update=update, importance=importance)
    for budget in budgets
    for update in updates
    for gamma in gammas
]
limits = [get_method("topk", budget=budget, importance=importance) for budget in budgets]
study = open_study(split, limit=questions)
results = Results(results_dir)
rows = study.run([FULL, *limits, *methods], checkpoint=results.checkpoint("02_ablation_gamma"))

# %%
parameters = {name: globals()[name] for name in ("split", "questions", "gammas", "updates", "budgets", "importance")}
files = [*study.split.files, MODEL / "model.safetensors"]
results.write("02_ablation_gamma", rows, provenance(parameters, files, started=started))
rows = results.frame("02_ablation_gamma")

# %% [markdown]
# ## What it shows
#
# Bands are 95 % bootstrap intervals over questions.

# %%
figures.gamma_figure(rows, resamples)
# %%
Markdown(words.about_gamma(rows, resamples=resamples))
