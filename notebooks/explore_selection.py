# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explorer: which visual tokens does a method keep of this picture?
#
# Choose a model, a picture, a question and two methods. All that they do is shown at once: the tokens they keep, in
# the order of the picks; the score of each token before the first pick; what is left of it after some picks; how much
# all tokens look like the one that you click; and the answers with all tokens and with those that are kept.

# %% tags=["parameters"]
backbone = "data/backbone/assembled"  # hub id, or folder of the model
picture = "temple"  # temple, flower, astronaut, coffee, "scene 0" to "scene 7", or path of a file
question = "What color is the object?"  # what is asked about the picture
methods = ["idselection", "topk"]  # methods side by side, see docs/methods.md
budget = 64  # visual tokens to keep
step = 8  # number of picks after which the scores are shown
new_tokens = 1  # most tokens of an answer; the embedded model says one word
device = "cpu"  # as torch names it
sliders = True  # False for the page alone, as papermill runs it
results_dir = "results/pages"  # folder of the page

# %%
from IPython.display import HTML, display

from idsel_core.study.explorer.render import render, write_page
from idsel_core.study.explorer.state import Side, State
from idsel_core.study.explorer.widgets import Explorer
from idsel_core.study.paths import project_path

sides = tuple(Side(method, budget) for method in methods)
state = State(picture, question, sides, step, backbone=backbone, device=device, new_tokens=new_tokens)

# %% [markdown]
# ## Look
#
# Sliders redraw while you drag them. Click a token in any picture to see which tokens look like it. With
# `sliders=False` the same page stands still.

# %%
explorer = Explorer(state) if sliders else None
display(explorer if sliders else HTML(render(state).html))

# %% [markdown]
# ## Keep it
#
# The next cell writes what is shown now to a file that opens without Jupyter. Run it again after you have moved the
# sliders.

# %%
shown = explorer.state if explorer else state
print(write_page(shown, project_path(results_dir) / "explore_selection.html"))
