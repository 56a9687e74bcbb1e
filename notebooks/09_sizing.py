# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Sizing: what does a prefill take, and where do visual tokens count?
#
# Parameters, FLOPs and bytes of a vision-language model, derived by hand from a few sizes, step by step. Each result is
# checked against the thing itself: the modules, torch's FLOP counter, a cache, a clock. At the end published claims of
# saved FLOPs are worked out. A multiply-add is two FLOPs; norms, softmax and activations are left out, as they are
# small.

# %% tags=["parameters"]
models = ["llava-1.5-7b", "internvl3-8b"]  # configurations whose language models are sized
tower_model = "llava-1.5-7b"  # the one whose CLIP tower and projector are sized
text_tokens = 64  # tokens of a prompt that are not visual
visual_tokens = 576  # visual tokens of the prompt
kept = 16  # visual tokens that are left
bytes_each = 2  # bytes of a number: 2 of float16 and bfloat16, 4 of float32
claims = [["llava-1.5-7b", 336, 336, 576, 16], ["llava-next-7b", 672, 672, 2880, 320]]  # name, image, all tokens, kept
claimed = ["over 97 % fewer", "about 9.9 times fewer"]  # what is claimed of each, arXiv 2604.05601 (see the text)
budgets = [576, 448, 320, 192, 96, 16]  # visual tokens of the prefills that are timed on the embedded backbone
runs = 15  # turns that are measured
times_dir = "results/times"  # folder of the stored times
figures_dir = "results/figures"  # folder for the figures

# %%
import time
from pathlib import Path

started = time.perf_counter()

import pandas as pd
import torch
from IPython.display import Markdown
from transformers import AutoModelForImageTextToText

from idsel_core import UniformGrid
from idsel_core.study.cost import flops_counted, flops_counted_step, read_config
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL, project_path
from idsel_core.study.report import efficiency, efficiency_figures, efficiency_tables, theme
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.times import Times
from idsel_core.study.timing.example_inputs import example_inputs
from idsel_core.study.timing.phases import time_methods
from idsel_core.study.timing.records import circumstances

theme.use_theme()
configs = {name: read_config(Path(name))[0] for name in {*models, tower_model}}

# %% [markdown]
# ## The sizes
#
# A language model has $L$ layers of width $d$. Attention has $H$ query heads and $G$ key heads of width $h$: with $G <
# H$ (grouped queries, GQA) several query heads share the keys and values of one. The MLP (SwiGLU) has three matrices
# between $d$ and $m$. The LM head turns a state into $V$ scores.


# %%
def sizes(config):
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return {
        "L": text.num_hidden_layers,
        "d": text.hidden_size,
        "H": text.num_attention_heads,
        "G": text.num_key_value_heads,
        "h": head,
        "m": text.intermediate_size,
        "V": text.vocab_size,
        "biases": int(text.model_type == "qwen2"),
    }


table = pd.DataFrame({name: sizes(configs[name]) for name in models})
Markdown(table.to_markdown())

# %% [markdown]
# ## Parameters
#
# * Queries and output: $d H h$ each; keys and values: $d G h$ each. Qwen2 adds a bias to queries, keys and values.
# * SwiGLU: gate and up $d m$ each, down $m d$.
# * Two norms of $d$ in each layer and one at the end, embeddings $V d$, LM head $d V$.
#
# The modules, built without weights, must have as many.


# %%
def layer_parameters(s):
    attention = 2 * s["d"] * s["H"] * s["h"] + 2 * s["d"] * s["G"] * s["h"]
    return {"attention": attention, "SwiGLU": 3 * s["d"] * s["m"]}


def language_parameters(s):
    biases = s["biases"] * (s["H"] + 2 * s["G"]) * s["h"]
    layer = sum(layer_parameters(s).values()) + biases + 2 * s["d"]
    return {"layers": s["L"] * layer, "last norm": s["d"], "embeddings": s["V"] * s["d"], "LM head": s["d"] * s["V"]}


checks = []
with torch.device("meta"):
    built = {name: AutoModelForImageTextToText.from_config(config) for name, config in configs.items()}
for name in models:
    found = [*built[name].model.language_model.parameters(), *built[name].lm_head.parameters()]
    by_hand = sum(language_parameters(sizes(configs[name])).values())
    checks.append([f"{name}: parameters of the language model", by_hand, sum(p.numel() for p in found)])
