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
# # More measures: do positions, bars or adaptive budgets matter?
#
# Four small studies on the validation split, each of pairs of runs that ask the same questions: original positions of
# the kept tokens against compact ones; grey bars that may be kept against bars that may not; how many directions the
# kept features span; and a budget that adapts to the image against a fixed one of the same sum. No default was chosen
# by them.

# %% tags=["parameters"]
split = "validation"  # split of the data set
questions = 280  # about how many questions, 0 for all
positional = 0  # about how many questions for the positions, of the types below alone, 0 for all
types = ["position", "relation", "counting"]  # question types for the positions
budgets = [64, 32, 16]  # visual tokens kept
methods = ["idselection", "topk", "diversity", "mmr"]  # methods beside bars
ranked = ["idselection", "topk", "diversity", "random", "uniform", "divprune", "cdpruner", "mmr"]  # whose rank is taken
bars = 0.25  # share of the height of an image that its bars take
demands = ["energy", "importance", "both"]  # what an adaptive budget follows
choosers = ["idselection", "topk"]  # methods that choose the tokens under an adaptive budget
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures
tables_dir = "results/tables"  # folder for the tables

# %%
import time
from dataclasses import replace

started = time.perf_counter()

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.bars import WithoutBars, with_bars
from idsel_core.study.dataset import FULL
from idsel_core.study.encodings import encode_split
from idsel_core.study.kept_tokens import kept_tokens
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import project_path
from idsel_core.study.report import palette, tables, theme
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.report.pairs import paired_table
from idsel_core.study.sources.split import first_of_each_type
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask
#
# For the bars, each image is pressed flat and stands between two grey bars, as in models that pad images to a square.

# %%
study = open_study(split, limit=questions)
plain = [get_method(name, budget=budget) for name in methods for budget in budgets]
whole = open_study(split)
asked = whole.split.questions
asked = first_of_each_type(asked[asked["question_type"].isin(types)].reset_index(drop=True), positional)
placed = replace(whole, split=replace(whole.split, questions=asked))
moved = [get_method(name, budget=budget) for name in ("idselection", "uniform") for budget in budgets]
of_positions = [replace(placed, positions=positions).run(moved) for positions in ("compact", "keep")]

# %%
barred = with_bars(study.split, bars)
barred = replace(study, split=barred, encoded=encode_split(study.backbone, study.processor, barred))
kept = barred.run([FULL, *plain])
without = [WithoutBars(method.budget, inner=method, share=bars) for method in plain]
left_out = [barred.run([method]).assign(method=method.inner.name, knobs="without bars") for method in without]

# %%
adaptive = [
    get_method("adaptive", budget=budget, demand=demand, chooser=chooser)
    for budget in budgets
    for demand in demands
    for chooser in choosers
]
fixed = [get_method(chooser, budget=budget) for chooser in choosers for budget in budgets]
of_budgets = study.run([FULL, *fixed, *adaptive])

# %%
names = ("split", "questions", "positional", "types", "budgets", "methods", "bars", "demands", "choosers")
parameters = {name: globals()[name] for name in names}
results = Results(project_path(results_dir))
of_positions = [part.assign(split=f"{split}, positions") for part in of_positions]
rows = pd.concat([*of_positions, kept, *left_out, of_budgets], ignore_index=True)
results.write("17_more_measures", rows, provenance(parameters, study.files, started=started))
drawn_from = results.origin("17_more_measures", resamples=resamples)
rows, texts = results.frame("17_more_measures"), project_path(tables_dir)

# %% [markdown]
# ## Original positions or compact ones?
#
# The outcome says where original positions are, after Holm's correction over the table.

# %%
here = rows[rows["split"].str.endswith(", positions")].assign(method=lambda one: one["method"].map(theme.label))
table = paired_table(here, ["method", "budget", "question_type"], "positions", "compact", "keep", resamples)
Markdown(tables.save_table(table, texts, "positions", origin=drawn_from))

# %% [markdown]
# ## May bars be kept?

# %%
here = rows[rows["dataset"].str.endswith(", bars") & (rows["method"] != FULL)]
here = here.assign(bars=here["knobs"].eq("without bars").map({True: "left out", False: "may be kept"}))
table = paired_table(here, ["method", "budget"], "bars", "may be kept", "left out", resamples)
shares = kept_tokens(barred, plain, bars).groupby(["method", "budget"])["on_bars"].mean()
place = pd.MultiIndex.from_frame(table[["method", "budget"]])
table = table.assign(method=table["method"].map(theme.label))
table.insert(2, "kept on bars", [f"{100 * share:.1f}" for share in shares.loc[place]])
all_tokens = rows[rows["dataset"].str.endswith(", bars") & (rows["method"] == FULL)]["correct"].mean()
said = f"With all tokens, bars among them, {100 * all_tokens:.1f} % are right; bars are {100 * bars:g} % of an image."
Markdown(tables.save_table(table, texts, "bars", said, f"{theme.questions_asked(here)}.", origin=drawn_from))

