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
# # Ablation: which importance should a token have before the picking starts?
#
# *Saliency* is what the vision tower's [CLS] attends to, *instruction* what the instruction attends to in the language
# model, *relevance* the likeness of a patch and the question in a shared image-text space, *unified* a blend of
# saliency and instruction. Who asks are the instruction's words at the language model's input layer, or the last token
# before the answer in a layer where it has read them. Each score is min-maxed per image or left raw, and tokens are
# alike by projector features or by encoder features. The public reading of the paper, `IDSelection.published()`, asks
# with the last token at layer 2. `IDSelection()` asks with the words at layer 0, because notebook 14 compares at equal
# FLOPs, and a score that reads two layers has run them over all tokens.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "validation"  # split of the data set; hyper-parameters are chosen on validation alone
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
quantisation = ""  # of the language model by bitsandbytes, "int8" or "int4"; "" for none
device_map = ""  # "auto" spreads the model over all GPUs; "" leaves it on device
batch = 50  # questions at a time
importances = ["saliency", "instruction", "relevance", "unified", "unified-product", "unified-geometric"]  # scores
normalisations = ["minmax", "raw"]  # what is done to a score before it is used or combined
features = ["projector", "encoder"]  # by which features tokens are alike
instructions = ["words@0", "last@2"]  # query tokens and layer of the scores with instruction attention
budgets = [64, 16]  # visual tokens kept
gamma = "auto"  # sharpness of the suppression
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from itertools import product

started = time.perf_counter()

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

from idsel_core import IDSelection
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import ablation_sentences, theme
from idsel_core.study.report.ablation_figures import named_importance
from idsel_core.study.report.bootstrap import mean_scores
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# Scores without instruction attention are asked once; the others once for each choice of query tokens and layer. What a
# model cannot give is told: relevance needs a companion, which few have.

# %%
methods = dict.fromkeys(
    IDSelection(
        budget=budget,
        gamma=gamma,
        importance=importance,
        normalise=normalise,
        features=space,
        instruction_tokens=where.partition("@")[0],
        instruction_layer=int(where.partition("@")[2]),
    )
    for budget, importance, normalise, space in product(budgets, importances, normalisations, features)
    for where in (instructions if importance.startswith(("instruction", "unified")) else instructions[:1])
)

# %%
study = open_study(
    split,
    limit=questions,
    backbone=backbone,
    data=data,
    device=device,
    dtype=dtype,
    quantisation=quantisation,
    device_map=device_map,
)
results, job = Results(project_path(results_dir)), study.named("03_ablation_importance")
usable, missing = study.applicable(methods)
rows = study.run(usable, batch=batch, resume=results.resume_folder(job))
lost = sorted({method.importance for method in methods if method not in usable})
why = "; ".join(sorted(set(missing.values())))
Markdown(f"Settings with {', '.join(lost)} are left out: {why}." if lost else "All settings run here.")

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
    "importances",
    "normalisations",
    "features",
    "instructions",
    "budgets",
    "gamma",
)
parameters = {name: globals()[name] for name in names}
results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = results.frame(job)

# %% [markdown]
# ## What it shows
#
# The accuracy of each setting with its 95 % interval over the questions, the best scores on top.

# %%
scored = named_importance(rows[rows["method"] == "idselection"])
means = mean_scores(scored, ["score", "features", "normalise", "budget"], resamples=resamples)
order = list(means.groupby("score")["mean"].mean().sort_values().index)
means.round(3).head()

# %%
height = 1.6 + 0.35 * len(order)
figure, axes = plt.subplots(
    1, len(budgets), figsize=(theme.PAGE, height), sharey=True, squeeze=False, layout="constrained"
)
for budget, axis in zip(budgets, axes[0], strict=True):
    variants = means[means["budget"] == budget].groupby(["features", "normalise"])
    for shift, ((space, normalise), table) in zip(np.linspace(0.3, -0.3, len(variants)), variants, strict=True):
        place = [order.index(score) + shift for score in table["score"]]
        errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
        axis.errorbar(table["mean"], place, xerr=errors, fmt="o", markersize=4, label=f"{space} features, {normalise}")
    axis.set_yticks(range(len(order)), order)
    axis.set_title(f"{budget} tokens")
    theme.percent_axis(axis.xaxis)
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
theme.add_note(figure, theme.questions_asked(rows))
drawn_from = results.origin(job, resamples=resamples)
theme.save(figure, project_path(figures_dir), study.named("03_importance"), drawn_from)

# %% [markdown]
# ## Conclusion
#
# A score is better than another one only as far as the interval of their difference says, and on this model: relevance
# comes from a companion, and what the tower finds salient depends on what it was trained on. What the rows say:

# %%
Markdown(ablation_sentences.about_importance(rows, resamples=resamples))
