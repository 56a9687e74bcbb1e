# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A method of your own: from an idea to a line in the plot
#
# A method chooses which visual tokens the language model reads. Here one is written in a few lines, held to what every
# method promises, asked a few hundred questions beside ID-Selection, top-K importance and random tokens, and drawn in
# the same plot. Change the class and run the notebook again.

# %% tags=["parameters"]
split = "validation"  # split of the data set; choose on validation, report on test
questions = 280  # about how many questions, 0 for all
budgets = [64, 32, 16, 8]  # visual tokens kept
discount = 0.5  # knob of the new method
rivals = ["idselection", "topk", "random"]  # methods of the registry to compare with
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from dataclasses import dataclass
from typing import ClassVar

started = time.perf_counter()

import matplotlib.pyplot as plt
import torch
from IPython.display import Markdown

from idsel_core import Method, Selection, VisualTokens, get_method, take_best
from idsel_core.study.dataset import FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import theme
from idsel_core.study.report.bootstrap import paired_difference, paired_scores, share_of_full
from idsel_core.study.report.wording import points, verdict
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## The method
#
# Neighbouring patches often show the same thing. So take the most salient tokens, but think less of every second one,
# as on a chessboard. A method is a frozen dataclass: its knobs are typed fields, `select` sees a whole batch of images
# and returns a `Selection`. What it may read stands in `VisualTokens`: features, saliency, instruction attention,
# relevance, the place in the grid, and more; a view is computed when it is read.


# %%
@dataclass(frozen=True)
class Chessboard(Method):
    """Keep the most salient tokens, those on white squares of a chessboard at a discount."""

    name: ClassVar[str] = "chessboard"
    label: ClassVar[str] = "chessboard (mine)"

    discount: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount must lie between 0 and 1, not {self.discount}")

    def select(self, tokens: VisualTokens) -> Selection:
        """Choose tokens of each image."""
        white = tokens.grid.sum(-1) % 2  # (B, N, 2) -> (B, N): 0 on black squares, 1 on white ones
        return take_best(tokens.saliency * (1 - self.discount * white), tokens, self.budget)


mine = [Chessboard(budget, discount=discount) for budget in budgets]
mine[0]

# %% [markdown]
# ## What every method promises
#
# Exactly the budget, and picks that depend neither on the batch nor on its padding: images of one batch have different
# numbers of tokens, `tokens.mask` tells which are real, and the rest may hold anything, NaN too.


# %%
def random_images(lengths: list[int], longest: int) -> VisualTokens:
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]  # (B, N)

    def noise(*shape: int) -> torch.Tensor:
        rows = [torch.rand(99, *shape, generator=torch.Generator().manual_seed(row)) for row in range(len(lengths))]
        return torch.stack(rows)[:, :longest].masked_fill(~mask.view(*mask.shape, *[1] * len(shape)), torch.nan)

    place = torch.arange(longest).expand(mask.shape)
    grid = torch.stack([place // 8, place % 8], -1).masked_fill(~mask[..., None], -1)  # (B, N, 2)
    return VisualTokens(noise(16), mask, grid, {"cls_attention": noise})


method = Chessboard(9, discount=discount)
padded, more_padded = (method.select(random_images([48, 64], longest)) for longest in (64, 80))
assert padded.counts.tolist() == [9, 9], "the budget must be kept exactly"
assert torch.equal(padded.indices, more_padded.indices), "padding must not change the picks"
assert method.select(random_images([48], 48)).indices[0].tolist() == padded.indices[0].tolist(), "nor may the batch"

# %% [markdown]
# ## Ask
#
# All methods answer the same questions about images that are encoded once.

# %%
methods = mine + [get_method(name, budget=budget) for name in rivals for budget in budgets]
study = open_study(split, limit=questions)
results = Results(project_path(results_dir))
rows = study.run([FULL, *methods], resume=results.resume_folder("10_new_method"))
parameters = {name: globals()[name] for name in ("split", "questions", "budgets", "discount", "rivals")}
files = [*study.split.files, MODEL / "model.safetensors"]
results.write("10_new_method", rows, provenance(parameters, files, started=started))
rows = results.frame("10_new_method")

# %% [markdown]
# ## The plot
#
# The share of full performance, with 95 % intervals over the questions.

# %%
shares = share_of_full(rows, ["method", "budget"], resamples=resamples)
figure, axis = plt.subplots(figsize=theme.size("column", 2.8), layout="constrained")
for name, style in theme.styles([Chessboard.name, *rivals]).items():
    said = Chessboard.label if name == Chessboard.name else theme.label(name)
    theme.plot_band(axis, shares[shares["method"] == name], "budget", "share", said, **style)
theme.budget_axis(axis, budgets)
theme.percent_axis(axis.yaxis)
axis.set_ylabel("share of full performance")
figure.set_label("Share of full performance of a new method and its rivals against the visual tokens kept")
theme.name_lines(axis)
theme.add_note(figure, theme.questions_asked(rows))
drawn_from = results.origin("10_new_method", resamples=resamples)
theme.save(figure, project_path(figures_dir), "10_new_method", drawn_from)

# %% [markdown]
# ## Conclusion
#
# Judge by paired differences: both methods answered the same questions, so the interval of the difference says whether
# one is above the other. An idea that does not beat random tokens at any budget is not worth a longer run; one that
# beats top-K importance deserves the whole registry on the test split, which is notebook 06.

# %%
lines = []
for budget in budgets:
    scores = paired_scores(rows[rows["budget"] == budget], ["method"])
    gaps = {name: paired_difference(scores[Chessboard.name], scores[name], resamples=resamples) for name in rivals}
    said = "; ".join(f"{verdict(gap)} {theme.label(name)} ({points(gap)})" for name, gap in gaps.items())
    lines.append(f"- **{budget} tokens**: {Chessboard.label} is {said}.")
Markdown("\n".join(lines))

# %% [markdown]
# ## Keep it
#
# One file in `idsel_core/methods/`, one line in its registry, one row in the tests' matrix: `docs/new_method.md` shows
# them. Then `get_method` and `prune` know the name, and every figure draws it.
