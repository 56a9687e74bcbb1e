# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ablation: how few visual tokens are enough, and does the picking beat simple controls?
#
# ID-Selection from 288 tokens down to 4, beside five controls: importance alone, diversity alone, tokens at random, a
# uniform grid, and the image itself made smaller. Without a clear gain over these, a pruning method shows little. All
# answer the same questions of the test split, on which nothing was chosen.

# %% tags=["parameters"]
split = "test"  # split of the data set
questions = 0  # about how many questions, 0 for all
budgets = [288, 192, 128, 64, 32, 16, 8, 4]  # visual tokens kept
methods = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # ID-Selection and its controls
seeds = [0]  # seeds of the random control
kept_positions = [64, 16]  # budgets at which original positions are tried beside compact ones
harder_split = "hard"  # split with tiny objects and words, asked at the budgets of kept_positions
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results"  # folder of the result store

# %%
import os
import time
from dataclasses import replace
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))
started = time.perf_counter()

import pandas as pd
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.evaluate import open_study
from idsel_core.study.paths import MODEL
from idsel_core.study.report import ablation_sentences as words
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

figures.use_theme()

# %% [markdown]
# *All tokens* and *no image* are the ends of the scale.

# %%
swept = [
    get_method(name, budget=budget, **({"seed": seed} if name == "random" else {}))
    for name in methods
    for budget in budgets
    for seed in (seeds if name == "random" else [0])
]
study = open_study(split, limit=questions)
results = Results(results_dir)
checkpoint = results.checkpoint("04_ablation_budget")
rows = study.run([FULL, BLIND, *swept], checkpoint=checkpoint)

# %%
spread = replace(study, positions="keep")
again = [method for method in swept if method.budget in kept_positions and method.name in ("idselection", "uniform")]
harder = open_study(harder_split, limit=questions)
few = [method for method in swept if method.budget in kept_positions]
more = [spread.run(again, checkpoint=checkpoint)] if again else []
more.append(harder.run([FULL, BLIND, *few], checkpoint=checkpoint))
rows = pd.concat([rows, *more], ignore_index=True)

# %%
names = ("split", "questions", "budgets", "methods", "seeds", "kept_positions", "harder_split")
parameters = {name: globals()[name] for name in names}
files = [*study.split.files, *harder.split.files, MODEL / "model.safetensors"]
results.write("04_ablation_budget", rows, provenance(parameters, files, started=started))
rows = results.frame("04_ablation_budget")
compact = rows[(rows["positions"] == "compact") & (rows["split"] == split)]

# %% [markdown]
# ## What it shows
#
# The share of full performance is the mean over question types of accuracy / accuracy with all tokens; bands are
# 95 % paired bootstrap intervals over questions.

# %%
figures.budget_figure(compact, resamples)
# %%
Markdown(words.about_budget(compact, resamples=resamples))

# %% [markdown]
# ## Family by question type, and where the kept tokens lie

# %%
figures.question_types_figure(compact, resamples)
# %%
figures.objects_figure(compact)
# %% [markdown]
# ## Do the kept tokens need their original positions?

# %%
here = rows[(rows["split"] == split) & rows["method"].isin(["idselection", "uniform"])]
Markdown(words.about_positions(here, resamples))

# %% [markdown]
# ## The harder split
#
# Seven to ten tiny objects and a word: accuracy in percent.

# %%
Markdown(figures.accuracy_table(rows[rows["split"] == harder_split]).to_markdown(index=False))
