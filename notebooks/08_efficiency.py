# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Efficiency: does the clock follow the tokens?
#
# Fewer visual tokens mean fewer FLOPs, but what is waited for is time. Here both are measured on the device at hand: an
# answer by phase (encode, select, prefill, decode), against the ideal of a prompt that was cut by hand, and with the
# accuracy that the comparison found. Full-size models are counted by their configurations, without weights. Times of a
# CPU say nothing about a GPU; `benchmarks/efficiency.py` measures there.
#
# All that is compared takes turns in one process, on one image of noise and a prompt of random words.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
image_size = []  # height and width of the image in pixels, [] for the size that the model brings all images to
compared = ""  # job of notebook 06 whose accuracies stand beside the times, "" for the backbone's own
device = "cpu"  # as torch names it
dtype = "auto"  # type of the weights, such as "bfloat16"; "auto" takes the model's own
quantisation = ""  # of the language model by bitsandbytes, "int8" or "int4"; "" for none
device_map = ""  # "auto" spreads the model over all GPUs; "" leaves it on device
curve = [384, 288, 192, 128, 64, 32, 16, 8]  # budgets of ID-Selection
budgets = [192, 64, 16]  # budgets of all methods, among those of the comparison
final_budgets = [64, 16]  # budgets that are meant as left at last, too, by methods inside the language model
methods = []  # names of methods, [] for all of the registry
runs = 5  # turns that are measured
ideal_budgets = [192, 64, 16]  # budgets that are compared with a prompt cut by hand
ideal_runs = 31  # turns of this comparison
text_tokens = 24  # tokens of the prompt that are not visual
new_tokens = 4  # tokens decoded after the first one
models = {"llava-1.5-7b": [336, 336], "llava-next-7b": [672, 672]}  # configurations, height and width of an image
model_text = 64  # tokens of their prompts that are not visual
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
times_dir = "results/times"  # folder of the stored times
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from dataclasses import replace

started = time.perf_counter()

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown
from tqdm import tqdm

# %%
from idsel_core import IDSelection, InLLM, get_method, list_methods
from idsel_core.methods import METHODS
from idsel_core.study.backbone_folders import backbone_name, job_name, weight_files
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import project_path
from idsel_core.study.report import (
    comparison,
    efficiency,
    efficiency_figures,
    efficiency_sentences,
    efficiency_tables,
    palette,
    theme,
)
from idsel_core.study.store.provenance import origin, provenance
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times
from idsel_core.study.timing.example_inputs import example_inputs_for
from idsel_core.study.timing.ideal import time_ideal
from idsel_core.study.timing.phases import runnable, time_methods
from idsel_core.study.timing.records import circumstances

theme.use_theme()

# %%
model, processor = open_backbone(
    backbone, device, dtype=dtype, quantisation=quantisation or None, device_map=device_map or None
)
called = backbone_name(backbone) + (f" {quantisation}" if quantisation else "")
inputs = example_inputs_for(model, processor, text_tokens, image_size)
fixed = [name for name in list_methods() if not METHODS[name].shares_budget]
swept = [get_method(name, budget=budget) for name in methods or fixed for budget in budgets]
swept += [IDSelection(budget) for budget in curve if IDSelection(budget) not in swept]
inside = [method for method in swept if isinstance(method, InLLM) and method.budget in final_budgets]
swept += [replace(method, budget_convention="final") for method in inside]
usable, missing = runnable(model, inputs, swept)
Markdown("\n".join(f"- {name}: {why}" for name, why in missing.items()) or f"All methods run on {called}.")

# %% [markdown]
# ## Measure
#
# First all methods by phase, then whole answers against the ideal.

# %%
timings = time_methods(model, inputs, [None, *usable], runs=runs, warmup=1, new_tokens=new_tokens)
try:
    for budget in tqdm(ideal_budgets, desc="time whole answers", unit="budget"):
        timings += time_ideal(model, inputs, IDSelection(budget), runs=ideal_runs, new_tokens=new_tokens)
except ValueError as error:
    missing["the ideal"] = str(error)

# %%
rows, job = pd.DataFrame(timings).assign(backbone=called), job_name("08_efficiency", called)
names = ("backbone", "image_size", "compared", "device", "dtype", "quantisation", "device_map", "curve", "budgets")
names += ("final_budgets", "methods", "runs", "ideal_budgets", "ideal_runs", "text_tokens", "new_tokens", "models")
parameters = {name: globals()[name] for name in (*names, "model_text", "missing")}
times = Times(project_path(times_dir))
times.write(job, rows, provenance(parameters, weight_files(backbone), device=device, started=started))
rows, drawn_from = times.frame(job), times.origin(job)

