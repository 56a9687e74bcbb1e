# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # All figures and tables, from the stored results
#
# What do the ablations show? Everything here is drawn from the result store, without the model and without a GPU.

# %% tags=["parameters"]
resamples = 2000  # bootstrap resamples of the intervals
table_budgets = [192, 128, 64, 32, 16]  # budgets of the tables
shown_budgets = [64, 32, 16]  # budgets of the detailed figures of the comparison
results_dir = "results"  # folder of the result store
figures_dir = "figures"  # folder for the figures
tables_dir = "tables"  # folder for the tables

# %%
import os
from pathlib import Path

os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "pyproject.toml").exists()))

import pandas as pd
from IPython.display import Markdown

from idsel_core.study.report import ablation_sentences as words
from idsel_core.study.report import comparison, efficiency
from idsel_core.study.report import theme as figures
from idsel_core.study.store.provenance import origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

figures.use_theme()
results = Results(results_dir)

# %% [markdown]
# ## The embedded backbone while it was trained

# %%
log = pd.read_json("data/backbone/train.log.jsonl", lines=True)
figures.save(figures.training_figure(log), figures_dir, "training", origin(["data/backbone/train.log.jsonl"]))

# %% [markdown]
# ## Sharpness of the suppression and update rule (validation split)

# %%
gamma = results.frame("02_ablation_gamma")
drawn_from = results.origin("02_ablation_gamma", resamples=resamples)
figures.save(figures.gamma_figure(gamma, resamples), figures_dir, "gamma", drawn_from)
Markdown(words.about_gamma(gamma, resamples=resamples))

# %% [markdown]
# ## Importance (validation split)

# %%
importance = results.frame("03_ablation_importance")
drawn_from = results.origin("03_ablation_importance", resamples=resamples)
figures.save(figures.importance_figure(importance, resamples), figures_dir, "importance", drawn_from)
Markdown(words.about_importance(importance, resamples=resamples))

# %% [markdown]
# ## Budget and controls (test split)

# %%
budget = results.frame("04_ablation_budget")
drawn_from = results.origin("04_ablation_budget", resamples=resamples)
compact = budget[(budget["positions"] == "compact") & (budget["split"] == budget["split"].iloc[0])]
figures.save(figures.budget_figure(compact, resamples), figures_dir, "budget", drawn_from)
Markdown(words.about_budget(compact, resamples=resamples))

# %%
figures.save(figures.question_types_figure(compact, resamples), figures_dir, "question_types", drawn_from)
figures.save(figures.objects_figure(compact), figures_dir, "objects", drawn_from)

# %%
positions = budget[(budget["split"] == budget["split"].iloc[0]) & budget["method"].isin(["idselection", "uniform"])]
Markdown(words.about_positions(positions, resamples))

# %% [markdown]
# ## The table
#
# Accuracy in percent by question type, and the share of full performance with its 95 % interval.

# %%
table = figures.method_table(compact, table_budgets, resamples)
Markdown(figures.save_table(table, tables_dir, "budget"))

# %% [markdown]
# ## Accuracy of the embedded backbone
#
# With all tokens, with 16 random ones, and with no image; the split *hard* has tiny objects and words.

# %%
ends = budget["method"].isin(["full", "no-image"]) | ((budget["method"] == "random") & (budget["budget"] == 16))
accuracy = figures.accuracy_table(budget[ends & (budget["positions"] == "compact")])
Markdown(figures.save_table(accuracy, tables_dir, "accuracy"))

# %% [markdown]
# ## All methods against each other (test split)

# %%
compared = comparison.by_title(results.frame("06_comparison"))
drawn_from = results.origin("06_comparison", resamples=resamples, shown_budgets=shown_budgets)
figures.save(comparison.ranking_figure(compared, resamples), figures_dir, "comparison", drawn_from)
figures.save(comparison.cost_figure(compared, resamples), figures_dir, "comparison_cost", drawn_from)

# %%
versus_each = comparison.versus_each(compared, resamples=resamples)
figures.save(comparison.versus_each_figure(versus_each, shown_budgets), figures_dir, "comparison_duels", drawn_from)
question_types = comparison.question_types_figure(compared, shown_budgets[-1], resamples)
figures.save(question_types, figures_dir, "comparison_question_types", drawn_from)
Markdown(comparison.about_comparison(versus_each))

# %%
split = comparison.split_by_downsampling(compared)
figures.save(comparison.split_figure(split, shown_budgets, resamples), figures_dir, "comparison_split", drawn_from)
Markdown(comparison.about_split(split, shown_budgets, resamples=resamples))

# %%
table = comparison.comparison_table(compared, table_budgets, resamples)
figures.save_table(comparison.shares_table(compared, shown_budgets, resamples), tables_dir, "comparison_shares")
missing = comparison.missing_table(results.provenance("06_comparison")["parameters"]["missing"])
figures.save_table(missing, tables_dir, "comparison_missing")
Markdown(figures.save_table(table, tables_dir, "comparison"))

# %% [markdown]
# ## Efficiency
#
# FLOPs and measured time; models of full size are counted by their configurations.

# %%
times = Times(results_dir)
timed, prefills = times.frame("08_efficiency"), efficiency.prefills(times.frame("09_sizing"))
drawn_from = times.origin("08_efficiency")
figures.save(efficiency.phases_figure(timed), figures_dir, "efficiency_phases", drawn_from)
figures.save(efficiency.scaling_figure(timed), figures_dir, "efficiency_scaling", drawn_from)
figures.save(efficiency.selection_figure(timed), figures_dir, "efficiency_selection", drawn_from)
front = efficiency.accuracy_against_time(results.frame("06_comparison"), timed, resamples)
drawn_from["results"] |= results.origin("06_comparison")["results"]
figures.save(efficiency.pareto_figure(front), figures_dir, "efficiency_front", drawn_from)
fit = efficiency.fit_figure(prefills, efficiency.fit_of(prefills))
figures.save(fit, figures_dir, "sizing", times.origin("09_sizing"))
asked = times.provenance("08_efficiency")["parameters"]
costs = efficiency.model_costs("data/configs", asked["models"], asked["model_text"], "idselection")
files = [f"data/configs/{name}.json" for name in asked["models"]]
figures.save(efficiency.models_figure(costs), figures_dir, "efficiency_models", origin(files, **asked))
asked = times.provenance("09_sizing")["parameters"]
claims = efficiency.claims_table("data/configs", asked["claims"], asked["text_tokens"], "idselection")
claims = efficiency.printed_claims(claims.assign(claimed=asked["claimed"]))
figures.save_table(claims, tables_dir, "claims")
figures.save_table(efficiency.ideal_table(timed).round(3), tables_dir, "ideal")
Markdown(figures.save_text(efficiency.summary(timed), tables_dir, "efficiency"))
