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
# # Default: which settings of ID-Selection does the evidence choose?
#
# The paper's public material leaves knobs open: how a pick lowers the other scores, which importance comes first, what
# gamma is, by which features tokens are alike. The rule of `docs/default.md` was written before its questions were
# asked. This notebook follows it: a first round over update rules and importance scores, a second over gamma and
# features for the best of them, on the validation split alone, and then the choice. `make default` runs it.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
data = "data/scenes"  # folder or table of questions, or lmms:TASK
split = "validation"  # split of the data set; hyper-parameters are chosen on validation alone
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
batch = 50  # questions at a time
budgets = [192, 128, 64, 32, 16]  # visual tokens kept
updates = ["multiply", "subtract"]  # how a pick lowers the other scores
alone = ["saliency", "relevance", "saliency-relevance"]  # scores that read no attention of the language model
asking = ["instruction", "unified"]  # scores that do
instructions = ["words@0", "words@1", "words@2", "last@1", "last@2"]  # their query tokens and layer
gammas = [5.0, 10.0, 20.0, 40.0, 80.0, "auto"]  # sharpness of the suppression, in the second round
features = ["projector", "encoder"]  # by which features tokens are alike, in the second round
model_layers = 32  # layers of the language model on whose shapes FLOPs are equal: those of LLaVA-1.5-7B
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figure
tables_dir = "results/tables"  # folder for the tables

# %%
import time
from itertools import product

started = time.perf_counter()

import pandas as pd
from IPython.display import Markdown, display

from idsel_core import IMPORTANCE, IDSelection
from idsel_core.scores.registry import Combination
from idsel_core.study.dataset import FULL
from idsel_core.study.knobs import instruction_knobs
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import default_rule, tables, theme
from idsel_core.study.report.default_figure import default_figure
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()
IMPORTANCE["saliency-relevance"] = Combination("saliency", "relevance")

# %% [markdown]
# ## First round: update rule and importance
#
# At gamma 20, with projector features.

# %%
scores = [(name, instructions[0]) for name in alone] + list(product(asking, instructions))
settings = [
    {
        "update": update,
        "importance": importance,
        **instruction_knobs(where),
        "gamma": 20.0,
        "features": "projector",
    }
    for update, (importance, where) in product(updates, scores)
]
study = open_study(split, limit=questions, backbone=backbone, data=data, device=device, dtype=dtype)
results, job = Results(project_path(results_dir)), study.named("14_default")
methods = [IDSelection(budget, **setting) for setting, budget in product(settings, budgets)]
first = study.run([FULL, *methods], batch=batch, resume=results.resume_folder(f"{job}-1"))
tokens = int(first["tokens_before"].max())

# %% [markdown]
# ## Second round: gamma and features
#
# For the setting of highest measure among those that need no image-text companion, and among all.

# %%
best = {}
for companions in (False, True):
    ranking = default_rule.rank_settings(first, tokens, model_layers, companions, resamples)
    best[companions] = ranking.table.loc[ranking.leader]
display(pd.DataFrame(best).T[[*default_rule.BY, "mean"]])
again = [
    {**setting, "gamma": gamma, "features": space}
    for setting in settings
    for leader in pd.DataFrame(best.values()).drop_duplicates(list(default_rule.BY)).itertuples()
    if (setting["update"], setting["importance"]) == (leader.update, leader.importance)
    and leader.instruction in ("-", f"{setting['instruction_tokens']}@{setting['instruction_layer']}")
    for gamma, space in product(gammas, features)
    if (gamma, space) != (20.0, "projector")
]
methods = [IDSelection(budget, **setting) for setting, budget in product(again, budgets)]
second = study.run(methods, batch=batch, resume=results.resume_folder(f"{job}-2"))

# %%
names = ("backbone", "data", "split", "questions", "device", "dtype", "batch", "budgets", "updates", "alone", "asking")
names += ("instructions", "gammas", "features", "model_layers")
parameters = {name: globals()[name] for name in names}
rows = pd.concat([first, second], ignore_index=True)
results.write(job, rows, provenance(parameters, study.files, device=device, started=started))
rows = results.frame(job)
drawn_from = results.origin(job, resamples=resamples)

# %% [markdown]
# ## The choice
#
# Settings by their mean share of full performance. *Gap* is the difference from the setting of highest measure at equal
# FLOPs: a score that reads *l* layers of the language model stands beside settings that keep as many tokens more as
# those layers would have paid for. Settings whose interval includes 0 are tied; among these the rule takes the fewest
# FLOPs, then the fewest departures from the published reading (subtract, gamma 20, projector features), then gamma
# "auto", then the smallest gap.

# %%
rankings = {
    name: default_rule.rank_settings(rows, tokens, model_layers, companions, resamples)
    for name, companions in (("without", False), ("with", True))
}
for name, ranking in rankings.items():
    shown = default_rule.shown_table(ranking)
    said, best = default_rule.about_choice(ranking), default_rule.mark_default(ranking, shown)
    text = tables.save_table(shown, project_path(tables_dir), f"default_{name}", said, origin=drawn_from, best=best)
    display(Markdown(f"### {name.capitalize()} an image-text companion\n\n{text}"))

# %%
theme.save(default_figure(rankings["with"], rows), project_path(figures_dir), study.named("14_default"), drawn_from)

# %% [markdown]
# ## Conclusion
#
# What the rule chooses, and what the class says today:

# %%
Markdown(
    "\n".join(f"- {name} a companion: {default_rule.about_choice(ranking)}" for name, ranking in rankings.items())
    + f"\n- `IDSelection()` is {IDSelection(budget=16)!r}."
)
