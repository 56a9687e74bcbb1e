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
# answer the same questions of the test part, on which nothing was chosen.

# %% tags=["parameters"]
part = "test"  # part of the data set
questions = 0  # about how many questions, 0 for all
budgets = [288, 192, 128, 64, 32, 16, 8, 4]  # visual tokens kept
methods = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # ID-Selection and its controls
seeds = [0]  # seeds of the random control
kept_positions = [64, 16]  # budgets at which original positions are tried beside compact ones
harder_part = "hard"  # part with tiny objects and words, asked at the budgets of kept_positions
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

from idsel_core import figures, get_method, words
from idsel_core.evaluation import BLIND, FULL, open_study
from idsel_core.paths import MODEL
from idsel_core.provenance import provenance
from idsel_core.results import Results

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
study = open_study(part, limit=questions)
results = Results(results_dir)
checkpoint = results.checkpoint("04_ablation_budget")
rows = study.run([FULL, BLIND, *swept], checkpoint=checkpoint)

# %%
spread = replace(study, positions="keep")
again = [method for method in swept if method.budget in kept_positions and method.name in ("idselection", "uniform")]
harder = open_study(harder_part, limit=questions)
few = [method for method in swept if method.budget in kept_positions]
more = [spread.run(again, checkpoint=checkpoint)] if again else []
more.append(harder.run([FULL, BLIND, *few], checkpoint=checkpoint))
rows = pd.concat([rows, *more], ignore_index=True)

# %%
names = ("part", "questions", "budgets", "methods", "seeds", "kept_positions", "harder_part")
parameters = {name: globals()[name] for name in names}
files = [*study.part.files, *harder.part.files, MODEL / "model.safetensors"]
results.write("04_ablation_budget", rows, provenance(parameters, files, started=started))
rows = results.frame("04_ablation_budget")
compact = rows[(rows["positions"] == "compact") & (rows["part"] == part)]

# %% [markdown]
# ## What it shows
#
# The share of full performance is the mean over question families of accuracy / accuracy with all tokens; bands are
# 95 % paired bootstrap intervals over questions.

# %%
figures.budget_figure(compact, resamples)
# %%
Markdown(words.about_budget(compact, resamples=resamples))

# %% [markdown]
# ## Family by family, and where the kept tokens lie

# %%
figures.family_figure(compact, resamples)
# %%
figures.objects_figure(compact)
# %% [markdown]
# ## Do the kept tokens need their original positions?

# %%
here = rows[(rows["part"] == part) & rows["method"].isin(["idselection", "uniform"])]
Markdown(words.about_positions(here, resamples))

# %% [markdown]
# ## The harder part
#
# Seven to ten tiny objects and a word: accuracy in percent.

# %%
Markdown(figures.accuracy_table(rows[rows["part"] == harder_part]).to_markdown(index=False))
