# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: what does a model see with a few visual tokens?
#
# The first ten minutes: load a model, ask it about a picture, ask again with most visual tokens pruned, look at what
# was kept, write a method of your own, and see on a few questions whether it is any good.

# %% tags=["parameters"]
split = "validation"  # split of the data set that picture and questions come from
image = 7  # which picture of that split, from 0
budget = 64  # visual tokens to keep
questions = 70  # about how many questions the methods are compared on, 0 for all
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time

started = time.perf_counter()

import torch
from IPython.display import Markdown

from idsel_core import IDSelection, load, prune
from idsel_core.study.dataset import read_split
from idsel_core.study.paths import MODEL, project_path

_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## 1. Load a model and ask
#
# `load` takes the folder of a model or its hub id. What follows is plain transformers.

# %%
model, processor = load(MODEL, dtype="auto")  # data/backbone/assembled; a hub id as llava-hf/llava-1.5-7b-hf works too
whole = read_split(split)
name = whole.images.index[image]
picture = whole.picture(name)
asked = whole.questions[whole.questions["image_id"] == name].reset_index(drop=True)


def ask(picture, question: str) -> str:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)  # this small model answers in one word
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


with_all = [ask(picture, question) for question in asked["question"]]

# %% [markdown]
# ## 2. Prune, and ask again
#
# Inside the block the language model reads the kept tokens alone: the prompt and the KV cache are shorter, nothing is
# masked. After the block the model is what it was.

# %%
with prune(model, IDSelection(budget)) as run:
    with_few = [ask(picture, question) for question in asked["question"]]
before, after = run.report[0].before, run.report[0].after
answers = asked[["question", "answer"]].assign(all=with_all, few=with_few)
answers.columns = ["question", "right answer", f"{before} tokens", f"{after} tokens"]
Markdown(answers.to_markdown(index=False))

# %% [markdown]
# ## 3. Read the report
#
# `run.report` has one record for each image of each call: what was kept, in which order, and how long it took.

# %%
from dataclasses import asdict

import pandas as pd

records = pd.DataFrame(asdict(record) for record in run.report).assign(question=asked["question"])
columns = ["question", "before", "after", "source", "encode_ms", "select_ms"]
Markdown(records[columns].round(1).to_markdown(index=False))

# %%
same = sum(few == one for few, one in zip(with_few, with_all, strict=True))
kept = [set(record.indices) for record in run.report]
shared = len(set.intersection(*kept))
Markdown(
    f"The language model read {after} of {before} visual tokens and gave {same} of {len(asked)} answers unchanged. "
    f"The importance of a token depends on the question: {shared} of the {after} tokens were kept for all of them."
)

# %% [markdown]
# ## 4. Look at a picture
#
# What was kept for two of the questions. The first pick has the brightest border, the last one the darkest.

# %%
import matplotlib.pyplot as plt

from idsel_core.study.report import pictures, theme
from idsel_core.study.store.provenance import origin

theme.use_theme()
side = int(before**0.5)  # this model's tokens lie on a square grid, in raster order
shown = list(zip(run.report, asked["question"], strict=True))[-3:-1]
figure, axes = plt.subplots(1, 1 + len(shown), figsize=(theme.PAGE, 2.6), layout="constrained")
axes[0].imshow(picture)
axes[0].set_axis_off()
axes[0].set_title("image")
for axis, (record, question) in zip(axes[1:], shown, strict=True):
    pictures.draw_kept(axis, picture, record.order, side, side)
    axis.set_title(question)
parameters = {"split": split, "image": image, "budget": budget, "questions": questions}
theme.save(figure, project_path(figures_dir), "quickstart_scene", origin(whole.files, **parameters))

# %% [markdown]
# ## 5. Look inside, at real photographs
#
# The language model knows only drawn scenes, but the vision tower was trained on photographs. So what a method reads
# can be looked at on any picture: how much the tower attends to a token (saliency), and how much tokens look alike.
# Methods read that from `VisualTokens`. Here similarity is to the first pick.

# %%
from idsel_core.study.encodings import image_pixels
from idsel_core.study.explorer.samples import open_picture
from idsel_core.study.open_study import open_study

