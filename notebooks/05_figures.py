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
# What do the ablations show? Everything here is drawn from the stored rows and times, without the model and without a
# GPU. How the numbers come about is shown by the notebooks that asked the questions.

# %% tags=["parameters"]
resamples = 2000  # bootstrap resamples of the intervals
table_budgets = [192, 128, 64, 32, 16]  # budgets of the tables
shown_budgets = [64, 32, 16]  # budgets of the detailed figures of the comparison
results_dir = "results/rows"  # folder of the stored rows
times_dir = "results/times"  # folder of the stored times
figures_dir = "results/figures"  # folder for the figures
tables_dir = "results/tables"  # folder for the tables

# %%
import pandas as pd
from IPython.display import Markdown

from idsel_core.loading.random_models import architecture_file
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import (
    ablation_figures,
    ablation_sentences,
    classes,
    comparison,
    comparison_figures,
    comparison_sentences,
    comparison_tables,
    efficiency,
    efficiency_figures,
    efficiency_tables,
    tables,
    theme,
    two_turns,
)
from idsel_core.study.report.settings import own_positions
from idsel_core.study.store.provenance import origin
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times

# %%
theme.use_theme()
results, times = Results(project_path(results_dir)), Times(project_path(times_dir))
figures, texts = project_path(figures_dir), project_path(tables_dir)

# %% [markdown]
# ## The embedded backbone while it was trained

# %%
log = MODEL.parent / "train.log.jsonl"
training = ablation_figures.training_figure(pd.read_json(log, lines=True))
theme.save(training, figures, "training", origin([log]))

# %% [markdown]
# ## Sharpness of the suppression and update rule (validation split)

# %%
gamma = results.frame("02_ablation_gamma")
drawn_from = results.origin("02_ablation_gamma", resamples=resamples)
theme.save(ablation_figures.gamma_figure(gamma, resamples), figures, "gamma", drawn_from)
Markdown(ablation_sentences.about_gamma(gamma, resamples=resamples))

# %% [markdown]
# ## Importance (validation split)

# %%
importance = results.frame("03_ablation_importance")
drawn_from = results.origin("03_ablation_importance", resamples=resamples)
theme.save(ablation_figures.importance_figure(importance, resamples), figures, "importance", drawn_from)
Markdown(ablation_sentences.about_importance(importance, resamples=resamples))

# %% [markdown]
# ## Budget and controls (test split)

# %%
budget = results.frame("04_ablation_budget")
drawn_from = results.origin("04_ablation_budget", resamples=resamples)
compact = own_positions(budget)
theme.save(ablation_figures.budget_figure(compact, resamples), figures, "budget", drawn_from)
theme.save(ablation_figures.question_types_figure(compact, resamples), figures, "question_types", drawn_from)
theme.save(ablation_figures.objects_figure(compact), figures, "objects", drawn_from)
positions = budget[budget["method"].isin(["idselection", "uniform"])]
said = ablation_sentences.about_budget(compact, resamples=resamples)
tables.save_text(said, texts, "budget_said", drawn_from)
Markdown("\n\n".join([said, ablation_sentences.about_positions(positions, resamples)]))

# %% [markdown]
# ## The table
#
# Accuracy in percent by question type, and the share of full performance with its 95 % interval.

# %%
table = tables.method_table(compact, table_budgets, resamples)
Markdown(tables.save_table(table, texts, "budget", f"{theme.questions_asked(compact)}.", origin=drawn_from))

# %% [markdown]
# ## Accuracy of the embedded backbone
#
# With all tokens, with 16 random ones, and with no image; the split *hard* has tiny objects and words.

# %%
both = pd.concat([compact, results.frame("11_hard_split")], ignore_index=True)
ends = both["method"].isin(["full", "no-image"]) | ((both["method"] == "random") & (both["budget"] == 16))
accuracy = tables.accuracy_table(both[ends])
Markdown(tables.save_table(accuracy, texts, "accuracy", origin=results.origin("04_ablation_budget", "11_hard_split")))

# %% [markdown]
# ## Two turns (validation split)
#
# What a second question loses where tokens were picked for the first one.

# %%
turns = results.frame("12_two_turns")
drawn_from = results.origin("12_two_turns", resamples=resamples)
asked = f"{theme.questions_asked(turns)}."
Markdown(tables.save_table(two_turns.two_turns_table(turns, resamples), texts, "two_turns", asked, origin=drawn_from))

# %% [markdown]
# ## All methods against each other (test split)

