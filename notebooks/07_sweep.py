# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sweep: one job of a grid
#
# One backbone, one split, one method with its knobs, at one or several budgets. `make sweep` runs this notebook once
# for each combination of a grid such as `config/grids/example.yaml`.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # folder of the model
data = "data/scenes"  # folder of the data set
split = "validation"  # split of the data set
questions = 0  # about how many questions, 0 for all
device = "cpu"  # as torch names it
method = "idselection"  # name of the method; "full" for all tokens, "no-image" for none
budgets = [64]  # visual tokens kept
knobs = {}  # other settings of the method, such as gamma
job = "sweep"  # what the store calls the rows
results_dir = "results/rows"  # folder of the stored rows

# %%
import time
from dataclasses import replace

started = time.perf_counter()

from IPython.display import Markdown

from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.evaluate import accuracy, open_study
from idsel_core.study.knobs import build_method
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.run.sweeps import encodings
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

# %%
methods = (
    [method] if method in (FULL, BLIND) else [build_method(method, {"budget": budget, **knobs}) for budget in budgets]
)
tower_depths = (
    sorted({depth for asked in methods if not isinstance(asked, str) for depth in asked.tower_depths}) or None
)
folder, data_folder = project_path(backbone), project_path(data)
study = open_study(
    split,
    limit=questions,
    model=folder,
    data=data_folder,
    cache=encodings(folder, data_folder),
    device=device,
    tower_depths=tower_depths,
)
study = study if folder == MODEL else replace(study, name=folder.name)

# %%
results = Results(project_path(results_dir))
rows = study.run(methods, resume=results.resume_folder(job))
names = ("backbone", "data", "split", "questions", "device", "method", "budgets", "knobs", "job")
files = [*study.split.files, *sorted(folder.rglob("*.safetensors"))]
note = provenance({name: globals()[name] for name in names}, files, device=device, started=started)
results.write(job, rows, note | {"seed": knobs.get("seed", 0)})

# %%
Markdown(accuracy(rows).mul(100).round(1).reset_index().to_markdown(index=False))
