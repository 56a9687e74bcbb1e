# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Harder images: does the picking hold where objects are tiny?
#
# The split *hard* shows seven to ten tiny objects and a word in each image, several times as crowded as the test split.
# ID-Selection and its controls answer the same questions at two budgets.

# %% tags=["parameters"]
split = "hard"  # split of the data set
questions = 0  # about how many questions, 0 for all
budgets = [64, 16]  # visual tokens kept
methods = ["idselection", "topk", "diversity", "random", "uniform", "downsample"]  # ID-Selection and its controls
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time

started = time.perf_counter()

import matplotlib.pyplot as plt
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import ablation_sentences, tables, theme
from idsel_core.study.report.bootstrap import share_of_full
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Ask

# %%
swept = [get_method(name, budget=budget) for name in methods for budget in budgets]
study = open_study(split, limit=questions)
results = Results(project_path(results_dir))
rows = study.run([FULL, BLIND, *swept], resume=results.resume_folder("11_hard_split"))
parameters = {name: globals()[name] for name in ("split", "questions", "budgets", "methods")}
files = [*study.split.files, MODEL / "model.safetensors"]
results.write("11_hard_split", rows, provenance(parameters, files, started=started))
rows = results.frame("11_hard_split")

# %% [markdown]
# ## What it shows
#
# The share of full performance with its 95 % interval over the questions. Methods are sorted by their share at the
# smallest budget.

# %%
shares = share_of_full(rows, ["method", "budget"], resamples=resamples)
order = list(shares[shares["budget"] == budgets[-1]].sort_values("share")["method"])
figure, axes = plt.subplots(
    1, len(budgets), figsize=(theme.PAGE, 2.4), sharey=True, squeeze=False, layout="constrained"
)
for budget, axis in zip(budgets, axes[0], strict=True):
    table = shares[shares["budget"] == budget].set_index("method").loc[order]
    errors = [table["share"] - table["low"], table["high"] - table["share"]]
    axis.errorbar(table["share"], range(len(order)), xerr=errors, fmt="o")
    axis.set_yticks(range(len(order)), [theme.label(method) for method in order])
    axis.set_title(f"{budget} tokens")
    theme.percent_axis(axis.xaxis)
    axis.set_xlabel("share of full performance")
figure.set_label("Share of full performance of each method on the hard split, a panel a budget")
theme.add_note(figure, theme.questions_asked(rows))
drawn_from = results.origin("11_hard_split", resamples=resamples)
theme.save(figure, project_path(figures_dir), "11_hard_split", drawn_from)

# %%
Markdown(tables.accuracy_table(rows).to_markdown(index=False))

# %% [markdown]
# ## Conclusion
#
# Where objects are tiny, methods that spread their tokens evenly leave few of them on each object, and methods that
# choose by content can follow the objects. Whether that shows, and whether importance or diversity does the work, is
# for the differences to say. What the rows say:

# %%
Markdown(ablation_sentences.about_budget(rows, resamples=resamples))