# %%
stored = comparison.read_comparison(results)
compared, jobs = comparison.by_title(stored), list(stored["job"].unique())
drawn_from = results.origin(*jobs, resamples=resamples, shown_budgets=shown_budgets)
theme.save(comparison_figures.ranking_figure(compared, resamples), figures, "comparison", drawn_from)
theme.save(comparison_figures.cost_figure(compared, resamples), figures, "comparison_cost", drawn_from)

# %%
versus_each = comparison.versus_each(compared, resamples=resamples)
gaps = comparison_figures.versus_each_figure(versus_each, shown_budgets)
theme.save(gaps, figures, "comparison_versus_each", drawn_from)
by_type = comparison_figures.question_types_figure(compared, shown_budgets[-1], resamples)
theme.save(by_type, figures, "comparison_question_types", drawn_from)
Markdown(comparison_sentences.about_comparison(versus_each))

# %%
graded = comparison.by_difficulty(compared)
difficulty = comparison_figures.difficulty_figure(graded, shown_budgets, resamples)
theme.save(difficulty, figures, "comparison_difficulty", drawn_from)
said = comparison_sentences.about_difficulty(graded, shown_budgets, resamples=resamples)
Markdown(tables.save_text(said, texts, "comparison_difficulty", drawn_from))

# %% [markdown]
# ## Class by class, and inside the language model at equal FLOPs

# %%
settings, noted = classes.by_setting(stored), f"{theme.questions_asked(stored)}."
gaps = classes.class_gaps(settings, table_budgets, 32, resamples)
said = tables.save_text(classes.about_classes(gaps), texts, "comparison_said", drawn_from)
lost = tables.save_table(classes.classes_table(gaps), texts, "comparison_classes", noted, origin=drawn_from)
inside = classes.inside_table(settings, resamples=resamples)
Markdown("\n\n".join([said, lost, tables.save_table(inside, texts, "comparison_inside", noted, origin=drawn_from)]))

# %%
notes = [f"{theme.questions_asked(compared)}.", *comparison.ranking_notes(compared["method"])]
shares = comparison_tables.shares_table(compared, shown_budgets, resamples)
tables.save_table(shares, texts, "comparison_shares", *notes, origin=drawn_from)
missing = comparison_tables.missing_table(results.provenance("06_comparison")["parameters"]["missing"])
tables.save_table(missing, texts, "comparison_missing", origin=drawn_from)
table = comparison_tables.comparison_table(compared, table_budgets, resamples)
Markdown(tables.save_table(table, texts, "comparison", *notes, origin=drawn_from))

# %% [markdown]
# ## Efficiency
#
# FLOPs and measured time; models of full size are counted by their configurations.

# %%
timed = times.frame("08_efficiency")
drawn_from = times.origin("08_efficiency")
theme.save(efficiency_figures.phases_figure(timed), figures, "efficiency_phases", drawn_from)
theme.save(efficiency_figures.scaling_figure(timed), figures, "efficiency_scaling", drawn_from)
if "peers-cpu" in times.jobs():
    alone = efficiency_figures.selection_figure(times.frame("peers-cpu"))
    theme.save(alone, figures, "efficiency_selection", times.origin("peers-cpu"))
front = efficiency.accuracy_against_time(stored, timed, resamples)
drawn_from["results"] |= results.origin(*jobs)["results"]
theme.save(efficiency_figures.pareto_figure(front), figures, "efficiency_front", drawn_from)
tables.save_table(efficiency_tables.ideal_table(timed).round(3), texts, "ideal", origin=times.origin("08_efficiency"))
Markdown(tables.save_text(efficiency_tables.summary(timed), texts, "efficiency", times.origin("08_efficiency")))

# %%
asked = times.provenance("08_efficiency")["parameters"]
costs = efficiency.model_costs(asked["models"], asked["model_text"], "idselection")
files = [architecture_file(name) for name in asked["models"]]
theme.save(efficiency_figures.models_figure(costs), figures, "efficiency_models", origin(files, **asked))
prefills = efficiency.prefills(times.frame("09_sizing"))
fit = efficiency_figures.fit_figure(prefills, efficiency.fit_of(prefills))
theme.save(fit, figures, "sizing", times.origin("09_sizing"))
asked = times.provenance("09_sizing")["parameters"]
claims = efficiency_tables.claims_table(asked["claims"], asked["text_tokens"], "idselection")
claims = efficiency_tables.printed_claims(claims.assign(claimed=asked["claimed"]))
Markdown(tables.save_table(claims, texts, "claims", origin=times.origin("09_sizing")))