study = open_study(split, limit=questions)
shots = {name: open_picture(name).resize((336, 336)) for name in ("temple", "flower", "astronaut", "coffee")}
photos = study.backbone.encode(image_pixels(study.processor, list(shots.values()), model.device))
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the object?"}]}]
prompt = study.processor.apply_chat_template(chat, add_generation_prompt=True)
texts = [prompt.replace("<image>", "<image>" * count) for count in photos.placeholders.tolist()]
inputs = study.processor.tokenizer(texts, return_tensors="pt")
tokens = study.backbone.visual_tokens(photos, inputs["input_ids"], inputs["attention_mask"])
picks = IDSelection(budget, importance="saliency").select(tokens)

# %%
unit = torch.nn.functional.normalize(tokens.features.float(), dim=-1)
figure, axes = plt.subplots(len(shots), 4, figsize=(theme.PAGE, 1.75 * len(shots)), layout="constrained")
for row, (title, shot) in enumerate(shots.items()):
    first = int(picks.order[row, 0])
    axes[row, 0].imshow(shot)
    axes[row, 0].set_axis_off()
    pictures.draw_heat(axes[row, 1], shot, tokens.saliency[row], side, side)
    pictures.draw_heat(axes[row, 2], shot, unit[row] @ unit[row, first], side, side)
    pictures.draw_kept(axes[row, 3], shot, picks.order[row].tolist(), side, side)
    for axis, what in zip(axes[row], [title, "saliency", "like the first pick", f"{budget} tokens kept"], strict=True):
        axis.set_title(what, fontsize="small")
theme.save(
    figure, project_path(figures_dir), "quickstart_photographs", origin([MODEL / "model.safetensors"], budget=budget)
)

# %% [markdown]
# ## 6. Write a method of your own
#
# A method is a frozen dataclass. `select` sees a batch of images and returns a `Selection`; `take_best` keeps the
# tokens of highest score. This one believes that what matters is in the middle of the picture. Change it and run on
# from here.


# %%
from dataclasses import dataclass
from typing import ClassVar

from idsel_core import Method, Selection, VisualTokens, take_best


@dataclass(frozen=True)
class Middle(Method):
    """Keep the tokens nearest to the middle of the picture."""

    name: ClassVar[str] = "middle"
    label: ClassVar[str] = "the middle (mine)"

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image."""
        middle = tokens.grid.amax(1, keepdim=True) / 2  # (B, 1, 2)
        distance = (tokens.grid - middle).norm(dim=-1)  # (B, N, 2) -> (B, N)
        return take_best(-distance, tokens, self.budget)


# %%
mine = Middle(budget)
with prune(model, mine) as run:
    said = [ask(picture, question) for question in asked["question"]]
right = sum(one == answer for one, answer in zip(said, asked["answer"], strict=True))
figure, axis = plt.subplots(figsize=(theme.COLUMN / 1.5, 2.6), layout="constrained")
pictures.draw_kept(axis, picture, run.report[0].order, side, side)
axis.set_title(f"{mine.label}: {right} of {len(asked)} right")
theme.save(figure, project_path(figures_dir), "quickstart_own", origin(whole.files, **parameters))

# %% [markdown]
# ## 7. Is it any good?
#
# One picture says little. A study encodes each image once, asks all questions with each method, and keeps the rows.

# %%
from idsel_core.study.dataset import BLIND, FULL
from idsel_core.study.report.bootstrap import paired_difference, paired_scores
from idsel_core.study.report.wording import points, verdict
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

rows = study.run([FULL, BLIND, IDSelection(budget), mine])
results = Results(project_path(results_dir))
files = [*study.split.files, *study.weights]
results.write("01_quickstart", rows, provenance(parameters, files, started=started))
scores = paired_scores(rows, ["method"])
gap = paired_difference(scores["idselection"], scores[mine.name])
right = rows.groupby("method", sort=False)["correct"].mean()
labels = {mine.name: mine.label}
lines = [f"- {labels.get(method, theme.label(method))}: {share:.0%}" for method, share in right.items()]
text = f"Right answers to {len(scores)} questions, with {budget} tokens where they are pruned:\n\n" + "\n".join(lines)
Markdown(f"{text}\n\nID-Selection is {verdict(gap)} {mine.label}: {points(gap)}, with its 95 % interval.")

# %% [markdown]
# ## Go on
#
# - `notebooks/explore_selection.ipynb`: the same with sliders, for any picture, model and method.
# - `notebooks/10_new_method.ipynb`: what every method promises, and your own in a plot beside others.
# - `docs/new_method.md`: one file, one line and one test row put it into every figure.
