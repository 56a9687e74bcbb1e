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
# # Comparison: does ID-Selection beat its peers when all of them answer the same questions?
#
# Every method of the registry, at equal numbers of visual tokens, on the test split, on which nothing was chosen. Each
# runs with its defaults; no method was tuned here. Methods that read relevance take it from the backbone's companion, a
# small image-text model that was tuned on questions like these about other scenes; this favours them.
#
# Methods that drop tokens inside the language model are asked for the budget as the mean over its layers, which a small
# model's first layers often rule out, and, at the budgets of the detailed figures, once more as what is left after the
# last drop. The second is called *final*: such a method reads more tokens than the others do at that budget, so it
# stands apart in every ranking.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "test"  # split of the data set
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
quantisation = ""  # of the language model by bitsandbytes, "int8" or "int4"; "" for none
device_map = ""  # "auto" spreads the model over all GPUs; "" leaves it on device
batch = 50  # questions at a time
budgets = [192, 128, 64, 32, 16, 8]  # visual tokens kept
methods = []  # names of methods, [] for all of the registry
beside = ""  # job that asks the same questions with the controls, which are then not asked here; "" asks all here
controls = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # the controls that it asks
shown_budgets = [64, 32, 16]  # budgets of the detailed figures, and of final budgets inside the language model
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from dataclasses import replace

started = time.perf_counter()

import matplotlib.pyplot as plt
from IPython.display import Markdown

from idsel_core import InLLM, get_method, list_methods
from idsel_core.methods import METHODS
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import (
    comparison,
    comparison_figures,
    comparison_sentences,
    comparison_tables,
    palette,
    theme,
)
from idsel_core.study.report.bootstrap import paired_difference, paired_scores
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# Some methods read attention, keys or the [CLS] token of several layers, so the images are encoded with all of these.
# What a method needs and this backbone does not have is told, not guessed. `make figures` runs this notebook beside 04,
# which asks ID-Selection and the controls; 05 draws them all together.

# %%
fixed = [name for name in list_methods() if not METHODS[name].shares_budget]  # the same number for every image
chosen = [name for name in methods or fixed if not (beside and name in controls)]
swept = [get_method(name, budget=budget) for name in chosen for budget in budgets]
inside = [method for method in swept if isinstance(method, InLLM) and method.budget in shown_budgets]
swept += [replace(method, budget_convention="final") for method in inside]
tower_depths = sorted({depth for method in swept for depth in method.tower_depths})
study = open_study(
    split,
    limit=questions,
    backbone=backbone,
    data=data,
    device=device,
    dtype=dtype,
    quantisation=quantisation,
    device_map=device_map,
    tower_depths=tower_depths,
)
usable, missing = study.applicable(swept)
Markdown(comparison_tables.missing_table(missing).to_markdown(index=False) if missing else "All methods run here.")

# %%
results, job = Results(project_path(results_dir)), study.named("06_comparison")
ends = [] if beside else [FULL, BLIND]
rows = study.run([*ends, *usable], batch=batch, resume=results.resume_folder(job))

# %%
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
    "budgets",
    "methods",
    "beside",
    "controls",
    "shown_budgets",
    "missing",
)
parameters = {name: globals()[name] for name in names}
results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = comparison.by_title(comparison.read_comparison(results, job, study.named(beside)))
drawn_from = results.origin(*rows["job"].unique(), resamples=resamples, shown_budgets=shown_budgets)
assert FULL in set(rows["method"]), f"the controls are not asked yet: run {beside}, or set beside to ''"

# %% [markdown]
# ## Share of full performance
#
# Mean over question types of accuracy / accuracy with all tokens, with half the width of its 95 % paired bootstrap
# interval.

# %%
ranking = comparison_figures.ranking_figure(rows, resamples)
theme.save(ranking, project_path(figures_dir), study.named("06_ranking"), drawn_from)
# %% [markdown]
# ## At equal cost
#
# The same against the FLOPs of the language model's prefill, which count what each layer reads.

# %%
cost = comparison_figures.cost_figure(rows, resamples)
theme.save(cost, project_path(figures_dir), study.named("06_cost"), drawn_from)
# %% [markdown]
# ## Who wins, ties and loses
#
# Two methods answer the same questions, so their accuracies differ question by question: the mean of these differences
# has a narrower interval than the two accuracies. It is a win or a loss where the 95 % interval leaves out zero. There
# is no correction here for the number of comparisons; the sentences below make one (Holm).

# %%
own = "idselection" if "idselection" in set(rows["method"]) else usable[0].name
budget = shown_budgets[-1]
scores = paired_scores(rows[rows["budget"] == budget], ["method"])  # a row a question, a column a method
gaps = {other: paired_difference(scores[own], scores[other], resamples=resamples) for other in scores.columns.drop(own)}
order = comparison_figures.apart(sorted(gaps, key=lambda other: gaps[other].mean, reverse=True))[::-1]
figure, axis = plt.subplots(figsize=theme.size_for_rows(len(order), 0.175, 1.3), layout="constrained")
for place, other in enumerate(order):
    gap = gaps[other]
    color, marker = palette.OUTCOMES["tie" if gap.low <= 0 <= gap.high else "win" if gap.mean > 0 else "loss"]
    axis.plot([100 * gap.low, 100 * gap.high], [place, place], color=color)
    axis.plot(100 * gap.mean, place, marker, color=color)
axis.axvline(0, color=palette.LINE, linewidth=0.8)
comparison_figures.name_places(axis, order)
axis.set_xlabel(f"points of accuracy of {theme.label(own)} above each method, {budget} tokens")
figure.set_label(f"Accuracy of {theme.label(own)} minus that of each other method, with {budget} tokens")
theme.add_note(figure, theme.questions_asked(rows), *comparison.ranking_notes(order))
theme.save(figure, project_path(figures_dir), study.named("06_versus_each"), drawn_from)

# %% [markdown]
# ## By question type

# %%
by_type = comparison_figures.question_types_figure(rows, shown_budgets[-1], resamples)
theme.save(by_type, project_path(figures_dir), study.named("06_question_types"), drawn_from)
# %% [markdown]
# ## Easy and hard questions
#
# Of the questions that all tokens answer, those are easy that the smaller image answers too, at the same budget.

# %%
said = "Without the method `downsample` among those compared, no question is called easy or hard."
if "downsample" in set(rows["method"]):
    graded = comparison.by_difficulty(rows)
    difficulty = comparison_figures.difficulty_figure(graded, shown_budgets, resamples)
    theme.save(difficulty, project_path(figures_dir), study.named("06_difficulty"), drawn_from)
    said = comparison_sentences.about_difficulty(graded, shown_budgets, resamples=resamples)
Markdown(said)

# %% [markdown]
# ## The table

# %%
table = comparison_tables.comparison_table(rows, shown_budgets, resamples).to_markdown(index=False)
Markdown("\n\n".join([table, f"{theme.questions_asked(rows)}.", *comparison.ranking_notes(rows["method"])]))

# %% [markdown]
# ## Conclusion
#
# An interval of a few points is what so many questions allow; ranks within it mean nothing, and a method that is *not
# told apart* has neither won nor lost. What else decides: some methods know the question by relevance from the
# companion, some by attention inside the language model, others not at all; and methods with a final budget have read
# more tokens than it says. What the rows say:

# %%
Markdown(comparison_sentences.about_comparison(comparison.versus_each(rows, own, resamples), own))
