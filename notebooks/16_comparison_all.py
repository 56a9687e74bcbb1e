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
final_budgets = [64, 32, 16]  # budgets that methods inside the language model are also asked to leave at last
methods = []  # names of methods, [] for all of the registry
beside = ""  # job that asked the same questions with the controls, which are then not asked here; "" asks all here
controls = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # the controls that it asked
settings = []  # more settings: each a method, its knobs, and its budgets where they are others
stored = ""  # job whose rows are shown, as they are stored; "" asks the questions
model_layers = 32  # layers of the language model on whose shapes FLOPs are equal: those of LLaVA-1.5-7B
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

from idsel_core import get_method, list_methods
from idsel_core.methods import METHODS, drops_inside
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.knobs import build_method
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import classes, comparison, comparison_figures, comparison_tables, tables, theme
from idsel_core.study.report.comparison_sentences import about_difficulty
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# Methods inside the language model are asked for the budget as the mean over the layers, where the model's first layers
# allow it, and for some budgets as what is left after the last drop. The store has the rows of each class as soon as it
# was asked, and the tables below can be drawn from them.

# %%
named = methods or [name for name in list_methods() if not METHODS[name].shares_budget]
names = [name for name in named if not (beside and name in controls)]
swept = [get_method(name, budget=budget) for name in names for budget in budgets]
left_at_last = [method for method in swept if drops_inside(method) and method.budget in final_budgets]
swept += [replace(method, budget_convention="final") for method in left_at_last]
for setting in settings:
    knobs = {name: value for name, value in setting.items() if name not in ("method", "budgets")}
    swept += [build_method(setting["method"], knobs | {"budget": n}) for n in setting.get("budgets", budgets)]
depths = sorted({depth for method in swept for depth in method.tower_depths})
results = Results(project_path(results_dir))

# %%
job = stored
if not stored:
    study = open_study(
        split, limit=questions, backbone=backbone, data=data, device=device, dtype=dtype, tower_depths=depths
    )
    job = study.named("16_comparison_all")
    usable, missing = study.applicable(swept)
    parts = [[m for m in usable if classes.class_of(m) == kind] for kind in classes.CLASSES]
    parts[0] = [*([] if beside else [FULL, BLIND]), *parts[0]]
    given = "backbone data split questions device dtype batch budgets final_budgets methods beside controls settings"
    parameters = {name: globals()[name] for name in [*given.split(), "missing"]}
    rows = []
    for number, part in enumerate(filter(None, parts)):
        rows.append(study.run(part, batch=batch, resume=results.resume_folder(f"{job}-{number}")))
        noted = provenance(parameters | {"parts": number + 1}, study.files, device=device, started=started)
        results.write(job, pd.concat(rows, ignore_index=True), noted)

# %%
rows = classes.read_settings(results, job, beside)
drawn_from = results.origin(*rows["job"].unique(), resamples=resamples, model_layers=model_layers)
texts, noted = project_path(tables_dir), f"{theme.questions_asked(rows)}."

# %% [markdown]
# ## Where it loses, ties and wins, class by class
#
# Differences of accuracy in points, question by question. *Below* and *above* hold where the p-value of the paired test
# stays under 0.05 after Holm's correction for all comparisons of a class. A score that reads two layers of the language
# model has run them over all tokens: *at equal FLOPs* it keeps as many tokens fewer as that pass would have paid for on
# a model of so many layers as `model_layers`; where there are not as many tokens, it cannot be had at all.

# %%
gaps = classes.class_gaps(rows, budgets, model_layers, resamples)
said = classes.about_classes(gaps)
tables.save_text(said, texts, "comparison_all_said", drawn_from)
table = tables.save_table(classes.classes_table(gaps), texts, "comparison_all_classes", noted, origin=drawn_from)
Markdown(f"{said}\n\n{table}")

# %% [markdown]
# ## Share of full performance, class by class

# %%
asked_equally = rows[rows["budget"].isin(budgets) | rows["method"].isin([FULL, BLIND])]
shares = classes.shares_by_setting(asked_equally, budgets, resamples)
Markdown(tables.save_table(shares, texts, "comparison_all_shares", noted, origin=drawn_from))

# %%
titled = comparison.by_title(asked_equally)
figure = comparison_figures.ranking_figure(titled, resamples)
theme.save(figure, project_path(figures_dir), job.replace("16_comparison_all", "16_ranking"), drawn_from)

# %% [markdown]
# ## Inside the language model, at equal FLOPs
#
# What a method inside the language model keeps, beside what ID-Selection's default keeps at as many FLOPs of scores and
# prefill, on the shapes of this model.

# %%
inside = classes.inside_table(rows, resamples=resamples)
Markdown(tables.save_table(inside, texts, "comparison_all_inside", noted, origin=drawn_from))

# %% [markdown]
# ## Easy and hard questions
#
# Of the questions that all tokens answer, those are easy that the smaller image answers too, at the same budget.

# %%
graded = comparison.by_difficulty(titled)
said = about_difficulty(graded, budgets, resamples=resamples)
Markdown(tables.save_text(said, texts, "comparison_all_difficulty", drawn_from))

# %% [markdown]
# ## The whole table
#
# *Loyalty* is the share of answers that are those of all tokens, right or wrong.

# %%
table = comparison_tables.comparison_table(titled, budgets, resamples, loyal=True)
notes = comparison.ranking_notes(titled["method"])
best = tables.best_methods(table)
Markdown(tables.save_table(table, texts, "comparison_all", noted, *notes, origin=drawn_from, best=best))

# %% [markdown]
# ## Conclusion
#
# The first table decides whether the default may be called as good as the others of its class, and at which budgets.
# Where it is below another method, that stands first, here and on the page of results.