# %% [markdown]
# ## Time by phase
#
# What is left of the time when the language model reads fewer tokens: the tower pass, which no selection saves. Each
# phase is the median of the turns, thin lines go from the first to the third quartile of the prefill.

# %%
own = rows[rows["method"].isin(["full", "idselection"]) & rows["phase"].isin(efficiency.PHASES)]
own = own.assign(decoded=own["new_tokens"].where(own["phase"] == "decode", 1))
wide = own.assign(ms=own["median_ms"] * own["decoded"]).pivot(index="kept_tokens", columns="phase", values="ms")
wide = wide.reindex(columns=list(efficiency.PHASES)).fillna(0).sort_index(ascending=False)
figure, panels = plt.subplots(1, 2, figsize=(theme.PAGE, 3.2), layout="constrained")
wide.plot.barh(
    stacked=True,
    ax=panels[0],
    color=[look["color"] for look in palette.of_series(efficiency.PHASES).values()],
    width=0.7,
    legend=False,
)
panels[0].invert_yaxis()
panels[0].set(xlabel="milliseconds of an answer", ylabel="visual tokens kept")
prefill = own[own["phase"] == "prefill"].sort_values("kept_tokens")
panels[1].plot(prefill["kept_tokens"], prefill["median_ms"], "o-")
panels[1].vlines(prefill["kept_tokens"], prefill["low_ms"], prefill["high_ms"])
panels[1].set(xlabel="visual tokens kept", ylabel="milliseconds of the prefill", xlim=(0, None), ylim=(0, None))
figure.legend(loc="outside upper center", ncols=4)
figure.set_label("Time of an answer by phase, and of its prefill, against the visual tokens kept")
theme.add_note(figure, f"{called}, one question, median of {runs} turns")
theme.save(figure, project_path(figures_dir), job_name("08_phases", called), drawn_from)
# %%
scaling = efficiency_figures.scaling_figure(rows)
theme.save(scaling, project_path(figures_dir), job_name("08_scaling", called), drawn_from)
# %%
Markdown(efficiency_tables.efficiency_table(rows).to_markdown(index=False))

# %% [markdown]
# ## Against the ideal
#
# The ideal is the same model on a prompt that was cut by hand: the same tower pass, then only the rows of the tokens
# that were chosen beforehand, without hooks and without a selection. What `prune` takes beyond it is selection and
# overhead.

# %%
ideal = efficiency_tables.ideal_table(rows)
said = missing.get("the ideal", "")
if len(ideal):
    said = ideal.round(3).to_markdown(index=False) + "\n\n" + efficiency_sentences.about_ideal(ideal)
Markdown(said)

# %% [markdown]
# ## Accuracy against measured time
#
# The share of full performance is that of the comparison (06) with the same backbone, the time is measured here.
# Whatever is on the front is beaten by nothing in both.

# %%
results = Results(project_path(results_dir))
compared = compared or comparison.find_comparison(results, called)
said = f"No comparison with {called} is stored: notebook 06 asks it."
if compared:
    answered = comparison.read_comparison(results, compared, compared.replace("06_comparison", "04_ablation_budget"))
    front = efficiency.accuracy_against_time(answered, rows, resamples)
    drawn_from["results"] |= results.origin(*answered["job"].unique())["results"]
    pareto = efficiency_figures.pareto_figure(front)
    theme.save(pareto, project_path(figures_dir), job_name("08_front", called), drawn_from)
    said = efficiency_sentences.about_front(front)
Markdown(said)

# %% [markdown]
# ## The selection of every method by itself
#
# `make benchmarks` times the selections alone, up to far more tokens than this backbone has.

# %%
said = "There are no such times yet: `make benchmarks` measures them."
if "peers-cpu" in times.jobs():
    alone = efficiency_figures.selection_figure(times.frame("peers-cpu"))
    theme.save(alone, project_path(figures_dir), "08_selection", times.origin("peers-cpu"))
    said = "Random tokens, as if all that a method reads of the model were at hand already."
Markdown(said)

# %% [markdown]
# ## Models of full size, by their configurations
#
# The literature's formula counts visual tokens in the language model alone; a prompt has text, and an image a tower.

# %%
costs = efficiency.model_costs(models, model_text, "idselection")
by_size = efficiency_figures.models_figure(costs)
theme.save(by_size, project_path(figures_dir), "08_models", origin([], models=models, model_text=model_text))

# %% [markdown]
# ## Conclusion
#
# The clock can follow the tokens only where the tokens are, in the language model: no selection saves the tower's pass,
# only a smaller image does. So what a whole answer gains depends on how large the tower is beside the language model,
# and models of full size differ in this from the embedded one. What the times say:

# %%
Markdown(f"{efficiency_sentences.about_efficiency(rows)} Measured on {circumstances(timings[0])}.")
