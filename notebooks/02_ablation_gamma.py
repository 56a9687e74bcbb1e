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
# # Ablation: how sharply should a pick suppress its likes, and by which rule?
#
# ID-Selection lowers the scores of tokens that look like a pick by `w = exp(-gamma d^2)`, d being the cosine distance.
# At gamma 0 every pick suppresses all tokens alike; at gamma to infinity none is suppressed and top-K by importance
# remains. The rule is either *subtract* (`S_j - w S_i`) or *multiply* (`S_j (1 - w)`). The public reading of the paper,
# `IDSelection.published()`, subtracts with gamma 20; `IDSelection()` multiplies, and takes gamma from each image, as
# notebook 14 chose among all settings.

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
gammas = [0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, "auto"]  # sharpness of the suppression
updates = ["subtract", "multiply"]  # rules
budgets = [128, 64, 32, 16]  # visual tokens kept
importance = "unified"  # importance score
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time

started = time.perf_counter()

import matplotlib.pyplot as plt
from IPython.display import Markdown

from idsel_core import IDSelection, get_method
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import ablation_sentences, palette, theme
from idsel_core.study.report.ablation_figures import plot_by_gamma
from idsel_core.study.report.bootstrap import mean_scores
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# Every setting answers the same questions; each image was encoded once for all of them. Top-K importance is the limit
# for gamma to infinity.

# %%
methods = [
    IDSelection(budget=budget, gamma=gamma, update=update, importance=importance)
    for budget in budgets
    for update in updates
    for gamma in gammas
]
limits = [get_method("topk", budget=budget, importance=importance) for budget in budgets]
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
results, job = Results(project_path(results_dir)), study.named("02_ablation_gamma")
rows = study.run([*limits, *methods], batch=batch, resume=results.resume_folder(job))

# %%
parameters = {
    name: globals()[name]
    for name in (
        "backbone",
        "data",
        "split",
        "questions",
        "device",
        "dtype",
        "quantisation",
        "device_map",
        "batch",
        "gammas",
        "updates",
        "budgets",
        "importance",
    )
}
results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = results.frame(job)

# %% [markdown]
# ## What it shows
#
# The mean of each setting over the questions, and its 95 % interval: the questions are drawn again and again with
# replacement, the same ones for every setting.

# %%
swept = rows[rows["method"] == "idselection"]
means = mean_scores(swept, ["budget", "update", "gamma"], resamples=resamples)
topk = mean_scores(rows[rows["method"] == "topk"], ["budget"], resamples=resamples).set_index("budget")
means.round(3).head()

# %%
figure, axes = plt.subplots(
    1, len(budgets), figsize=(theme.PAGE, 2.6), sharey=True, squeeze=False, layout="constrained"
)
for budget, axis in zip(budgets, axes[0], strict=True):
    for update, style in palette.of_series(sorted(means["update"].unique())).items():
        plot_by_gamma(axis, means[(means["budget"] == budget) & (means["update"] == update)], update, **style)
    axis.axhline(topk.at[budget, "mean"], color=palette.LINE, linestyle="--", label="top-K importance")
    axis.set_title(f"{budget} tokens")
    theme.gamma_axis(axis, means["gamma"])
    theme.percent_axis(axis.yaxis)
axes[0, 0].set_ylabel("accuracy")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
figure.set_label("Accuracy against gamma, for each update and budget")
theme.add_note(figure, theme.questions_asked(rows))
drawn_from = results.origin(job, resamples=resamples)
theme.save(figure, project_path(figures_dir), study.named("02_gamma"), drawn_from)

# %% [markdown]
# ## Conclusion
#
# At both ends the order of importance is all that is left: with gamma 0 a pick suppresses all tokens alike, and with a
# large gamma none. So a gain over top-K importance, if there is one, lies between them. Where the interval of a
# difference holds 0, these questions do not tell two settings apart. What the rows say:

# %%
Markdown(ablation_sentences.about_gamma(rows, resamples=resamples))