share = pd.DataFrame({name: language_parameters(sizes(configs[name])) for name in models}) / 1e9
Markdown("Billions of parameters:\n\n" + share.round(3).to_markdown())

# %% [markdown]
# ## Vision tower and projector
#
# CLIP cuts an image into patches of $p \times p$ pixels and puts one [CLS] before them. Its layers of width $d_v$ have
# full attention (all heads have keys of their own), an MLP of two matrices of $m_v$, and biases everywhere. The
# projector is two matrices, $d_v d$ and $d d$.

# %%
v, d = configs[tower_model].vision_config, sizes(configs[tower_model])["d"]
patches = (v.image_size // v.patch_size) ** 2
pixels = 3 * v.patch_size**2
dv, mv = v.hidden_size, v.intermediate_size
tower = {
    "patch embedding": pixels * dv,
    "[CLS] and positions": dv + (patches + 1) * dv,
    "layers": v.num_hidden_layers * (4 * dv * dv + 4 * dv + 2 * dv * mv + mv + dv + 4 * dv),
    "norms before and behind": 4 * dv,
}
projector = dv * d + d + d * d + d
parts = built[tower_model].model
for what, by_hand, module in (
    ("tower", sum(tower.values()), parts.vision_tower),
    ("projector", projector, parts.multi_modal_projector),
):
    checks.append([f"{tower_model}: parameters of the {what}", by_hand, sum(p.numel() for p in module.parameters())])
Markdown(f"{patches} patches, {sum(tower.values()) / 1e6:.1f} M parameters, projector {projector / 1e6:.1f} M.")

# %% [markdown]
# ## FLOPs of a prefill
#
# A matrix of $w$ weights costs $2 w$ FLOPs a token: one product and one sum a weight. So $T$ tokens cost twice the
# weights of all layers, $T$ times. Attention multiplies queries and keys, and weights and values: $2 \cdot 2\, T^2 H h$
# a layer. This counts all pairs; a kernel that skips what a token may not see does half. The LM head is needed at the
# last token alone, because the others predict what is known.
#
# The tower does the same on its patches and [CLS], without a head; the projector on all patches, because a selection
# reads its output.


# %%
def prefill_flops(s, tokens):
    weights = layer_parameters(s)
    return {
        "projections": s["L"] * 2 * tokens * weights["attention"],
        "SwiGLU": s["L"] * 2 * tokens * weights["SwiGLU"],
        "attention": s["L"] * 4 * tokens**2 * s["H"] * s["h"],
        "LM head": 2 * s["d"] * s["V"],
    }


length = patches + 1
encode = {
    "patch embedding": 2 * patches * pixels * dv,
    "tower": v.num_hidden_layers * (2 * length * (4 * dv * dv + 2 * dv * mv) + 4 * length**2 * dv),
    "projector": 2 * patches * (dv * d + d * d),
}
for name in models:
    tokens = min(visual_tokens, 256 if name != tower_model else visual_tokens)
    counted = flops_counted(configs[name], tokens, text_tokens)
    by_hand = sum(prefill_flops(sizes(configs[name]), tokens + text_tokens).values())
    checks.append([f"{name}: FLOPs of a prefill of {tokens} + {text_tokens} tokens", by_hand, counted.language_model])
    if name == tower_model:
        checks.append([f"{name}: FLOPs of tower and projector", sum(encode.values()), counted.encode])

# %% [markdown]
# Where the FLOPs go, with all visual tokens and with few:

# %%
s = sizes(configs[tower_model])
columns = {f"{count} visual tokens": prefill_flops(s, count + text_tokens) for count in (visual_tokens, kept)}
table = pd.DataFrame({what: {"encode": sum(encode.values()), **flops} for what, flops in columns.items()})
table.loc["all"] = table.sum()
full, few = columns.values()
Markdown(
    (table / 1e9).map("{:,.0f} G".format).to_markdown()
    + f"\n\nThe language model is left with {sum(few.values()) / sum(full.values()):.1%} of its FLOPs, and the whole "
    f"prefill with {table.iloc[-1, 1] / table.iloc[-1, 0]:.1%}: {text_tokens} text tokens and the tower stay. "
    f"Attention itself is {full['attention'] / sum(full.values()):.1%} of the language model's FLOPs with all tokens."
)

# %% [markdown]
# ## Bytes
#
# Each token leaves a key and a value in each layer: $2 L G h$ numbers. GQA divides this by $H / G$. Weights are read
# once for all tokens of a prefill, but again for each decoded token, which does little with them: $2$ FLOPs a weight.
# So decoding waits for bytes, a prefill for FLOPs, and fewer visual tokens help a decoding step only through the cache
# that it reads.

# %%
rows = {}
for name in models:
    s, config = sizes(configs[name]), configs[name]
    weights = bytes_each * sum(language_parameters(s).values())
    cache = {
        count: bytes_each * 2 * s["L"] * s["G"] * s["h"] * (count + text_tokens) for count in (visual_tokens, kept)
    }
    tokens = visual_tokens + text_tokens
    step = (
        2 * (s["L"] * sum(layer_parameters(s).values()) + s["d"] * s["V"]) + s["L"] * 4 * (tokens + 1) * s["H"] * s["h"]
    )
    counted = flops_counted_step(config, visual_tokens, text_tokens).total
    checks.append([f"{name}: FLOPs of a decoding step behind {tokens} tokens", step, counted])
    rows[name] = {
        "weights, GiB": weights / 2**30,
        "query heads a key head": s["H"] / s["G"],
        f"cache with {visual_tokens} visual tokens, MiB": cache[visual_tokens] / 2**20,
        f"cache with {kept} visual tokens, MiB": cache[kept] / 2**20,
        "FLOPs a byte, prefill": sum(prefill_flops(s, tokens).values()) / (weights + cache[visual_tokens]),
        "FLOPs a byte, decoding step": step / (weights + cache[visual_tokens]),
    }
Markdown(pd.DataFrame(rows).round(2).to_markdown())

# %% [markdown]
# ## Time
#
# If a prefill waits for FLOPs, its time is a constant and FLOPs over speed. The embedded backbone, with tokens of a
# uniform grid, gives both: by least squares of the relative deviations, so that short prefills count as much as long
# ones. Its cache is measured as well.

# %%
backbone, _ = open_backbone(MODEL)
config, size = read_config(MODEL)
inputs = example_inputs(config, text_tokens, size)
timings = time_methods(backbone, inputs, [UniformGrid(budget) for budget in budgets], runs=runs, new_tokens=1)
measured = pd.DataFrame(timings).assign(backbone="embedded")
names = ("models", "tower_model", "text_tokens", "visual_tokens", "kept", "claims", "claimed", "budgets", "runs")
parameters = {name: globals()[name] for name in names}
times = Times(project_path(times_dir))
times.write("09_sizing", measured, provenance(parameters, [MODEL / "model.safetensors"], started=started))
prefills = efficiency.prefills(times.frame("09_sizing"))
s = sizes(config)
for row in prefills.to_dict("records"):
    cache = 4 * 2 * s["L"] * s["G"] * s["h"] * row["prompt_tokens"]
    checks.append(
        [f"embedded backbone: bytes of the cache of {row['prompt_tokens']} tokens", cache, row["cache_bytes"]]
    )
fit = efficiency.fit_of(prefills)
figure = efficiency_figures.fit_figure(prefills, fit)
theme.save(figure, project_path(figures_dir), "09_sizing", times.origin("09_sizing"))
# %%
Markdown(f"{fit.sentence()} Measured on {circumstances(timings[0])}.")

# %% [markdown]
# ## All checks
#
# Everything but time must be equal to the last digit.

# %%
table = pd.DataFrame(checks, columns=["what", "by hand", "measured"])
assert (table["by hand"] == table["measured"]).all(), table[table["by hand"] != table["measured"]]
Markdown(table.map(lambda value: value if isinstance(value, str) else f"{value:,}").to_markdown(index=False))

# %% [markdown]
# ## Published claims
#
# The literature counts multiply-adds of visual tokens in the language model alone. The claims hold by that formula.
# True to the configuration, with text, LM head, tower and selection, less is saved. (The budget of the second claim was
# not published with it; it is the usual one that fits.)

# %%
claims = efficiency_tables.claims_table(claims, text_tokens, "idselection").assign(claimed=claimed)
Markdown(efficiency_tables.printed_claims(claims).to_markdown(index=False))
