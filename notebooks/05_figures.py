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
committed_dir = "docs/rows"  # folder of committed rows, for jobs that the store does not hold
times_dir = "results/times"  # folder of the stored times
figures_dir = "results/figures"  # folder for the figures
tables_dir = "results/tables"  # folder for the tables

# %%
import pandas as pd
from IPython.display import Markdown

from idsel_core.study.paths import project_path
from idsel_core.study.report import (
    ablation_sentences,
    classes,
    comparison,
    comparison_sentences,
    comparison_tables,
    drawings,
    efficiency_tables,
    ranks,
    tables,
    theme,
    two_turns,
)

# %% [markdown]
# ## The backbones while they were trained

# %%
theme.use_theme()
stored = drawings.Stored(project_path(results_dir), project_path(times_dir), resamples, shown_budgets)
results, times = stored.results, stored.clock
figures, texts = project_path(figures_dir), project_path(tables_dir)


def draw(*names: str) -> None:
    """Draw figures as `idsel figure` does, which knows the same names."""
    for name in names:
        drawings.save(name, stored, figures)


draw("training", "training_smollm2")

# %% [markdown]
# ## Sharpness of the suppression and update rule (validation split)

# %%
draw("gamma")
Markdown(ablation_sentences.about_gamma(results.frame("02_ablation_gamma"), resamples=resamples))

# %% [markdown]
# ## Importance (validation split)

# %%
draw("importance")
Markdown(ablation_sentences.about_importance(results.frame("03_ablation_importance"), resamples=resamples))

# %% [markdown]
# ## Budget and controls (test split)

# %%
draw("budget", "question_types", "objects")
budget, compact = results.frame("04_ablation_budget"), stored.budget
drawn_from = results.origin("04_ablation_budget", resamples=resamples)
positions = budget[budget["method"].isin(["idselection", "uniform"])]
said = ablation_sentences.about_budget(compact, resamples=resamples)
tables.save_text(said, texts, "budget_said", drawn_from)
Markdown("\n\n".join([said, ablation_sentences.about_positions(positions, resamples)]))

# %% [markdown]
# ## The table
#
# Accuracy in percent by question type, and the share of full performance with its 95 % interval. Each table is written
# as Markdown and as LaTeX.

# %%
table = tables.method_table(compact, table_budgets, resamples)
notes = f"{theme.questions_asked(compact)}."
Markdown(tables.save_table(table, texts, "budget", notes, origin=drawn_from, best=tables.best_methods(table)))

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
draw("comparison", "comparison_cost", "comparison_versus_each", "comparison_question_types", "comparison_difficulty")
compared, jobs = stored.compared, list(stored.stored["job"].unique())
drawn_from = results.origin(*jobs, resamples=resamples, shown_budgets=shown_budgets)
graded = comparison_sentences.about_difficulty(stored.graded, shown_budgets, resamples=resamples)
tables.save_text(graded, texts, "comparison_difficulty", drawn_from)
Markdown("\n\n".join([comparison_sentences.about_comparison(stored.versus_each), graded]))

# %% [markdown]
# ## Class by class, and inside the language model at equal FLOPs

# %%
settings, noted = classes.by_setting(stored.stored), f"{theme.questions_asked(stored.stored)}."
gaps = classes.class_gaps(settings, table_budgets, 32, resamples)
said = tables.save_text(classes.about_classes(gaps), texts, "comparison_said", drawn_from)
lost = tables.save_table(classes.classes_table(gaps), texts, "comparison_classes", noted, origin=drawn_from)
inside = classes.inside_table(settings, resamples=resamples)
Markdown("\n\n".join([said, lost, tables.save_table(inside, texts, "comparison_inside", noted, origin=drawn_from)]))

# %%
notes = [f"{theme.questions_asked(compared)}.", *comparison.ranking_notes(compared["method"])]
shares = comparison_tables.shares_table(compared, shown_budgets, resamples)
best = tables.best_methods(shares)
tables.save_table(shares, texts, "comparison_shares", *notes, origin=drawn_from, best=best)
missing = comparison_tables.missing_table(results.provenance("06_comparison")["parameters"]["missing"])
tables.save_table(missing, texts, "comparison_missing", origin=drawn_from)
table = comparison_tables.comparison_table(compared, table_budgets, resamples)
best = tables.best_methods(table)
Markdown(tables.save_table(table, texts, "comparison", *notes, origin=drawn_from, best=best))

# %% [markdown]
# ## Efficiency
#
# FLOPs and measured time; models of full size are counted by their configurations.

# %%
draw("efficiency_phases", "efficiency_scaling", "efficiency_front")
if not drawings.missing("efficiency_selection", stored):
    draw("efficiency_selection")
timed, drawn_from = stored.timed, times.origin("08_efficiency")
ideal = efficiency_tables.ideal_table(timed)
ideal = ideal.round({name: 1 for name in ideal if name.endswith(", ms")})
tables.save_table(ideal, texts, "ideal", origin=drawn_from)
table, said = efficiency_tables.efficiency_table(timed), efficiency_tables.about_measured(timed)
Markdown(tables.save_table(table, texts, "efficiency", said, origin=drawn_from))

# %%
draw("efficiency_models", "sizing")
asked = times.provenance("09_sizing")["parameters"]
claims = efficiency_tables.claims_table(asked["claims"], asked["text_tokens"], "idselection")
claims = efficiency_tables.printed_claims(claims.assign(claimed=asked["claimed"]))
Markdown(tables.save_table(claims, texts, "claims", origin=times.origin("09_sizing")))

# %% [markdown]
# ## Across backbones
#
# From the rows of `make smollm2`, or else from those that are committed.

# %%
committed = drawings.Stored(project_path(committed_dir), project_path(times_dir), resamples, shown_budgets)
across = next((one for one in (stored, committed) if not drawings.missing("across_ranks", one)), None)
said = "Left out: the figures across backbones, whose rows `make smollm2` makes."
if across is not None:
    for name in ("across_accuracy", "across_ranks"):
        drawings.save(name, across, figures)
    said = ranks.about_ranks(across.ranked, resamples=resamples)
Markdown(said)
