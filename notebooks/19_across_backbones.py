# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Across backbones: does the order of methods on one model hold on another?
#
# The embedded backbone has a language model of 5 layers with a vocabulary of its own, trained here. The second one has
# the same vision tower, and behind it SmolLM2-135M, which others trained, in a 4-bit copy that was tuned here on drawn
# scenes: 30 layers, heads that share keys, a natural vocabulary. Both are asked the same questions of the test split,
# on which nothing was chosen. `make smollm2` runs this notebook; it resumes where it was stopped.
#
# Four methods select before the language model: ID-Selection, the same without suppression (top-K), DivPrune, and a
# uniform grid, a control that does not look and is above random tokens on the embedded backbone. Four drop tokens
# inside it: ID-Selection inside, VScan, FastV and PyramidDrop. VScan stands here and not SparseVLM because it reads
# every budget in the mean over the layers, so that it is ranked at each.
#
# Beside all tokens stand two floors: no image, and the image of another scene.

# %% tags=["parameters"]
backbones = ["data/backbone/assembled", "data/smollm2/assembled"]  # hub ids, or folders of models
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "test"  # split of the data set
questions = 602  # about how many questions, the first of each question type; 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "float32"; "auto" takes each model's own
batch = 25  # questions at a time; the questions of an image follow each other
budgets = [192, 128, 64, 32, 16]  # visual tokens kept
final_budgets = [16]  # budgets to leave at last where a method cannot read them in the mean over the layers
methods = ["idselection", "idselection-inside", "topk", "divprune", "uniform", "vscan", "fastv", "pyramiddrop"]  # names
own = "idselection"  # the method that the conclusion speaks of
shown_budgets = [64, 16]  # budgets of the table of question types
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures
tables_dir = "results/tables"  # folder for the tables

# %%
import time
from dataclasses import replace

started = time.perf_counter()

import pandas as pd
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.methods import drops_inside
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.other_images import ask_other_images
from idsel_core.study.paths import project_path
from idsel_core.study.report import comparison_tables, ranks, tables, theme
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# A budget is the mean number of tokens that a layer reads. The layers before a drop read all tokens, which rules small
# means out: for PyramidDrop, whose first drop is at a quarter of the depth, most of them. Such a method is asked to
# leave the budget after its last drop, is called *final*, and is not ranked.

# %%
results, job = Results(project_path(results_dir)), ranks.JOB
swept = [get_method(name, budget=budget) for name in methods for budget in budgets]
depths = sorted({depth for method in swept for depth in method.tower_depths})
asked, files, missing = [], [], {}
for backbone in backbones:
    study = open_study(
        split, limit=questions, backbone=backbone, data=data, device=device, dtype=dtype, tower_depths=depths
    )
    usable, refused = study.applicable(swept)
    late = [method for method in swept if method not in usable and drops_inside(method)]
    late = [replace(method, budget_convention="final") for method in late if method.budget in final_budgets]
    left, further = study.applicable(late)
    resume = results.resume_folder(job)
    asked.append(study.run([FULL, BLIND, *usable, *left], batch=batch, resume=resume))
    asked.append(ask_other_images(study, batch=batch, resume=resume))
    files += study.files
    missing |= {f"{study.name}: {name}": why for name, why in (refused | further).items()}

# %%
given = "backbones data split questions device dtype batch budgets final_budgets methods shown_budgets missing"
parameters = {name: globals()[name] for name in given.split()}
noted = provenance(parameters, dict.fromkeys(files), device=device, started=started)
results.write(job, pd.concat(asked, ignore_index=True), noted)
rows = ranks.read_ranked(results, job)
drawn_from = results.origin(job, resamples=resamples)
texts, said = project_path(tables_dir), f"{theme.questions_asked(rows)}."

# %% [markdown]
# ## Accuracy

# %%
theme.save(ranks.accuracy_figure(rows, resamples), project_path(figures_dir), "19_accuracy", drawn_from)

# %% [markdown]
# ## Ranks
#
# By accuracy, the same questions for all. Where intervals of ranks overlap, an order means little.

# %%
theme.save(ranks.ranks_figure(rows, resamples), project_path(figures_dir), "19_ranks", drawn_from)

# %% [markdown]
# ## The tables
#
# Accuracy in percent with 95 % bootstrap intervals over questions.

# %%
notes = [said, *ranks.notes(rows)]
table = ranks.budgets_table(rows, resamples)
Markdown(tables.save_table(table, texts, "across_backbones", *notes, origin=drawn_from))

# %%
by_type = ranks.types_table(rows, shown_budgets, resamples)
Markdown(tables.save_table(by_type, texts, "across_backbones_types", *notes, origin=drawn_from))

# %%
refusals = comparison_tables.missing_table(missing) if missing else pd.DataFrame({"method": ["none"]})
Markdown(tables.save_table(refusals, texts, "across_backbones_missing", origin=drawn_from))

# %% [markdown]
# ## Conclusion
#
# Differences in points of accuracy, question by question; *below* and *above* hold after Holm's correction for all
# comparisons on a backbone. A backbone that does not see what a question type asks tells nothing about methods there.

# %%
conclusion = tables.save_text(ranks.about_ranks(rows, own, resamples), texts, "across_backbones_said", drawn_from)
Markdown(conclusion)
