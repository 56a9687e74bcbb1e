# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Speech: how many tokens of a clip does a speech recogniser need?
#
# Whisper base and Whisper tiny.en are whole models that others trained. They are encoder-decoders: the encoder turns 30
# seconds of sound into 1500 tokens, and the decoder reads them by cross-attention while it writes the words. There is
# no prompt with placeholders, as in a vision-language model. Tokens are dropped between encoder and decoder.
#
# A share is a share of the clip's own tokens. Of the silence behind it, which fills the 30 seconds, the same share is
# kept, evenly spaced, whatever the method; what happens where it is kept whole, or dropped, is asked below.
#
# The sentences are our own, said by espeak-ng; a few clips are a reading of a novel. `make speech` fetches all of it.

# %% tags=["parameters"]
folder = "data/speech/assembled"  # folder with the models and with clips/
models = ["whisper-tiny.en", "whisper-base"]  # folders of models in it
sentences = 0  # how many sentences of generated speech, 0 for all
methods = ["idselection", "topk", "diversity", "random", "uniform"]  # each with its defaults
shares = [0.5, 0.25, 0.125, 0.0625]  # shares of a clip's own tokens that are kept
silence_share = 0.25  # share at which the silence is kept whole, or dropped; a uniform grid selects
batch = 16  # clips at a time
resamples = 2000  # bootstrap resamples of the intervals
results_dir = "results/rows"  # folder of the stored rows
figures_dir = "results/figures"  # folder for the figure
tables_dir = "results/tables"  # folder for the tables

# %%
import time

started = time.perf_counter()

import pandas as pd
from IPython.display import Markdown

from idsel_core import get_method
from idsel_core.study.dataset import FULL
from idsel_core.study.paths import project_path
from idsel_core.study.report import speech, tables, theme
from idsel_core.study.speech import Setting, read_clips, transcribe
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results

theme.use_theme()

# %% [markdown]
# ## Transcribe

# %%
clips = read_clips(project_path(folder) / "clips")
said, read = (clips[clips["source"] == source] for source in ("espeak-ng", "reading"))
said = said.head(sentences or len(said))
settings = [Setting(FULL), *(Setting(get_method(name, budget=share)) for name in methods for share in shares)]
settings += [Setting(get_method("uniform", budget=silence_share), rule) for rule in ("kept", "dropped")]
settings.append(Setting(get_method("uniform", budget=1.0), "dropped"))
results = Results(project_path(results_dir))
resume = results.resume_folder("18_speech")
rows = pd.concat(
    [
        transcribe(project_path(folder) / model, part, settings, batch, resume)
        for model in models
        for part in (said, read)
        if len(part)
    ],
    ignore_index=True,
)

# %%
parameters = {name: globals()[name] for name in ("models", "sentences", "methods", "shares", "silence_share", "batch")}
files = [project_path(folder) / model / "model.safetensors" for model in models]
files.append(project_path(folder) / "clips/clips.csv")
results.write("18_speech", rows, provenance(parameters, files, started=started))
rows = results.frame("18_speech")
drawn_from = results.origin("18_speech", resamples=resamples)

# %% [markdown]
# ## What it shows
#
# The word error rate counts substituted, missing and additional words. It can exceed 100 %, where a model repeats
# itself.

# %%
rates = speech.word_error_rates(rows, resamples)
figure = speech.speech_figure(rates, methods)
theme.save(figure, project_path(figures_dir), "18_speech", drawn_from)

# %%
Markdown(speech.about_speech(rates))

# %% [markdown]
# All settings. Intervals resample clips, the same ones for all settings of a model; those of the reading rest on very
# few.

# %%
table = speech.speech_table(rates)
tables.save_text(table.to_markdown(index=False), project_path(tables_dir), "speech", drawn_from)
tables.save_text(speech.about_speech(rates), project_path(tables_dir), "speech_said", drawn_from)
Markdown(table.to_markdown(index=False))
