# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pick by pick: how does the selection walk, and where does it go wrong?
#
# First a photograph: its importance, and how each pick lowers the scores of the tokens that look like it. Then
# questions that the model answers right with all visual tokens and wrong with a few, and what was dropped there.

# %% tags=["parameters"]
picture = "coffee"  # temple, flower, astronaut, coffee, "scene 0" to "scene 7", or path of a file
budget = 16  # visual tokens that are picked
importance = "saliency"  # importance score; the embedded model has read no question about a photograph
rows_of = "04_ablation_budget"  # job whose rows are searched for answers that turn wrong
cases = 4  # answers that turn wrong to show
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import textwrap

import matplotlib.pyplot as plt
from IPython.display import Image, Markdown, display

from idsel_core import DiversityOnly, IDSelection, id_select
from idsel_core.study.dataset import read_split
from idsel_core.study.explorer import look
from idsel_core.study.explorer.state import State
from idsel_core.study.knobs import knobs_of_row
from idsel_core.study.objects import Objects
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import animation, pick_by_pick, theme
from idsel_core.study.report.failures import draw_dropped, turned_wrong
from idsel_core.study.store.provenance import origin
from idsel_core.study.store.results import Results

theme.use_theme()
figures = project_path(figures_dir)

# %% [markdown]
# ## The poster
#
# Above, what the method starts from and what it keeps; below, the scores that are left after some picks. The last pick
# is framed in blue, those before it in white. Around each pick, and wherever the picture looks like it, scores fall.

# %%
state = State(picture)
method = IDSelection(budget, importance=importance)
seen = look.seen(state, method)
grid = seen.places.rows, seen.places.columns
read = look.asked(state).picture
scores = look.picked(state, method).scores
knobs = {"gamma": method.gamma, "update": method.update, "exhausted": method.exhausted}
# One pick more, because a trace holds the scores before each pick.
picks = id_select(seen.tokens.features, scores, budget + 1, trace=True, **knobs)
order, trace = picks.order[0, :budget].tolist(), picks.trace[0].numpy()
diverse = look.picked(state, DiversityOnly(budget)).order[0].tolist()
files = [MODEL / "model.safetensors"]
figure = pick_by_pick.poster(read, order, trace, diverse, grid)
figure.set_label(
    f"{picture}, {budget} tokens picked by diversity alone and by ID-Selection, and the scores left after some picks"
)
theme.save(figure, figures, "15_poster", origin(files, picture=picture, budget=budget, importance=importance))

# %% [markdown]
# ## The animation
#
# As a GIF, for slides, and as a page with a slider that opens offline.

# %%
drawn = pick_by_pick.frames(read, order, trace, grid)
said = ["no pick yet"]
for pick, token in enumerate(order, 1):
    said.append(f"pick {pick} at row {token // grid[1] + 1}, column {token % grid[1] + 1}")
gif = animation.write_gif(drawn, figures / "15_pick_by_pick.gif")
print(animation.write_page(drawn, said, "ID-Selection, pick by pick", figures / "15_pick_by_pick.html"))
Image(gif.read_bytes(), alt=f"{budget} picks of ID-Selection, one after the other")

# %% [markdown]
# ## Where pruning turns a right answer wrong
#
# Questions of the stored rows, those first whose kept tokens lie least on objects. Blue frames are tokens on objects
# that were dropped: where they cover what the question asks about, the model no longer sees it.

# %%
store = Results(project_path(results_dir))
rows = store.frame(rows_of) if rows_of in store.jobs() else None
wrong = []
if rows is not None:
    wrong = turned_wrong(rows[rows["positions"] == rows["positions"].iloc[0]], IDSelection.name, budget)
    split = read_split(wrong["split"].iloc[0]) if len(wrong) else None
if not len(wrong):
    display(Markdown(f"No answers of job {rows_of} at {budget} tokens turned wrong: run it first, or another budget."))
else:
    display(Markdown(f"{len(wrong)} right answers turned wrong at {budget} tokens."))

# %%
asked = split.questions.set_index("question_id") if len(wrong) else None
shown = []
for row in wrong.itertuples() if len(wrong) else ():
    pixels, question = split.images.at[row.image_id, "image"], asked.at[row.question_id, "question"]
    again = State(pixels, question)
    answer = look.answer(again, IDSelection(budget, **knobs_of_row(row._asdict())))
    # Rows of older code may have been answered otherwise.
    if answer.text == row.prediction:
        shown.append((row, again, question, answer))
    if len(shown) == cases:
        break

# %%
if shown:
    figure, axes = plt.subplots(2, len(shown), figsize=(theme.PAGE, 4.4), layout="constrained", squeeze=False)
    for (row, again, question, answer), (above, below) in zip(shown, axes.T, strict=True):
        whole, inside = look.asked(again).picture, Objects(split).inside(row.image_id, *grid).reshape(-1)
        above.imshow(whole)
        above.set_axis_off()
        count = draw_dropped(below, whole, answer.kept, grid, inside)
        above.set_title("\n".join(textwrap.wrap(question, 26)), fontsize="x-small")
        said = f"all tokens: {row.with_all} (right),\n{budget} tokens: {row.prediction},\n"
        below.set_title(f"{said}{count} of {inside.sum()} object tokens dropped", fontsize="x-small")
    figure.set_label(
        f"Questions that are answered right with all visual tokens and wrong with {budget} of {IDSelection.label}; "
        "the second row shows which tokens are kept, and frames those on objects that were dropped"
    )
    theme.save(figure, figures, "15_turned_wrong", store.origin(rows_of, budget=budget))
