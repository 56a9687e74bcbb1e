# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablation: which importance should a token have before the picking starts?
#
# *Saliency* is what the vision tower's [CLS] attends to, *instruction* what the instruction attends to in the language
# model, *relevance* the likeness of a patch and the question in a shared image-text space, *unified* a blend of
# saliency and instruction. At the language model's input layer the last prompt token carries nothing of the question,
# so the mean over the question's tokens stands beside it as `mean@0`. Each score is min-maxed per image or left raw,
# and tokens are alike by projector features or by encoder features.

# %% tags=["parameters"]
split = "validation"  # split of the data set; hyper-parameters are chosen on validation alone
questions = 0  # about how many questions, 0 for all
importances = ["saliency", "instruction", "relevance", "unified", "unified-product", "unified-geometric"]  # scores
normalisations = ["minmax", "raw"]  # what is done to a score before it is used or combined
features = ["projector", "encoder"]  # by which features tokens are alike
instruction_tokens = ["last", "mean"]  # who asks, in the scores with instruction attention
budgets = [64, 16]  # visual tokens kept
gamma = 20.0  # sharpness of the suppression
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results"  # folder of the result store

# %%
import os
import time
from itertools import product
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))
started = time.perf_counter()

from IPython.display import Markdown

from idsel_core import IDSelection
from idsel_core.study.dataset import FULL
from idsel_core.study.evaluate import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.report import ablation_sentences as words
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

figures.use_theme()

# %% [markdown]
# Scores without instruction attention are asked once; the others once for each way of query_tokens.

# %%
methods = dict.fromkeys(
    IDSelection(
        budget=budget,
        gamma=gamma,
        importance=importance,
        normalise=normalise,
        features=space,
        instruction_tokens=asks if importance.startswith(("instruction", "unified")) else "last",
    )
    for budget, importance, normalise, space, asks in product(
        budgets, importances, normalisations, features, instruction_tokens
    )
)
study = open_study(split, limit=questions)
results = Results(results_dir)
rows = study.run([FULL, *methods], checkpoint=results.checkpoint("03_ablation_importance"))

# %%
names = ("split", "questions", "importances", "normalisations", "features", "instruction_tokens", "budgets", "gamma")
parameters = {name: globals()[name] for name in names}
files = [*study.split.files, MODEL / "model.safetensors", MODEL / "companion" / "model.safetensors"]
results.write("03_ablation_importance", rows, provenance(parameters, files, started=started))
rows = results.frame("03_ablation_importance")

# %% [markdown]
# ## What it shows
#
# Points are accuracies with 95 % bootstrap intervals over questions.

# %%
figures.importance_figure(rows, resamples)
# %%
Markdown(words.about_importance(rows, resamples=resamples))
