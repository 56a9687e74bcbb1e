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
# # Ablation: how few visual tokens are enough, and does the picking beat simple controls?
#
# ID-Selection with many tokens and with few, beside five controls: importance alone, diversity alone, tokens at random,
# a uniform grid, and the image itself made smaller. Without a clear gain over these, a pruning method shows little. All
# answer the same questions of the test split, on which nothing was chosen.

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
budgets = [288, 192, 128, 64, 32, 16, 8, 4]  # visual tokens kept
methods = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # ID-Selection and its controls
seeds = [0]  # seeds of the random control
kept_positions = [64, 16]  # budgets at which original positions are tried beside compact ones
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from dataclasses import replace

started = time.perf_counter()

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import ablation_figures, ablation_sentences, across_backbones, theme
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# *All tokens* and *no image* are the ends of the scale. What a model cannot run is told.

# %%
swept = [
    get_method(name, budget=budget, **({"seed": seed} if name == "random" else {}))
    for name in methods
    for budget in budgets
    for seed in (seeds if name == "random" else [0])
]
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
results, job = Results(project_path(results_dir)), study.named("04_ablation_budget")
resume = results.resume_folder(job)
usable, missing = study.applicable(swept)
rows = study.run([FULL, BLIND, *usable], batch=batch, resume=resume)
Markdown("\n".join(f"- {name} cannot run: {why}" for name, why in missing.items()) or "All methods run here.")

# %%
spread, numbered = replace(study, positions="keep"), study.backbone.positions_of(None)
again = [method for method in usable if method.budget in kept_positions and method.name in ("idselection", "uniform")]
if again and numbered == "compact":
    rows = pd.concat([rows, spread.run(again, batch=batch, resume=resume)], ignore_index=True)

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
    "seeds",
    "kept_positions",
)
parameters = {name: globals()[name] for name in names}
results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = results.frame(job)
compact = rows[rows["positions"] == numbered]
drawn_from = results.origin(job, resamples=resamples)

# %% [markdown]
# ## What it shows
#
# The share of full performance is the mean over question types of accuracy / accuracy with all tokens. Its 95 %
# interval comes from drawing the questions of each type again and again, the same ones for every method and for all
# tokens.

# %%
shares = share_of_full(compact, ["method", "budget"], resamples=resamples)
figure, axis = plt.subplots(figsize=theme.size("column", 2.9), layout="constrained")
for method, style in theme.styles(list(dict.fromkeys(method.name for method in usable))).items():
    theme.plot_band(axis, shares[shares["method"] == method], "budget", "share", theme.label(method), **style)
for end in (FULL, BLIND):
    level = shares.loc[shares["method"] == end, "share"].item()
    axis.axhline(level, linestyle=":", color=theme.styles([end])[end]["color"], label=theme.label(end))
theme.budget_axis(axis, budgets)
theme.percent_axis(axis.yaxis)
axis.set_ylabel("share of full performance")
figure.set_label("Share of full performance against the visual tokens kept, for ID-Selection and its controls")
theme.name_lines(axis)
theme.add_note(figure, theme.questions_asked(compact))
theme.save(figure, project_path(figures_dir), study.named("04_budget"), drawn_from)

# %% [markdown]
# ## By question type, and where the kept tokens lie

# %%
by_type = ablation_figures.question_types_figure(compact, resamples)
theme.save(by_type, project_path(figures_dir), study.named("04_question_types"), drawn_from)
# %%
if compact["on_objects"].notna().any():  # where the data set has boxes
    on_objects = ablation_figures.objects_figure(compact, resamples)
    theme.save(on_objects, project_path(figures_dir), study.named("04_objects"), drawn_from)

# %% [markdown]
# ## Across backbones
#
# The same for every backbone and data set of which the store holds this ablation.

# %%
everywhere = across_backbones.read_backbones(results)
across = across_backbones.backbones_figure(everywhere, resamples)
theme.save(
    across, project_path(figures_dir), "04_backbones", results.origin(*everywhere["job"].unique(), resamples=resamples)
)

# %% [markdown]
# ## Do the kept tokens need their original positions?

# %%
here = rows[rows["method"].isin(["idselection", "uniform"])]
unasked = {"keep": "this model's positions stay as they are", "compact": "kept_positions names none of the budgets"}
Markdown(ablation_sentences.about_positions(here, resamples) or f"Not asked: {unasked[numbered]}.")

# %% [markdown]
# ## Conclusion
#
# A pruning method is worth its work where it stands above what costs nothing to build: random tokens, a uniform grid, a
# smaller image; and it is worth its two parts where it stands above importance alone and diversity alone. The no-image
# line shows what guessing is worth: shares of full performance do not start at zero. What the rows say:

# %%
Markdown(ablation_sentences.about_budget(compact, resamples=resamples))
