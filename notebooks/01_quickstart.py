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
# One image, one question, all 576 visual tokens and then a handful that ID-Selection picks. Then a look at real
# photographs: where the vision tower attends, which tokens look alike, and what is picked.

# %% tags=["parameters"]
split = "validation"  # split of the data set that the image comes from
image = 7  # which image of that split, from 0
budget = 64  # visual tokens to keep
gamma = "auto"  # sharpness of the suppression, 0 to infinity; "auto" takes that of the image
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time

started = time.perf_counter()

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown
from PIL import Image
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from idsel_core import IDSelection, prune
from idsel_core.study.dataset import BLIND, FULL, Split, read_split
from idsel_core.study.encodings import encode_split, image_pixels
from idsel_core.study.evaluate import Study
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import pictures, theme
from idsel_core.study.store.provenance import origin, provenance
from idsel_core.study.store.results import Results

theme.use_theme()
_ = torch.set_grad_enabled(False)

# %% [markdown]
# ## One image, one question
#
# Any supported Hugging Face model works like this one: load it, and ask inside a `with prune(...)` block.

# %%
backbone, processor = open_backbone()
model = backbone.model
whole = read_split(split)
name = whole.images.index[image]
picture = whole.picture(name)
asked = whole.questions[whole.questions["image_id"] == name].reset_index(drop=True)


def ask(question: str) -> str:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# %%
method = IDSelection(budget=budget, gamma=gamma)
with_all = [ask(question) for question in asked["question"]]
with prune(model, method) as run:
    with_few = [ask(question) for question in asked["question"]]
answers = asked[["question", "answer"]].assign(all_tokens=with_all, pruned=with_few)
answers.columns = ["question", "answer", f"{run.report[0].before} tokens", f"{run.report[0].after} tokens"]
Markdown(answers.to_markdown(index=False))

# %% [markdown]
# What was kept, for the first question. The brightest border is the first pick, the darkest the last.

# %%
encoded = backbone.encode(image_pixels(processor, [picture], model.device))
saliency = encoded.views["cls_attention"]()[0]
grid = [int(side) + 1 for side in encoded.grid[0].amax(0)]
figure, axes = plt.subplots(1, 3, figsize=(theme.PAGE, 2.6), layout="constrained")
axes[0].imshow(picture)
axes[0].set_axis_off()
pictures.draw_heat(axes[1], picture, saliency, *grid)
pictures.draw_kept(axes[2], picture, run.report[0].order, *grid)
for axis, title in zip(axes, ["image", "saliency", f"{run.report[0].after} tokens kept"], strict=True):
    axis.set_title(title)
parameters = {"split": split, "image": image, "budget": budget, "gamma": gamma}
files = [*whole.files, MODEL / "model.safetensors"]
theme.save(figure, project_path(figures_dir), "quickstart_scene", origin(files, **parameters))

# %% [markdown]
# ## Real photographs
#
# The language model knows only drawn scenes, but the vision tower was trained on photographs. So saliency, similarity
# and picks can be looked at on any picture. Similarity is to the first pick.

# %%
shots = {"temple": load_sample_images().images[0], "flower": load_sample_images().images[1]}
shots |= {"astronaut": photographs.astronaut(), "coffee": photographs.coffee()}
side = 336
shots = {title: Image.fromarray(pixels).resize((side, side)) for title, pixels in shots.items()}
photos = backbone.encode(image_pixels(processor, list(shots.values()), model.device))
visual = IDSelection(budget=budget, gamma=gamma, importance="saliency")
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the object?"}]}]
prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
texts = [prompt.replace("<image>", "<image>" * count) for count in photos.placeholders.tolist()]
inputs = processor.tokenizer(texts, return_tensors="pt")
tokens = backbone.visual_tokens(photos, inputs["input_ids"], inputs["attention_mask"])
picks = visual.select(tokens)

# %%
unit = torch.nn.functional.normalize(tokens.features.detach().float(), dim=-1)
figure, axes = plt.subplots(len(shots), 4, figsize=(theme.PAGE, 1.75 * len(shots)), layout="constrained")
for row, (title, shot) in enumerate(shots.items()):
    first = int(picks.order[row, 0])
    axes[row, 0].imshow(shot)
    axes[row, 0].set_axis_off()
    pictures.draw_heat(axes[row, 1], shot, tokens.saliency[row].detach(), *grid)
    pictures.draw_heat(axes[row, 2], shot, unit[row] @ unit[row, first], *grid)
    pictures.draw_kept(axes[row, 3], shot, picks.order[row].tolist(), *grid)
    for axis, what in zip(axes[row], [title, "saliency", "like the first pick", f"{budget} tokens kept"], strict=True):
        axis.set_title(what, fontsize="small")
theme.save(figure, project_path(figures_dir), "quickstart_photographs", origin(files[-1:], budget=budget, gamma=gamma))

# %% [markdown]
# ## The same image through the study's harness
#
# The ablation notebooks ask thousands of questions like this: each image is encoded once, rows go to the result store.

# %%
one = Split(whole.name, asked, whole.images.loc[[name]], whole.files)
study = Study(backbone, processor, one, encode_split(backbone, processor, one))
rows = study.run([FULL, BLIND, method])
Results(project_path(results_dir)).write("01_quickstart", rows, provenance(parameters, files, started=started))
right = rows.groupby("method", sort=False)["correct"].sum().astype(int)
said = [f"{theme.label(which)}: {count} of {len(asked)} questions right" for which, count in right.items()]
Markdown(f"On this image, {budget} tokens of {grid[0] * grid[1]}. " + "; ".join(said) + ".")