# %% [markdown]
# ## How many directions do the kept features span?
#
# The effective rank of the kept features: the exponential of the entropy of their singular values.

# %%
chosen = [get_method(name, budget=budget) for name in ranked for budget in budgets]
ranks = kept_tokens(study, chosen)
wide = ranks.pivot_table(index="method", columns="budget", values="rank", sort=False)[budgets]
spread = ranks.pivot_table(index="method", columns="budget", values="rank", aggfunc="sem", sort=False)[budgets]
shown = wide.map("{:.1f}".format) + " ± " + (1.96 * spread).map("{:.1f}".format)
shown.columns = [f"{budget:g} tokens" for budget in budgets]
shown = shown.rename(index=theme.label).reset_index()
said = f"{ranks['question_id'].nunique()} questions; ± 1.96 standard errors of the mean over questions."
Markdown(tables.save_table(shown, texts, "ranks", said, origin=drawn_from))

# %% [markdown]
# ## A budget that adapts to the image, at the same sum
#
# Of each batch of questions the sum of the tokens is exactly that of the fixed budget. *energy* with top-K is the
# criterion of E-AdaPrune with importance alone.

# %%
here = rows[(rows["split"] == split) & ~rows["dataset"].str.endswith(", bars") & (rows["method"] != FULL)]
told = here["knobs"].fillna("")
adapts = here["method"] == "adaptive"
demand = told.str.extract(r"demand='(\w+)'", expand=False).fillna("energy").where(adapts, "fixed")
chooser = told.str.extract(r"chooser='(\w+)'", expand=False).fillna("idselection").where(adapts, here["method"])
here = here.assign(demand=demand, chooser=chooser.map(theme.label))
pairs = pd.concat([here[here["demand"].isin(["fixed", name])].assign(follows=name) for name in demands])
pairs = pairs.assign(kind=pairs["demand"].eq("fixed").map({True: "fixed", False: "adaptive"}))
table = paired_table(pairs, ["chooser", "follows", "budget"], "kind", "fixed", "adaptive", resamples)
kept = pairs[pairs["kind"] == "adaptive"].groupby(["chooser", "follows", "budget"])["tokens_kept"]
place = pd.MultiIndex.from_frame(table[["chooser", "follows", "budget"]])
table.insert(
    3, "tokens", [f"{one.mean():.1f} ({one.min():.0f} to {one.max():.0f})" for one in map(kept.get_group, place)]
)
Markdown(tables.save_table(table, texts, "adaptive", f"{theme.questions_asked(here)}.", origin=drawn_from))

# %%
whole = rows[(rows["split"] == split) & ~rows["dataset"].str.endswith(", bars") & (rows["method"] == FULL)]
shares = share_of_full(pd.concat([whole, here]), ["method", "chooser", "demand", "budget"], resamples=resamples)
names = [theme.label(name) for name in choosers]
size = theme.size("page", 2.6)
figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained", sharey=True, squeeze=False)
looks = palette.of_series(["fixed", *demands])
for axis, name in zip(axes[0], names, strict=True):
    for demand, look in looks.items():
        part = shares[(shares["chooser"] == name) & (shares["demand"] == demand)].sort_values("budget")
        if demand == "fixed":
            theme.plot_band(axis, part, "budget", "share", "fixed", **look)
        else:
            axis.plot(part["budget"], part["share"], "--", label=f"adaptive, by {demand}", **look)
    theme.budget_axis(axis, budgets, "visual tokens kept in the mean")
    theme.percent_axis(axis.yaxis)
    axis.set_title(name)
axes[0, 0].set_ylabel("share of full performance")
axes[0, 0].legend(loc="lower right")
figure.set_label("Share of full performance with fixed budgets and with budgets that adapt to the question")
theme.add_note(figure, theme.questions_asked(here), "band: 95 % bootstrap interval of the fixed budget")
theme.save(figure, project_path(figures_dir), "17_adaptive", drawn_from)

# %% [markdown]
# ## Conclusion
#
# Each table says where two ways differ after its correction. A budget that adapts costs the same in sum, and pays only
# where its outcome is *above*.
