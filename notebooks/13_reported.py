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
# # Reported beside measured
#
# What papers report (`data/reported`), and the rows of a store beside it. Papers follow different protocols: other
# benchmarks, prompts, variants of a metric. So each protocol has a table of its own, and a measured score stands beside
# a reported one only where backbone, benchmark, method, budget and variant of the metric are the same. An empty store
# leaves the reported numbers alone.

# %% tags=["parameters"]
backbone = "LLaVA-1.5-7B"  # as papers call it
protocols = ["cdpruner", "sparsevlm", "mmtok", "dcp-prune"]  # protocols to show, each in a table of its own
budgets = [576, 128, 64, 32, 16]  # visual tokens to show
jobs = []  # jobs whose rows are shown, where a method was asked with several settings of its knobs; [] for all
resamples = 2000  # bootstrap resamples of the intervals of measured scores
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figure

# %%
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display

from idsel_core.study.paths import project_path
from idsel_core.study.report import theme
from idsel_core.study.report.reported import (
    REPORTED,
    called,
    mean_over_benchmarks,
    measured_scores,
    not_comparable,
    read_reported,
    set_beside,
)
from idsel_core.study.store.provenance import origin
from idsel_core.study.store.results import Results

theme.use_theme()

# %%
reported = read_reported()
reported = reported[reported["backbone"] == backbone]
results = Results(project_path(results_dir))
rows = pd.concat(map(results.frame, jobs or results.jobs())) if results.jobs() else pd.DataFrame(columns=["backbone"])
others = sorted(rows["backbone"].unique())
measured = measured_scores(rows[rows["backbone"].map(called) == backbone], resamples)
f"{len(reported)} reported numbers of {backbone}, {len(measured)} measured; backbones in the store: {others or 'none'}"

# %% [markdown]
# ## One table a protocol
#
# Where something was measured, it stands behind the reported number as *reported / measured*.

# %%
for protocol in protocols:
    table = set_beside(reported[reported["protocol"] == protocol], measured)
    table = table[table["tokens"].isin(budgets) & (table["benchmark"] != "average")]
    text = table["value"].map("{:g}".format)
    table["text"] = text.where(table["measured"].isna(), text + table["measured"].map(" / {:.1f}".format))
    table["benchmark"] += table["metric"].map(lambda metric: "" if metric == "accuracy" else f" ({metric})")
    wide = table.pivot(index=["tokens", "method", "paper"], columns="benchmark", values="text").fillna("")
    wide = wide.sort_index(ascending=False).rename(index=theme.label, level="method").reset_index()
    display(Markdown(f"### Protocol {protocol}\n\n{wide.to_markdown(index=False)}"))

# %% [markdown]
# ## Means as papers print them
#
# Shares of full performance, a panel a protocol: the sets of benchmarks differ, so heights of different panels must not
# be compared.

# %%
means = reported[(reported["benchmark"] == "average") & (reported["unit"] == "percent of full")]
means = means[means["tokens"] > 1].sort_values("tokens")
style = theme.styles(sorted(means["method"].unique()))
panels = sorted(means["protocol"].unique())
lines = -(-len(panels) // 3) or 1
figure, axes = plt.subplots(
    lines, 3, figsize=(theme.PAGE, 2.2 * lines), sharex=True, sharey=True, squeeze=False, layout="constrained"
)
for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
for protocol, axis in zip(panels, axes.flat, strict=False):
    part = means[means["protocol"] == protocol]
    for method, line in part.groupby("method"):
        axis.plot(line["tokens"], line["value"], label=theme.label(method), **style[method])
    axis.set_title(protocol)
    theme.budget_axis(axis, means["tokens"], "visual tokens")
    axis.legend(fontsize=theme.points(0.7), loc="lower right")
axes[0, 0].set_ylabel("reported share of full, %")
figure.set_label("Mean shares of full performance as papers report them, a panel a protocol")
drawn_from = origin(sorted(REPORTED.glob("*.csv")), backbone=backbone)
theme.save(figure, project_path(figures_dir), "13_reported", drawn_from)

# %% [markdown]
# ## Means of what was measured
#
# The mean over benchmarks of score / score with all tokens, over those that were asked with every method and budget.
# Which benchmarks these are is a choice, and each paper has its own; so it stands beside no reported mean.

# %%
mine = rows[rows["backbone"].map(called) == backbone]
said = f"The store holds no rows of {backbone} with all tokens, so there is no mean."
if len(mine) and (mine["method"] == "full").any():
    averages = mean_over_benchmarks(mine, resamples).round(1)
    over, without = averages.pop("benchmarks")[0], averages.pop("left out")[0]
    said = f"{averages.to_markdown(index=False)}\n\nPercent, over {over}; left out: {without or 'none'}."
Markdown(said)

# %% [markdown]
# ## What must not be compared
#
# Measured scores whose benchmark papers report in another variant of the metric.

# %%
apart = not_comparable(reported[reported["protocol"].isin(protocols)], measured)
Markdown(
    apart.round(1).to_markdown(index=False) if len(apart) else "Nothing was measured that would have to stay apart."
)
