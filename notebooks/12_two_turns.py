# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two turns: do the tokens that were picked for one question answer the next one?
#
# A conversation that goes on from the cache of its first turn reads the tokens that were picked for the first question.
# Here each question is asked after another one about the same image: with those tokens, with tokens picked anew for
# itself, and with all tokens. The first question was answered by the same method before.
#
# The embedded backbone was trained on single questions, so an earlier turn in the prompt confuses it, also with all
# tokens. The same is therefore asked once more without the earlier turn, as after cropping the cache to the image:
# there the picks alone make the difference.

# %% tags=["parameters"]
split = "validation"  # split of the data set
questions = 100  # about how many questions, 0 for all; each is asked after another one about the same image
budgets = [32, 16]  # visual tokens kept
methods = ["idselection", "cdpruner", "topk", "diversity"]  # the last one never looks at the question
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time

started = time.perf_counter()

import matplotlib.pyplot as plt
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.dataset import FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import palette, theme, two_turns
from idsel_core.study.report.bootstrap import mean_scores
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from idsel_core.study.two_turns import ALONE, ANEW, KEPT, ask_second_questions, pair_questions

theme.use_theme()

# %% [markdown]
# ## Ask

# %%
swept = [get_method(name, budget=budget) for name in methods for budget in budgets]
study = open_study(split, limit=questions)
rows = ask_second_questions(study, [FULL, *swept], pair_questions(study.split.questions))

# %%
parameters = {name: globals()[name] for name in ("split", "questions", "budgets", "methods")}
files = [*study.split.files, MODEL / "model.safetensors", MODEL / "companion" / "model.safetensors"]
results = Results(project_path(results_dir))
results.write("12_two_turns", rows, provenance(parameters, files, started=started))
rows = results.frame("12_two_turns")
drawn_from = results.origin("12_two_turns", resamples=resamples)

# %% [markdown]
# ## What it shows
#
# Accuracy of the second questions with its 95 % interval; the grey line is all tokens.

# %%
means = mean_scores(rows, ["method", "budget", "conversation"], resamples=resamples)
figure, axes = plt.subplots(
    2, len(budgets), figsize=(theme.PAGE, 3.6), sharey=True, squeeze=False, layout="constrained"
)
for left_out, line in zip((ALONE, ""), axes, strict=True):
    whole = means[(means["method"] == FULL) & (means["conversation"] == ANEW + left_out)]["mean"].item()
    for budget, axis in zip(budgets, line, strict=True):
        axis.axvline(whole, color=palette.FAINT)
        for shift, picks, said, marker in ((0.15, KEPT, "first question", "o"), (-0.15, ANEW, "question itself", "s")):
            here = (means["budget"] == budget) & (means["conversation"] == picks + left_out)
            table = means[here].set_index("method").loc[methods]
            errors = [table["mean"] - table["low"], table["high"] - table["mean"]]
            places = [place + shift for place in range(len(methods))]
            axis.errorbar(table["mean"], places, xerr=errors, fmt=marker, label=f"picks of the {said}")
        axis.set_yticks(range(len(methods)), [theme.label(method) for method in methods])
        axis.set_title(f"{budget} tokens, {two_turns.SETTINGS[left_out]}")
        theme.percent_axis(axis.xaxis)
for axis in axes[1]:
    axis.set_xlabel("accuracy of second questions")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
figure.set_label("Accuracy of second questions with picks of the first question and with picks of their own")
theme.add_note(figure, theme.questions_asked(rows))
theme.save(figure, project_path(figures_dir), "12_two_turns", drawn_from)

# %%
Markdown(two_turns.two_turns_table(rows, resamples).to_markdown(index=False))

# %% [markdown]
# ## Conclusion
#
# Methods that never look at the question pick the same tokens for both, so going on from the cache costs them nothing.
# Those that do may serve the first question at the cost of the next one. Where picks of its own are above those of the
# first, pick anew, from encodings that are kept: `prune(..., keep_encodings=1)`. What the rows say:

# %%
Markdown(two_turns.about_two_turns(rows, resamples))
